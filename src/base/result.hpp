#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <expected>
#include <string>
#include <utility>

namespace godwit {

/// What an error means to whoever has to act on it. The command's exit code follows from it.
enum class ErrorKind {
  failed,       ///< the environment said no: a system call, a full disk
  invalid,      ///< what came from outside is malformed or out of its limits
  not_found,    ///< no such pod, node or file
  refused,      ///< a rule or a limit of godwit says no; nothing was changed
  gone,         ///< the process died while we worked on it; expected, not a bug
  unreachable,  ///< the peer doesn't answer, or the link broke
  timeout,
  busy,       ///< try again later: something else has the object
  cancelled,  ///< the user asked for it
};

/// Why something could not be done: what was tried, on what, what the kernel said, and what to do next.
struct Error {
  ErrorKind kind = ErrorKind::failed;
  std::string what;  ///< "open /proc/12/maps", without the errno text
  int code = 0;      ///< errno, 0 when the kernel had no part in it
  std::string hint;  ///< what the user can do; may be empty

  /// One line for people: what, why, and the next step.
  [[nodiscard]] std::string message() const {
    std::string text = what;
    if (code != 0) text += fmt::format(": {}", std::strerror(code));
    if (!hint.empty()) text += fmt::format(" ({})", hint);
    return text;
  }

  /// The same error seen from one level up: "migrate redis: open …".
  [[nodiscard]] Error within(std::string_view context) && {
    what = fmt::format("{}: {}", context, what);
    return std::move(*this);
  }
};

template <typename T>
using Result = std::expected<T, Error>;

/// An error of ours, without errno.
template <typename... Args>
[[nodiscard]] std::unexpected<Error> fail(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  return std::unexpected(Error{kind, fmt::format(format, std::forward<Args>(args)...), 0, {}});
}

/// The error that errno holds now. ESRCH becomes `gone`, ENOENT stays `failed`: only the caller knows what was missing.
template <typename... Args>
[[nodiscard]] std::unexpected<Error> fail_errno(fmt::format_string<Args...> format, Args&&... args) {
  const int code = errno;
  return std::unexpected(Error{
      code == ESRCH ? ErrorKind::gone : ErrorKind::failed, fmt::format(format, std::forward<Args>(args)...), code, {}});
}

}  // namespace godwit

#define GODWIT_CONCAT_(a, b) a##b
#define GODWIT_CONCAT(a, b) GODWIT_CONCAT_(a, b)

/// The value of a Result, or a return of its error from the enclosing function.
/// Not for coroutines: g++ 12 crashes on a statement expression there.
#define TRY(expression)                                                         \
  ({                                                                            \
    auto&& try_result_ = (expression);                                          \
    if (!try_result_) [[unlikely]]                                              \
      return std::unexpected(std::move(try_result_).error());                   \
    ::godwit::detail::unwrap(std::forward<decltype(try_result_)>(try_result_)); \
  })

namespace godwit::detail {
template <typename T>
T unwrap(std::expected<T, Error>&& result) {
  return std::move(*result);
}
template <typename T>
T unwrap(std::expected<T, Error>& result) {
  return std::move(*result);
}
inline void unwrap(std::expected<void, Error>&&) {}
inline void unwrap(std::expected<void, Error>&) {}
}  // namespace godwit::detail
