#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/fault.hpp"
#include "base/fd.hpp"
#include "image/codec.hpp"
#include "migrate/page_stream.hpp"
#include "migrate/wire.hpp"

/// The test daemon's lies. What was told is written to lie.told beside the file /run/godwit/lie, a line for each lie.
/// That file isn't there, or holds one of two things.
///
/// "SEED NUMBER SIDE": while move NUMBER is under way, of which this daemon is SIDE (source or destination), something
/// that it says to the other one isn't what it should be. Seed and number decide which message that is, and what
/// becomes of it.
///
/// "MESSAGE PATH = VALUE", in any number of lines: wherever such a message has something at the path, it is VALUE. All
/// lines for a message are obeyed in their order. MESSAGE is "ask", "answer", or a type of the control connection by
/// its name. PATH is made of steps, each with a dot before it: a key, the number of an element, or {KEY=TEXT}, the
/// first element whose KEY is TEXT. What the last step names is added if it isn't there: a key, or the element behind
/// the last one. VALUE is a number, true, false, "gone" (it is taken away), or else a text.
namespace godwit::fault {
namespace {

using Type = migrate::wire::Type;

const std::string file_name = "/run/godwit/lie";

class Chance {
 public:
  Chance() = default;
  Chance(std::uint64_t seed, std::uint64_t number) {
    std::seed_seq mixed{seed, seed >> 32, number, number >> 32};
    engine_.seed(mixed);
  }
  /// 0 to `count` - 1.
  std::size_t below(std::size_t count) { return count == 0 ? 0 : engine_() % count; }
  bool one_in(std::size_t count) { return below(count) == 0; }
  std::uint64_t bits() { return engine_(); }
  template <typename Choices>
  auto of(const Choices& choices) {
    return choices[below(std::size(choices))];
  }

 private:
  std::mt19937_64 engine_;
};

// ---- structured messages --------------------------------------------------------------------------------------------

/// A MessagePack value that can be changed. A blob that holds a map or an array itself is looked into.
struct Value {
  enum class Kind : std::uint8_t { nil, boolean, natural, negative, real, text, blob, array, map } kind = Kind::nil;
  std::uint64_t number = 0;
  double real = 0;
  Bytes bytes;
  std::vector<Value> parts;  ///< a map's: key, value, key, value …; a blob's: what it holds
  std::string name;          ///< where it stands, for people
};

std::optional<Value> parse(BytesView bytes, bool containers_only);

Value value_of(const msgpack::object& object) {
  Value value;
  switch (object.type) {
    case msgpack::type::BOOLEAN:
      value.kind = Value::Kind::boolean;
      value.number = object.via.boolean ? 1 : 0;
      break;
    case msgpack::type::POSITIVE_INTEGER:
      value.kind = Value::Kind::natural;
      value.number = object.via.u64;
      break;
    case msgpack::type::NEGATIVE_INTEGER:
      value.kind = Value::Kind::negative;
      value.number = static_cast<std::uint64_t>(object.via.i64);
      break;
    case msgpack::type::FLOAT32:
    case msgpack::type::FLOAT64:
      value.kind = Value::Kind::real;
      value.real = object.via.f64;
      break;
    case msgpack::type::STR:
      value.kind = Value::Kind::text;
      value.bytes.assign(object.via.str.ptr, object.via.str.ptr + object.via.str.size);
      break;
    case msgpack::type::BIN:
      value.kind = Value::Kind::blob;
      value.bytes.assign(object.via.bin.ptr, object.via.bin.ptr + object.via.bin.size);
      if (auto inner = parse(value.bytes, true)) value.parts.push_back(std::move(*inner));
      break;
    case msgpack::type::ARRAY:
      value.kind = Value::Kind::array;
      for (std::size_t i = 0; i < object.via.array.size; ++i) {
        value.parts.push_back(value_of(object.via.array.ptr[i]));
        value.parts.back().name = std::to_string(i);
      }
      break;
    case msgpack::type::MAP:
      value.kind = Value::Kind::map;
      for (std::size_t i = 0; i < object.via.map.size; ++i) {
        const auto& [key, held] = object.via.map.ptr[i];
        value.parts.push_back(value_of(key));
        value.parts.push_back(value_of(held));
        value.parts.back().name.assign(value.parts[value.parts.size() - 2].bytes.begin(),
                                       value.parts[value.parts.size() - 2].bytes.end());
      }
      break;
    default:
      break;
  }
  return value;
}

std::optional<Value> parse(BytesView bytes, bool containers_only) {
  if (bytes.empty()) return {};
  const bool container = (bytes[0] >= 0x80 && bytes[0] <= 0x9f) || (bytes[0] >= 0xdc && bytes[0] <= 0xdf);
  if (containers_only && !container) return {};
  try {
    std::size_t used = 0;
    const auto handle = msgpack::unpack(reinterpret_cast<const char*>(bytes.data()), bytes.size(), used);
    if (used != bytes.size()) return {};
    return value_of(handle.get());
  } catch (const std::exception&) {
    return {};
  }
}

void write(const Value& value, msgpack::packer<msgpack::sbuffer>& to) {
  const auto raw = [](const Bytes& bytes) { return reinterpret_cast<const char*>(bytes.data()); };
  const auto size = [](const auto& all) { return static_cast<std::uint32_t>(all.size()); };
  switch (value.kind) {
    case Value::Kind::nil:
      to.pack_nil();
      break;
    case Value::Kind::boolean:
      value.number != 0 ? to.pack_true() : to.pack_false();
      break;
    case Value::Kind::natural:
      to.pack_uint64(value.number);
      break;
    case Value::Kind::negative:
      to.pack_int64(static_cast<std::int64_t>(value.number));
      break;
    case Value::Kind::real:
      to.pack_double(value.real);
      break;
    case Value::Kind::text:
      to.pack_str(size(value.bytes)).pack_str_body(raw(value.bytes), size(value.bytes));
      break;
    case Value::Kind::blob: {
      if (value.parts.empty()) {
        to.pack_bin(size(value.bytes)).pack_bin_body(raw(value.bytes), size(value.bytes));
        break;
      }
      msgpack::sbuffer inner;
      msgpack::packer<msgpack::sbuffer> packer(inner);
      for (const auto& part : value.parts) write(part, packer);
      to.pack_bin(static_cast<std::uint32_t>(inner.size()));
      to.pack_bin_body(inner.data(), static_cast<std::uint32_t>(inner.size()));
      break;
    }
    case Value::Kind::array:
      to.pack_array(size(value.parts));
      for (const auto& part : value.parts) write(part, to);
      break;
    case Value::Kind::map:
      to.pack_map(size(value.parts) / 2);
      for (const auto& part : value.parts) write(part, to);
      break;
  }
}

Bytes bytes_of(const Value& value) {
  msgpack::sbuffer buffer;
  msgpack::packer<msgpack::sbuffer> packer(buffer);
  write(value, packer);
  return {buffer.data(), buffer.data() + buffer.size()};
}

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

// ---- frames ---------------------------------------------------------------------------------------------------------

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

/// The head of a frame: its length in the first four bytes, and whatever follows.
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

// ---- told what to say
// ------------------------------------------------------------------------------------------------

/// A line of the file's second form.
struct Order {
  std::string message, path, value;
};

bool is_number(std::string_view text) {
  return !text.empty() && text.size() < 20 &&
         std::ranges::all_of(text, [](char one) { return one >= '0' && one <= '9'; });
}

Value as_text(std::string_view text) {
  return {.kind = Value::Kind::text, .bytes = Bytes(text.begin(), text.end())};
}

Value as_value(std::string_view text) {
  if (is_number(text)) return {.kind = Value::Kind::natural, .number = std::stoull(std::string(text))};
  if (text == "true" || text == "false") return {.kind = Value::Kind::boolean, .number = text == "true" ? 1U : 0U};
  return as_text(text);
}

/// Where a step leads from an array or a map: a position among its parts, past the end when nothing is there.
std::size_t position_of(const Value& value, std::string_view step) {
  const auto& parts = value.parts;
  if (value.kind == Value::Kind::map) {
    for (std::size_t i = 0; i < parts.size(); i += 2)
      if (std::ranges::equal(parts[i].bytes, step)) return i + 1;
    return parts.size();
  }
  if (is_number(step)) return std::stoull(std::string(step));
  const auto equals = step.find('=');
  if (!step.starts_with('{') || !step.ends_with('}') || equals == std::string_view::npos) return parts.size();
  const auto key = step.substr(1, equals - 1), text = step.substr(equals + 1, step.size() - equals - 2);
  const auto found = std::ranges::find_if(parts, [&](const Value& part) {
    if (part.kind != Value::Kind::map) return false;
    const auto at = position_of(part, key);
    return at < part.parts.size() && std::ranges::equal(part.parts[at].bytes, text);
  });
  return static_cast<std::size_t>(found - parts.begin());
}

/// What a blob holds, or the value itself.
Value& held(Value& value) {
  return value.kind == Value::Kind::blob && !value.parts.empty() ? held(value.parts.front()) : value;
}

/// ".a.{b=c.d}.0": "a", "{b=c.d}" and "0".
std::vector<std::string_view> steps_of(std::string_view path) {
  std::vector<std::string_view> steps;
  while (path.starts_with('.')) {
    path.remove_prefix(1);
    const auto dot = path.find('.', path.starts_with('{') ? std::min(path.find('}'), path.size()) : 0);
    steps.push_back(path.substr(0, dot));
    path.remove_prefix(std::min(dot, path.size()));
  }
  return steps;
}

/// Whether there is such a place, or may be.
bool put(Value& into, std::string_view step, const std::string& value) {
  auto& parts = into.parts;
  const bool map = into.kind == Value::Kind::map, gone = value == "gone";
  const std::size_t position = position_of(into, step);
  if (position < parts.size()) {
    const auto place = parts.begin() + static_cast<std::ptrdiff_t>(position);
    if (gone)
      parts.erase(map ? place - 1 : place, place + 1);
    else
      *place = as_value(value);
    return true;
  }
  const bool behind_last = into.kind == Value::Kind::array && is_number(step) && position == parts.size();
  if (gone || (!map && !behind_last)) return false;
  if (map) parts.push_back(as_text(step));
  parts.push_back(as_value(value));
  return true;
}

bool obey(Value& root, const Order& order) {
  const auto steps = steps_of(order.path);
  if (steps.empty()) return false;
  Value* at = &held(root);
  for (const auto step : std::span(steps).first(steps.size() - 1)) {
    const std::size_t position = position_of(*at, step);
    if (position >= at->parts.size()) return false;
    at = &held(at->parts[position]);
  }
  return put(*at, steps.back(), order.value);
}

// ---- which ----------------------------------------------------------------------------------------------------------

/// What a frame is: a type of the control connection, or one of these.
enum Other : int { role = 100, data, zero, end, word, asking, answering, greeting };

struct Choice {
  Flow flow;
  int what;
  int weight;
  int most = 1;  ///< as many of them are told apart
};

constexpr Choice message(Type type, int weight, int most = 1) {
  return {Flow::control, static_cast<int>(type), weight, most};
}

constexpr std::array source_says{message(Type::hello, 7),
                                 message(Type::clock, 2, 8),
                                 message(Type::prepare, 5),
                                 message(Type::files, 8, 6),
                                 message(Type::round, 12, 2),
                                 message(Type::objects_ahead, 10, 2),
                                 message(Type::freezing, 9),
                                 message(Type::objects_kept, 6),
                                 message(Type::objects, 11),
                                 message(Type::last, 11),
                                 message(Type::state, 16),
                                 message(Type::log, 3, 2),
                                 message(Type::execution, 3),
                                 message(Type::streams_end, 2),
                                 message(Type::go, 3),
                                 message(Type::bye, 1),
                                 Choice{Flow::records, role, 2, 3},
                                 Choice{Flow::records, data, 7, 6},
                                 Choice{Flow::records, zero, 2, 2},
                                 Choice{Flow::records, end, 3, 6},
                                 Choice{Flow::frame, asking, 4},
                                 Choice{Flow::frame, greeting, 2, 4}};
constexpr std::array destination_says{message(Type::welcome, 5),          message(Type::clock, 6, 8),
                                      message(Type::ready, 8, 4),         message(Type::done, 5, 2),
                                      message(Type::rebuilt, 9),          message(Type::running, 9),
                                      message(Type::drained, 2),          message(Type::abort, 2),
                                      Choice{Flow::records, data, 8, 4},  Choice{Flow::frame, answering, 8},
                                      Choice{Flow::frame, greeting, 2, 2}};

/// One lie that is to be told.
struct Lie {
  Flow flow;
  int what;
  int ordinal;
};

bool has_key(const Value& value, std::string_view key) {
  if (value.kind != Value::Kind::map) return false;
  for (std::size_t i = 0; i < value.parts.size(); i += 2)
    if (std::ranges::equal(value.parts[i].bytes, key)) return true;
  return false;
}

/// -1: nothing that lies are told about.
int what_is(Flow flow, const Bytes& frame) {
  if (flow == Flow::control) return frame[4];
  if (flow == Flow::records) {
    if (frame.size() < sizeof(migrate::PageHeader)) return role;
    migrate::PageHeader header;
    std::memcpy(&header, frame.data(), sizeof header);
    constexpr std::array kinds{data, zero, end, end, word};
    return header.kind < kinds.size() ? kinds[header.kind] : static_cast<int>(word);
  }
  const auto value = parse(BytesView(frame).subspan(4), true);
  if (!value) return -1;
  if (has_key(*value, "ask")) return asking;
  if (has_key(*value, "yes") && has_key(*value, "reason")) return answering;
  return has_key(*value, "nonce") || has_key(*value, "mac") ? static_cast<int>(greeting) : -1;
}

/// The types of the control connection, from 1.
constexpr std::array<std::string_view, 26> types{
    "hello", "welcome", "refused",  "clock",       "prepare", "ready",         "files",        "round",    "done",
    "last",  "state",   "objects",  "rebuilt",     "go",      "running",       "frames",       "log",      "drained",
    "bye",   "abort",   "freezing", "streams_end", "probe",   "objects_ahead", "objects_kept", "execution"};
static_assert(types.size() == static_cast<std::size_t>(Type::execution));

/// As lines of the file's second form have it.
std::string_view name_of(int what) {
  if (what == asking) return "ask";
  if (what == answering) return "answer";
  return what >= 1 && what <= static_cast<int>(types.size()) ? types[static_cast<std::size_t>(what) - 1] : "";
}

class Liar {
 public:
  std::optional<Bytes> frame(Flow flow, int socket, std::span<const iovec> parts) {
    std::ifstream file(file_name);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    const std::scoped_lock lock(mutex_);
    if (text.empty()) {
      armed_.clear();
      held_.clear();
      return {};
    }
    if (text != armed_) arm(text);
    Bytes whole;
    for (const auto& part : parts) {
      const auto* begin = static_cast<const std::uint8_t*>(part.iov_base);
      whole.insert(whole.end(), begin, begin + part.iov_len);
    }
    const int what = what_is(flow, whole);
    if (what < 0) return {};
    if (!orders_.empty()) return obeyed(what, flow == Flow::control ? 5 : 4, flow != Flow::control, std::move(whole));
    const int ordinal = said_[{flow, what}]++;
    const auto lie = std::ranges::find_if(
        lies_, [&](const Lie& one) { return one.flow == flow && one.what == what && one.ordinal == ordinal; });
    const auto held = held_.find(socket);
    if (lie == lies_.end() && held == held_.end()) return {};
    if (lie != lies_.end()) {
      const std::string done = tell(flow, what, socket, whole);
      note(fmt::format("{} {} #{}: {}", flow == Flow::control ? "message" : "record", what, ordinal, done));
    }
    if (held != held_.end()) {
      whole.insert(whole.end(), held->second.begin(), held->second.end());
      held_.erase(held);
    }
    return whole;
  }

 private:
  static void note(const std::string& told) { std::ofstream(file_name + ".told", std::ios::app) << told << "\n"; }

  void arm(const std::string& text) {
    armed_ = text;
    said_.clear();
    held_.clear();
    lies_.clear();
    orders_.clear();
    if (!is_number(text.substr(0, 1))) return take_orders(text);
    std::uint64_t seed = 0, number = 0;
    char side[16] = "";
    if (std::sscanf(text.c_str(), "%lu %lu %15s", &seed, &number, side) != 3) return;
    chance_ = Chance(seed, number);
    do plan(std::string_view(side) == "source" ? std::span<const Choice>(source_says) : destination_says);
    while (chance_.one_in(4) && lies_.size() < 4);
  }

  void take_orders(const std::string& text) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      const auto space = line.find(" ."), equals = line.find(" = ");
      if (space >= equals || equals == std::string::npos) {
        note("not understood: " + line);
        continue;
      }
      orders_.push_back({line.substr(0, space), line.substr(space + 1, equals - space - 1), line.substr(equals + 3)});
    }
  }

  std::optional<Bytes> obeyed(int what, std::size_t head, bool big_endian, Bytes frame) {
    const auto name = name_of(what);
    if (frame.size() < head || std::ranges::find(orders_, name, &Order::message) == orders_.end()) return {};
    auto value = parse(BytesView(frame).subspan(head), false);
    bool any = false;
    for (const auto& order : orders_) {
      if (!value || order.message != name || !obey(*value, order)) continue;
      note(fmt::format("{} {} = {}", order.message, order.path, order.value));
      any = true;
    }
    if (!any) return {};
    const Bytes payload = bytes_of(*value);
    frame.resize(head);
    frame.insert(frame.end(), payload.begin(), payload.end());
    set_length(frame, static_cast<std::uint32_t>(payload.size()), big_endian);
    return frame;
  }

  void plan(std::span<const Choice> choices) {
    int all = 0;
    for (const auto& choice : choices) all += choice.weight;
    int left = static_cast<int>(chance_.below(static_cast<std::size_t>(all)));
    for (const auto& choice : choices) {
      if ((left -= choice.weight) >= 0) continue;
      lies_.push_back(
          {choice.flow, choice.what, static_cast<int>(chance_.below(static_cast<std::size_t>(choice.most)))});
      return;
    }
  }

  /// Ends a connection on which both sides may be waiting for each other by now.
  static void wait_no_longer(int socket) {
    static constexpr std::chrono::seconds moment{2};
    std::thread([own = Fd(::fcntl(socket, F_DUPFD_CLOEXEC, 0))] {
      std::this_thread::sleep_for(moment);
      ::shutdown(own.get(), SHUT_RDWR);
    }).detach();
  }

  /// The other side waits now. Once in a while it has to find out by itself, where that doesn't take it ten minutes.
  void be_silent(int what, int socket) {
    const bool patient =
        what >= role || what == static_cast<int>(Type::done) || what == static_cast<int>(Type::drained);
    if (patient || !chance_.one_in(8)) wait_no_longer(socket);
  }

  std::string tell(Flow flow, int what, int socket, Bytes& frame) {
    switch (chance_.below(40)) {
      case 0:
      case 1: {
        const Bytes once = frame;
        frame.insert(frame.end(), once.begin(), once.end());
        return "twice";
      }
      case 2:
      case 3:
        // Behind the next one on this connection, if there is one.
        held_[socket] = std::move(frame);
        frame.clear();
        wait_no_longer(socket);
        return "later";
      case 4:
        frame.clear();
        be_silent(what, socket);
        return "not at all";
      case 5:
      case 6:
        frame.resize(chance_.below(frame.size()));
        ::shutdown(socket, SHUT_RD);
        return fmt::format("{} bytes, and the end", frame.size());
      default:
        break;
    }
    if (flow == Flow::records) return change_records(frame, chance_);
    const bool message = flow == Flow::control;
    const std::string done = change_frame(frame, message ? 5 : 4, !message, chance_);
    std::uint32_t length = 0;
    std::memcpy(&length, frame.data(), sizeof length);
    if (message && frame.size() < 5 + std::size_t{length}) be_silent(what, socket);
    return done;
  }

  std::mutex mutex_;
  std::string armed_;
  Chance chance_;
  std::vector<Lie> lies_;
  std::vector<Order> orders_;
  std::map<std::pair<Flow, int>, int> said_;
  std::map<int, Bytes> held_;  ///< by socket: what comes behind the next frame
};

}  // namespace

std::optional<Bytes> altered(Flow flow, int socket, std::span<const iovec> parts) {
  static Liar liar;
  return liar.frame(flow, socket, parts);
}

}  // namespace godwit::fault
