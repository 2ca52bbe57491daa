#include "control/messages.hpp"

#include <algorithm>
#include <cmath>

namespace godwit::control {

namespace {

constexpr image::Limits limits{.bytes = message_limit, .items = 4096, .blob = message_limit, .depth = 8};

bool short_enough(const std::string& text) {
  return text.size() <= text_limit;
}

bool short_enough(const std::vector<std::string>& texts, std::size_t most) {
  return texts.size() <= most && std::ranges::all_of(texts, [](const auto& text) { return short_enough(text); });
}

}  // namespace

Result<Request> read_request(BytesView bytes) {
  return image::unpack<Request>(bytes, limits);
}

Result<Answer> read_answer(BytesView bytes) {
  return image::unpack<Answer>(bytes, limits);
}

bool plausible(const Ask& ask) {
  for (const auto* text : {&ask.move, &ask.pod, &ask.pod_id, &ask.from})
    if (text->empty() || !short_enough(*text)) return false;
  return short_enough(ask.needs.labels, list_limit) && short_enough(ask.needs.addresses, list_limit) &&
         short_enough(ask.elsewhere, elsewhere_limit) && short_enough(ask.needs.home) &&
         std::isfinite(ask.needs.processors) && ask.needs.processors >= 0;
}

bool plausible(const Answer& answer) {
  if (answer.move.empty() || answer.labels.size() > list_limit) return false;
  for (const auto& [key, value] : answer.labels)
    if (!short_enough(key) || !short_enough(value)) return false;
  return short_enough(answer.move) && short_enough(answer.node) && short_enough(answer.reason) &&
         answer.text.size() <= 16 * text_limit && (!answer.yes || !answer.node.empty());
}

}  // namespace godwit::control
