#include <algorithm>

#include "kernel/remote.hpp"

namespace godwit::kernel {

/// What the loop in the target reads (gadget_x86_64.S).
struct Batch::Record {
  std::int64_t number = 0;
  std::array<std::uint64_t, 6> arguments{};
  std::int64_t result = -ECANCELED;  ///< of a call that an earlier failure kept from being made
  RemoteAddress next = 0;
  std::uint64_t flags = 0;
};

namespace {

constexpr std::int64_t copy_number = -1;  ///< no system call: copies a word from arguments[0] to arguments[1]
constexpr std::uint64_t flag_must = 1;
constexpr std::size_t result_offset = 56;
constexpr std::size_t arguments_offset = 8;

}  // namespace

Batch::Batch(RemoteAddress area, std::size_t capacity) : area_(area), capacity_(capacity) {
  image_.reserve(1 * KiB);
}

std::size_t Batch::take(std::size_t size, std::size_t alignment) {
  const std::size_t offset = (image_.size() + alignment - 1) / alignment * alignment;
  if (offset > capacity_ || size > capacity_ - offset) {
    overflowed_ = true;
    return 0;
  }
  image_.resize(offset + size);
  return offset;
}

RemoteAddress Batch::space(std::size_t size) {
  const std::size_t offset = take(size, 16);
  return overflowed_ ? 0 : area_ + offset;
}

RemoteAddress Batch::data(BytesView bytes) {
  const RemoteAddress where = space(bytes.size());
  if (!overflowed_ && !bytes.empty()) std::memcpy(image_.data() + (where - area_), bytes.data(), bytes.size());
  return where;
}

RemoteAddress Batch::text(std::string_view zero_terminated_copy) {
  const RemoteAddress where = space(zero_terminated_copy.size() + 1);
  if (!overflowed_)
    std::memcpy(image_.data() + (where - area_), zero_terminated_copy.data(), zero_terminated_copy.size());
  return where;
}

Batch::Record Batch::record(std::size_t offset) const {
  Record record;
  std::memcpy(&record, image_.data() + offset, sizeof record);
  return record;
}

void Batch::put(std::size_t offset, const Record& record) {
  std::memcpy(image_.data() + offset, &record, sizeof record);
}

std::size_t Batch::append(const Record& added, std::optional<std::size_t> after) {
  const std::size_t offset = take(sizeof added, alignof(Record));
  if (overflowed_) return 0;
  Record linked = added;
  if (!calls_.empty()) {
    const std::size_t place = after.value_or(last_);
    Record previous = record(place);
    linked.next = previous.next;
    previous.next = area_ + offset;
    put(place, previous);
    if (place == last_) last_ = offset;
  } else {
    last_ = offset;
  }
  put(offset, linked);
  return offset;
}

Batch::Call Batch::call(long number, std::array<std::uint64_t, 6> arguments) {
  Record record;
  record.number = number;
  record.arguments = arguments;
  const std::size_t offset = append(record);
  calls_.push_back(offset);
  return calls_.size() - 1;
}

Batch::Call Batch::must(std::string what, long number, std::array<std::uint64_t, 6> arguments) {
  const Call made = call(number, arguments);
  if (overflowed_) return made;
  Record changed = record(calls_[made]);
  changed.flags |= flag_must;
  put(calls_[made], changed);
  musts_.emplace_back(made, std::move(what));
  return made;
}

void Batch::forward(Call from, Call to, unsigned argument) {
  if (overflowed_) return;
  Record copy;
  copy.number = copy_number;
  copy.arguments[0] = area_ + calls_[from] + result_offset;
  copy.arguments[1] = area_ + calls_[to] + arguments_offset + argument * sizeof(std::uint64_t);
  append(copy, calls_[from]);
}

bool Batch::empty() const {
  return calls_.empty();
}

std::size_t Batch::size() const {
  return calls_.size();
}

bool Batch::full(std::size_t calls, std::size_t bytes) const {
  // Every call may come with a forward; every piece of data is aligned to 16 bytes.
  const std::size_t needed = 2 * calls * sizeof(Record) + bytes + 16 * (calls + 1);
  return overflowed_ || image_.size() + needed > capacity_;
}

long Batch::result(Call call) const {
  return record(calls_[call]).result;
}

BytesView Batch::bytes(RemoteAddress where, std::size_t size) const {
  return BytesView(image_).subspan(where - area_, size);
}

}  // namespace godwit::kernel
