#include "mutation.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "migrate/page_stream.hpp"
#include "value.hpp"

namespace godwit::fault {
namespace {

/// All values of a message, to take something from elsewhere.
void gather(const Value& value, std::vector<const Value*>& all) {
  all.push_back(&value);
  for (const auto& part : value.parts) gather(part, all);
}

std::uint64_t other_number(std::uint64_t number, Chance& chance) {
  constexpr std::array<std::uint64_t, 24> extremes{0,
                                                   1,
                                                   2,
                                                   7,
                                                   127,
                                                   255,
                                                   256,
                                                   4095,
                                                   4096,
                                                   65535,
                                                   1 << 20,
                                                   1 << 22,
                                                   0x7fffffff,
                                                   0x80000000,
                                                   0xffffffff,
                                                   0x100000000,
                                                   std::uint64_t{1} << 47,
                                                   0x7ffffffff000,
                                                   0x7ffffffffffff000,
                                                   0x7fffffffffffffff,
                                                   0x8000000000000000,
                                                   0xfffffffffffff000,
                                                   0xfffffffffffffffe,
                                                   0xffffffffffffffff};
  switch (chance.below(6)) {
    case 0:
      return number + 1;
    case 1:
      return number - 1;
    case 2:
      return number ^ (std::uint64_t{1} << chance.below(64));
    case 3:
      return chance.one_in(2) ? number + 4096 : number - 4096;
    case 4:
      return chance.bits() >> chance.below(64);
    default:
      return chance.of(extremes);
  }
}

void set_number(Value& value, std::uint64_t number, Chance& chance) {
  value.number = number;
  const bool negative = static_cast<std::int64_t>(number) < 0 && !chance.one_in(3);
  value.kind = negative ? Value::Kind::negative : Value::Kind::natural;
}

void change_bytes(Bytes& bytes, Chance& chance) {
  constexpr std::array<std::string_view, 12> texts{"",         "/", "..",   "../../../../etc/passwd", "/etc/shadow",
                                                   "a/b",      "-", "%n%s", "/proc/self/mem",         "/dev/mem",
                                                   "\xff\xfe", "lo"};
  constexpr std::array<std::size_t, 6> sizes{64, 255, 4096, 70'000, 300'000, 1'000'000};
  switch (chance.below(6)) {
    case 0: {
      const auto text = chance.of(texts);
      bytes.assign(text.begin(), text.end());
      return;
    }
    case 1:
      bytes.resize(chance.of(sizes), bytes.empty() ? 'x' : bytes.back());
      return;
    case 2:
      bytes.resize(chance.below(bytes.size() + 1));
      return;
    case 3: {
      const Bytes once = bytes;
      bytes.insert(bytes.end(), once.begin(), once.end());
      return;
    }
    case 4:
      if (!bytes.empty()) bytes[chance.below(bytes.size())] = 0;
      return;
    default:
      for (std::size_t i = 0; i <= chance.below(8) && !bytes.empty(); ++i)
        bytes[chance.below(bytes.size())] ^= static_cast<std::uint8_t>(1U << chance.below(8));
  }
}

/// Of an array its elements, of a map its pairs.
void change_parts(Value& value, Chance& chance) {
  const std::size_t step = value.kind == Value::Kind::map ? 2 : 1;
  auto& parts = value.parts;
  const std::size_t count = parts.size() / step;
  const auto at = [&](std::size_t which) { return parts.begin() + static_cast<std::ptrdiff_t>(which * step); };
  const auto past = [&](std::size_t which) { return at(which) + static_cast<std::ptrdiff_t>(step); };
  if (count == 0) {
    for (std::size_t i = 0; i < step; ++i) parts.emplace_back();
    return;
  }
  const std::size_t one = chance.below(count), other = chance.below(count);
  const std::vector<Value> copied(at(one), past(one));
  switch (chance.below(7)) {
    case 0:
      parts.erase(at(one), past(one));
      return;
    case 1:
      parts.clear();
      return;
    case 2: {
      const auto all = parts;
      parts.insert(parts.end(), all.begin(), all.end());
      return;
    }
    case 3:
      parts.insert(at(other), copied.begin(), copied.end());
      return;
    case 4:
      // The values of two keys, or two elements.
      std::swap(parts[one * step + step - 1], parts[other * step + step - 1]);
      return;
    case 5: {
      // Large ones would cost the test more than the tested.
      const std::size_t times = bytes_of(copied.back()).size() > 256 ? 20 : 3000;
      for (std::size_t i = 0; i < times; ++i) parts.insert(parts.end(), copied.begin(), copied.end());
      return;
    }
    default:
      parts.erase(at(one), parts.end());
  }
}

/// Changes one value somewhere below. What was done, and where.
std::string change(Value& root, Chance& chance) {
  std::vector<const Value*> all;
  gather(root, all);
  const Value elsewhere = *chance.of(all);
  // By descent: the few fields of a message have as much of a chance as a list with thousands of elements.
  Value* value = &root;
  std::string where;
  while (!value->parts.empty() && !chance.one_in(6)) {
    const bool map = value->kind == Value::Kind::map;
    value = map ? &value->parts[chance.below(value->parts.size() / 2) * 2 + (chance.one_in(20) ? 0 : 1)]
                : &value->parts[chance.below(value->parts.size())];
    where += "." + value->name;
  }
  if (chance.one_in(12)) {
    const std::string name = std::move(value->name);
    *value = chance.one_in(3) ? Value{} : elsewhere;
    value->name = name;
    return where + " became another";
  }
  switch (value->kind) {
    case Value::Kind::boolean:
      value->number ^= 1;
      return where + " inverted";
    case Value::Kind::natural:
    case Value::Kind::negative: {
      const auto before = value->number;
      const bool taken = elsewhere.kind == Value::Kind::natural && chance.one_in(6);
      set_number(*value, taken ? elsewhere.number : other_number(value->number, chance), chance);
      return fmt::format("{} {} became {}", where, before, value->number);
    }
    case Value::Kind::real: {
      constexpr std::array<double, 6> reals{0, -1, 1e300, -1e300, 1e-300, __builtin_nan("")};
      value->real = chance.of(reals);
      return fmt::format("{} became {}", where, value->real);
    }
    case Value::Kind::text:
    case Value::Kind::blob:
      value->parts.clear();
      if (elsewhere.kind == value->kind && chance.one_in(4))
        value->bytes = elsewhere.bytes;
      else
        change_bytes(value->bytes, chance);
      return fmt::format("{} has {} bytes now", where, value->bytes.size());
    case Value::Kind::array:
    case Value::Kind::map: {
      const auto before = value->parts.size();
      change_parts(*value, chance);
      return fmt::format("{} had {} parts and has {}", where, before, value->parts.size());
    }
    default:
      *value = elsewhere;
      return where + " became another";
  }
}

std::string flip(Bytes& bytes, std::size_t from, Chance& chance) {
  if (bytes.size() <= from) return "nothing to flip";
  std::string flipped = "flipped";
  const std::size_t count = 1 + chance.below(6);
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t bit = chance.below((bytes.size() - from) * 8) + from * 8;
    bytes[bit / 8] ^= static_cast<std::uint8_t>(1U << (bit % 8));
    flipped += fmt::format(" {}", bit);
  }
  return flipped;
}

}  // namespace

void set_length(Bytes& frame, std::uint32_t length, bool big_endian) {
  if (big_endian) length = __builtin_bswap32(length);
  std::memcpy(frame.data(), &length, sizeof length);
}

std::string change_frame(Bytes& frame, std::size_t head, bool big_endian, Chance& chance) {
  constexpr std::array<std::uint32_t, 5> lengths{0, 1, 256 << 20, (256 << 20) + 1, 0xffffffff};
  const auto fit = [&] { set_length(frame, static_cast<std::uint32_t>(frame.size() - head), big_endian); };
  const auto luck = chance.below(100);
  if (luck < 68) {
    auto value = parse(BytesView(frame).subspan(head), false);
    if (value) {
      std::string done;
      do done += change(*value, chance) + "; ";
      while (chance.one_in(3));
      const Bytes payload = bytes_of(*value);
      frame.resize(head);
      frame.insert(frame.end(), payload.begin(), payload.end());
      fit();
      return done;
    }
  }
  if (luck < 80) return flip(frame, chance.one_in(4) ? 0 : head, chance);
  if (luck < 85) {
    const auto size = static_cast<std::uint32_t>(frame.size() - head);
    const std::uint32_t length = chance.one_in(2) ? size + (chance.one_in(2) ? 1 : -1U) : chance.of(lengths);
    set_length(frame, length, big_endian);
    return fmt::format("length {} instead of {}", length, size);
  }
  if (luck < 92) {
    const std::size_t left = chance.below(frame.size() - head + 1);
    frame.resize(head + left);
    if (chance.one_in(2)) fit();
    return fmt::format("cut to {}", left);
  }
  if (head > 4 && luck < 97) {
    frame[4] = static_cast<std::uint8_t>(chance.one_in(4) ? chance.bits() : 1 + chance.below(26));
    return fmt::format("type {}", frame[4]);
  }
  Bytes rubbish(chance.below(2000));
  for (auto& byte : rubbish) byte = static_cast<std::uint8_t>(chance.bits());
  frame.resize(head);
  frame.insert(frame.end(), rubbish.begin(), rubbish.end());
  fit();
  return fmt::format("{} random bytes", rubbish.size());
}

std::string change_records(Bytes& bytes, Chance& chance) {
  using migrate::PageHeader;
  if (bytes.size() < sizeof(PageHeader)) {
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(chance.one_in(2) ? chance.bits() : chance.below(10));
    return fmt::format("the byte became {}", bytes.empty() ? 0 : bytes[0]);
  }
  PageHeader header;
  std::memcpy(&header, bytes.data(), sizeof header);
  std::string done;
  switch (chance.below(8)) {
    case 0:
      header.space = static_cast<std::uint32_t>(other_number(header.space, chance));
      done = fmt::format("space {}", header.space);
      break;
    case 1:
      header.kind = static_cast<std::uint32_t>(chance.one_in(2) ? chance.below(7) : chance.bits());
      done = fmt::format("kind {}", header.kind);
      break;
    case 2:
    case 3:
      header.address = other_number(header.address, chance);
      done = fmt::format("address {:#x}", header.address);
      break;
    case 4:
    case 5:
      header.size = other_number(header.size, chance);
      done = fmt::format("size {}", header.size);
      break;
    case 6:
      return flip(bytes, 0, chance);
    default:
      bytes.resize(chance.below(bytes.size()));
      return fmt::format("cut to {}", bytes.size());
  }
  std::memcpy(bytes.data(), &header, sizeof header);
  return done;
}

}  // namespace godwit::fault
