#include "migrate/page_stream.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>

namespace godwit::migrate {
namespace {

TEST(PageReceiver, WaitsForNoSourceThatHasLeft) {
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  const Fd theirs(fds[1]);  // open: nothing says here that nobody sends any more
  std::vector<Stream> connections;
  connections.emplace_back(Fd(fds[0]));
  PageReceiver pages(std::move(connections),
                     [](SpaceId, std::uint64_t, const void*, std::size_t) -> Result<void> { return {}; });
  const auto waited = pages.wait(1, [] { return true; });
  ASSERT_FALSE(waited);
  EXPECT_EQ(waited.error().message(), "the source has gone while its pages were waited for");
}

}  // namespace
}  // namespace godwit::migrate
