#include "node/attendance.hpp"

namespace godwit::node {

void Attendance::know(const std::string& id) {
  const std::lock_guard lock(mutex_);
  entries_.try_emplace(id);
}

void Attendance::forget(const std::string& id) {
  const std::lock_guard lock(mutex_);
  entries_.erase(id);
}

bool Attendance::empty() const {
  const std::lock_guard lock(mutex_);
  return entries_.empty();
}

std::vector<std::string> Attendance::forsaken(std::chrono::seconds patience) const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> all;
  for (const auto& [id, entry] : entries_)
    if (entry.readers == 0 && Clock::now() - entry.since > patience) all.push_back(id);
  return all;
}

void Attendance::count(const std::string& id, int change) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  found->second.readers += change;
  found->second.since = Clock::now();
}

Attendance::Reader::Reader(Attendance& attendance, std::string id) : attendance_(attendance), id_(std::move(id)) {
  attendance_.count(id_, +1);
}

Attendance::Reader::~Reader() {
  attendance_.count(id_, -1);
}

}  // namespace godwit::node
