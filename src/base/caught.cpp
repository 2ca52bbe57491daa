#include "base/caught.hpp"

#include <chrono>
#include <thread>

#include "base/log.hpp"

namespace godwit {

void keep_going(std::string_view what, const std::function<void()>& work) {
  for (;;) {
    const auto done = caught([&]() -> Result<void> {
      work();
      return {};
    });
    if (done) return;
    log::error("{}: {}; it begins anew", what, done.error().message());
    std::this_thread::sleep_for(std::chrono::seconds(1));
  }
}

}  // namespace godwit
