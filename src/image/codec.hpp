#pragma once

#include <algorithm>
#include <msgpack.hpp>

#include "base/bytes.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"

namespace godwit::image {

/// What the arrays of the message that this thread is unpacking may still take, in bytes of what they become. An
/// element can be a single byte in the message and a struct of a thousand here.
inline thread_local std::size_t room_for_elements = 0;

}  // namespace godwit::image

/// A pod's pid travels as a plain integer.
namespace msgpack {
MSGPACK_API_VERSION_NAMESPACE(MSGPACK_DEFAULT_API_NS) {
  namespace adaptor {
  template <>
  struct convert<godwit::PodPid> {
    const msgpack::object& operator()(const msgpack::object& object, godwit::PodPid& pid) const {
      pid.value = object.as<pid_t>();
      return object;
    }
  };
  template <>
  struct pack<godwit::PodPid> {
    template <typename Stream>
    packer<Stream>& operator()(packer<Stream>& packer, const godwit::PodPid& pid) const {
      return packer.pack(pid.value);
    }
  };
  /// Instead of the library's own: nothing is made that the message has no room for.
  template <typename T>
  requires(sizeof(T) > 1) struct convert<std::vector<T, std::allocator<T>>> {
    const msgpack::object& operator()(const msgpack::object& object, std::vector<T>& vector) const {
      if (object.type != msgpack::type::ARRAY) throw msgpack::type_error();
      const std::size_t count = object.via.array.size;
      auto& room = godwit::image::room_for_elements;
      if (count > room / sizeof(T)) throw msgpack::array_size_overflow("the arrays are over the limit");
      room -= count * sizeof(T);
      vector.clear();
      vector.resize(count);
      for (std::size_t i = 0; i < count; ++i) object.via.array.ptr[i].convert(vector[i]);
      return object;
    }
  };
  }  // namespace adaptor
}
}  // namespace msgpack

/// State as data: a struct with MSGPACK_DEFINE_MAP(field, …) becomes a MessagePack map with named fields, which any
/// language can read. Everything that comes from outside is parsed within `Limits`.
namespace godwit::image {

/// How large any part of an incoming message may be.
struct Limits {
  std::size_t bytes = 256 * MiB;        ///< the whole message
  std::size_t items = 4 * 1024 * 1024;  ///< elements of one array or map
  std::size_t blob = 256 * MiB;         ///< one string or binary
  std::size_t depth = 32;
  std::size_t all_items = 16 * 1024 * 1024;  ///< of all its arrays and maps
};

/// Counts what a message would become before any of it is made.
struct ItemCount : msgpack::null_visitor {
  std::size_t left;
  explicit ItemCount(std::size_t most) : left(most) {}
  bool take(std::size_t count) {
    if (count > left) throw msgpack::array_size_overflow("more elements than the limit");
    left -= count;
    return true;
  }
  bool start_array(std::uint32_t count) { return take(count); }
  bool start_map(std::uint32_t count) { return take(2 * std::size_t{count}); }
};

template <typename T>
[[nodiscard]] Bytes pack(const T& value) {
  msgpack::sbuffer buffer;
  msgpack::pack(buffer, value);
  const auto* begin = reinterpret_cast<const std::uint8_t*>(buffer.data());
  return Bytes(begin, begin + buffer.size());
}

/// `invalid` when the bytes are not one well-formed T within the limits.
template <typename T>
[[nodiscard]] Result<T> unpack(BytesView bytes, const Limits& limits = {}) {
  if (bytes.size() > limits.bytes)
    return fail(ErrorKind::invalid, "message of {} bytes is over the limit", bytes.size());
  try {
    const auto* data = reinterpret_cast<const char*>(bytes.data());
    std::size_t used = 0;
    // What is smaller can't have more.
    if (bytes.size() > limits.all_items) {
      ItemCount count(limits.all_items);
      msgpack::parse(data, bytes.size(), used, count);
      used = 0;
    }
    // An element is a byte at least: no array is made for more than can follow.
    const std::size_t items = std::min(limits.items, bytes.size());
    const msgpack::object_handle handle =
        msgpack::unpack(data, bytes.size(), used, nullptr, nullptr,
                        msgpack::unpack_limit(items, items, limits.blob, limits.blob, limits.blob, limits.depth));
    if (used != bytes.size())
      return fail(ErrorKind::invalid, "{} bytes left over after a message", bytes.size() - used);
    room_for_elements = 64 * MiB + 4 * bytes.size();
    return handle.get().as<T>();
  } catch (const msgpack::type_error&) {
    return fail(ErrorKind::invalid, "malformed message: a value of another type than expected");
  } catch (const std::exception& problem) {
    return fail(ErrorKind::invalid, "malformed message: {}", problem.what());
  }
}

}  // namespace godwit::image
