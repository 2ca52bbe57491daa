#include "store/store.hpp"

#include <algorithm>

namespace godwit::store {

Result<void> check(const Record& record) {
  const bool complete = !record.pod.empty() && !record.id.empty() && !record.owner.empty();
  const auto within = [](const std::string& text) { return text.size() <= text_limit; };
  if (!complete || !within(record.pod) || !within(record.id) || !within(record.owner) || !within(record.address) ||
      !within(record.home) || record.epoch > INT64_MAX)
    return fail(ErrorKind::invalid, "store: record of pod '{}' is incomplete or too long", record.pod.substr(0, 100));
  return {};
}

Result<void> check(const Note& note) {
  const bool plain = !note.kind.empty() && note.kind.size() <= 16 &&
                     std::ranges::all_of(note.kind, [](char c) { return c >= 'a' && c <= 'z'; });
  if (!plain || note.key.empty() || note.key.size() > text_limit || note.value.size() > value_limit)
    return fail(ErrorKind::invalid, "store: note {}/{} has no name, or is too long", note.kind.substr(0, 100),
                note.key.substr(0, 100));
  return {};
}

Error name_taken(const Record& by) {
  return {ErrorKind::busy, fmt::format("a pod named {} is on node {}", by.pod, by.owner), 0,
          "choose another name, or remove it"};
}

Error address_taken(const Record& by) {
  return {ErrorKind::busy, fmt::format("address {} belongs to pod {} on node {}", by.address, by.pod, by.owner), 0, {}};
}

}  // namespace godwit::store
