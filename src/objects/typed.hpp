#pragma once

#include "objects/kind.hpp"

namespace godwit::objects {

/// A Kind from functions that speak of its own state struct, so that packing and unpacking stand in one place:
///
///   struct State { … MSGPACK_DEFINE_MAP(…) };
///   Result<State> capture(const Descriptor&, Source&);
///   Result<Fd> build(const State&, Destination&);
///   const Kind kind{.name = "eventfd", .matches = matches, .preflight = nothing_to_preflight,
///                   .capture = captures<State, capture>, .build = builds<State, build>,
///                   .attach = nothing_to_attach, .open = nothing_to_open};
template <typename State, Result<State> (*capture)(const Descriptor&, Source&)>
Result<Bytes> captures(const Descriptor& descriptor, Source& source) {
  return image::pack(TRY(capture(descriptor, source)));
}

template <typename State, Result<Fd> (*build)(const State&, Destination&)>
Result<Fd> builds(BytesView bytes, Destination& destination) {
  return build(TRY(image::unpack<State>(bytes)), destination);
}

template <typename State, Result<void> (*attach)(const State&, const Holder&, kernel::Batch&, Destination&)>
Result<void> attaches(BytesView bytes, const Holder& holder, kernel::Batch& batch, Destination& destination) {
  return attach(TRY(image::unpack<State>(bytes)), holder, batch, destination);
}

template <typename State, Result<void> (*open)(const State&, int, Destination&)>
Result<void> opens(BytesView bytes, int fd, Destination& destination) {
  return open(TRY(image::unpack<State>(bytes)), fd, destination);
}

}  // namespace godwit::objects
