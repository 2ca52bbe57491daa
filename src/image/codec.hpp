#pragma once

#include <msgpack.hpp>

#include "base/bytes.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"

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
    std::size_t used = 0;
    const msgpack::object_handle handle = msgpack::unpack(
        reinterpret_cast<const char*>(bytes.data()), bytes.size(), used, nullptr, nullptr,
        msgpack::unpack_limit(limits.items, limits.items, limits.blob, limits.blob, limits.blob, limits.depth));
    if (used != bytes.size())
      return fail(ErrorKind::invalid, "{} bytes left over after a message", bytes.size() - used);
    return handle.get().as<T>();
  } catch (const std::exception& problem) {
    return fail(ErrorKind::invalid, "malformed message: {}", problem.what());
  }
}

}  // namespace godwit::image
