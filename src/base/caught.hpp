#pragma once

#include <functional>
#include <new>
#include <string_view>
#include <type_traits>

#include "base/result.hpp"

/// An exception that leaves a thread's function ends the daemon, and one that crosses a phase of a migration leaves a
/// process half done. There are few: no memory, no more threads, a library's opinion of a peer's words.
namespace godwit {

/// What `work` returns, a Result; `failed` when it throws instead.
template <typename Work>
std::invoke_result_t<Work> caught(Work&& work) {
  try {
    return std::forward<Work>(work)();
  } catch (const std::bad_alloc&) {
    return fail(ErrorKind::failed, "there is no memory for it");
  } catch (const std::exception& problem) {
    return fail(ErrorKind::failed, "{}", problem.what());
  }
}

/// For a thread that lasts as long as its daemon: runs `work` until it returns. Thrown out of it, it begins anew after
/// a second, and the log says so.
void keep_going(std::string_view what, const std::function<void()>& work);

}  // namespace godwit
