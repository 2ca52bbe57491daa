#include "value.hpp"

#include <algorithm>

#include "image/codec.hpp"

namespace godwit::fault {
namespace {

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

}  // namespace

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

Bytes bytes_of(const Value& value) {
  msgpack::sbuffer buffer;
  msgpack::packer<msgpack::sbuffer> packer(buffer);
  write(value, packer);
  return {buffer.data(), buffer.data() + buffer.size()};
}

bool has_key(const Value& value, std::string_view key) {
  if (value.kind != Value::Kind::map) return false;
  for (std::size_t i = 0; i < value.parts.size(); i += 2)
    if (std::ranges::equal(value.parts[i].bytes, key)) return true;
  return false;
}

}  // namespace godwit::fault
