#include "order.hpp"

#include <algorithm>
#include <span>
#include <string_view>
#include <vector>

namespace godwit::fault {
namespace {

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

}  // namespace

bool is_number(std::string_view text) {
  return !text.empty() && text.size() < 20 &&
         std::ranges::all_of(text, [](char one) { return one >= '0' && one <= '9'; });
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

}  // namespace godwit::fault
