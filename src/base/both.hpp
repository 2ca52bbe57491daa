#pragma once

#include <system_error>
#include <thread>

#include "base/caught.hpp"
#include "base/result.hpp"

namespace godwit {

/// Does both at once, the first on a thread of its own, with the caller's scheduling class; one after the other where
/// no thread can be had. The first error is the answer.
template <typename First, typename Second>
Result<void> both(First first, Second second) {
  Result<void> outcome;
  std::jthread helper;
  try {
    helper = std::jthread([&] { outcome = caught(first); });
  } catch (const std::system_error&) {
    outcome = first();
  }
  auto own = second();
  if (helper.joinable()) helper.join();
  return outcome ? std::move(own) : std::move(outcome);
}

}  // namespace godwit
