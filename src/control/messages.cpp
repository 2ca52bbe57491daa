#include "control/messages.hpp"

#include <algorithm>
#include <cmath>

#include "base/names.hpp"

namespace godwit::control {

namespace {

constexpr image::Limits limits{.bytes = message_limit, .items = 4096, .blob = message_limit, .depth = 8};

bool short_enough(const std::string& text) {
  return text.size() <= text_limit && printable(text);
}

bool short_enough(const std::vector<std::string>& texts, std::size_t most) {
  return texts.size() <= most && std::ranges::all_of(texts, [](const auto& text) { return short_enough(text); });
}

}  // namespace

Result<Request> read_request(BytesView bytes) {
  auto request = TRY(image::unpack<Request>(bytes, limits));
  const bool withdraws = request.ask.move.empty();
  if (withdraws ? !short_enough(request.withdrawal.move) : !plausible(request.ask))
    return fail(ErrorKind::invalid, "a request that no starter makes");
  return request;
}

Result<Answer> read_answer(BytesView bytes) {
  auto answer = TRY(image::unpack<Answer>(bytes, limits));
  if (!plausible(answer)) return fail(ErrorKind::invalid, "an answer that no starter gives");
  return answer;
}

void add_text(std::string& text, const std::string& more) {
  text.append(text.empty() ? "" : "; ").append(more);
  text.resize(std::min(text.size(), answer_text_limit));
}

bool plausible(const Ask& ask) {
  for (const auto* text : {&ask.move, &ask.pod, &ask.pod_id, &ask.from})
    if (text->empty() || !short_enough(*text)) return false;
  return short_enough(ask.needs.labels, list_limit) && short_enough(ask.needs.addresses, list_limit) &&
         short_enough(ask.elsewhere, elsewhere_limit) && short_enough(ask.needs.home) &&
         std::isfinite(ask.needs.processors) && ask.needs.processors >= 0 && plausible(ask.needs.machine);
}

bool plausible(const Answer& answer) {
  if (answer.move.empty() || answer.labels.size() > list_limit) return false;
  for (const auto& [key, value] : answer.labels)
    if (!short_enough(key) || !short_enough(value)) return false;
  return short_enough(answer.move) && short_enough(answer.node) && short_enough(answer.reason) &&
         answer.text.size() <= answer_text_limit && printable(answer.text) && (!answer.yes || !answer.node.empty());
}

}  // namespace godwit::control
