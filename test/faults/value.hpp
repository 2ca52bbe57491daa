#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.hpp"

namespace godwit::fault {

/// A MessagePack value that can be changed. A blob that holds a map or an array itself is looked into.
struct Value {
  enum class Kind : std::uint8_t { nil, boolean, natural, negative, real, text, blob, array, map } kind = Kind::nil;
  std::uint64_t number = 0;
  double real = 0;
  Bytes bytes;
  std::vector<Value> parts;  ///< a map's: key, value, key, value …; a blob's: what it holds
  std::string name;          ///< where it stands, for people
};

/// What these bytes hold, all of them; none: they aren't MessagePack. `containers_only`: a map or an array, or nothing.
std::optional<Value> parse(BytesView bytes, bool containers_only);
Bytes bytes_of(const Value&);
/// Of a map.
bool has_key(const Value&, std::string_view key);

}  // namespace godwit::fault
