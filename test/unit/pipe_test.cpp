#include "objects/pipe.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include "object_fixture.hpp"

namespace godwit::objects::testing {
namespace {

struct Ends {
  Fd reader, writer;
};
Ends make_pipe(int flags = 0) {
  int ends[2];
  EXPECT_EQ(::pipe2(ends, flags | O_CLOEXEC), 0);
  return {Fd{ends[0]}, Fd{ends[1]}};
}
std::string read_some(int fd, std::size_t size = 4096) {
  std::string text(size, '\0');
  const ssize_t got = ::read(fd, text.data(), size);
  text.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
  return text;
}
short polled(int fd, short events) {
  struct pollfd state {
    .fd = fd, .events = events, .revents = 0
  };
  EXPECT_GE(::poll(&state, 1, 0), 0);
  return state.revents;
}

TEST(Pipe, ContentCapacityAndFlagsMoveAndTheOriginalKeepsItsContent) {
  auto ends = make_pipe();
  ASSERT_GT(::fcntl(ends.writer.get(), F_SETPIPE_SZ, 128 * 1024), 0);
  std::string large(100'000, 'x');
  for (std::size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>('a' + i % 23);
  ASSERT_EQ(::write(ends.writer.get(), large.data(), large.size()), static_cast<ssize_t>(large.size()));
  ASSERT_EQ(::fcntl(ends.reader.get(), F_SETFL, O_NONBLOCK), 0);
  TestSource source;
  source.add(ends.writer.get());
  source.add(ends.reader.get());
  const auto images = capture_all(source);
  TestDestination destination;
  build_all(images, destination);
  const int writer = destination.built(0), reader = destination.built(1);
  EXPECT_EQ(::fcntl(reader, F_GETPIPE_SZ), 128 * 1024);
  EXPECT_EQ(::fcntl(reader, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  EXPECT_EQ(::fcntl(writer, F_GETFL) & O_NONBLOCK, 0);
  std::string got;
  for (std::string some; !(some = read_some(reader, 65536)).empty();) got += some;
  EXPECT_EQ(got, large);
  EXPECT_EQ(::write(writer, "after", 5), 5);
  EXPECT_EQ(read_some(reader), "after");
  int waiting = 0;
  ASSERT_EQ(::ioctl(ends.reader.get(), FIONREAD, &waiting), 0);
  EXPECT_EQ(waiting, 100'000);
}

TEST(Pipe, PacketsStayPackets) {
  auto ends = make_pipe(O_DIRECT | O_NONBLOCK);
  ASSERT_EQ(::write(ends.writer.get(), "one", 3), 3);
  ASSERT_EQ(::write(ends.writer.get(), "second", 6), 6);
  TestSource source;
  source.add(ends.reader.get());
  source.add(ends.writer.get());
  TestDestination destination;
  build_all(capture_all(source), destination);
  EXPECT_EQ(read_some(destination.built(0)), "one");
  EXPECT_EQ(read_some(destination.built(0)), "second");
  EXPECT_EQ(::fcntl(destination.built(1), F_GETFL) & O_DIRECT, O_DIRECT);
}

TEST(Pipe, ClosedEndStaysClosed) {
  auto ends = make_pipe();
  ASSERT_EQ(::write(ends.writer.get(), "rest", 4), 4);
  ends.writer.reset();
  TestSource source;
  source.add(ends.reader.get());
  TestDestination destination;
  build_all(capture_all(source), destination);
  EXPECT_EQ(read_some(destination.built(0)), "rest");
  EXPECT_EQ(polled(destination.built(0), POLLIN) & POLLHUP, POLLHUP);
}

TEST(Pipe, NoReaderLeftMeansErrorAtTheWriter) {
  auto ends = make_pipe();
  ends.reader.reset();
  TestSource source;
  source.add(ends.writer.get());
  TestDestination destination;
  build_all(capture_all(source), destination);
  EXPECT_EQ(polled(destination.built(0), POLLOUT) & POLLERR, POLLERR);
}

TEST(Pipe, TwoDescriptionsOfOneEndAreIndependent) {
  auto ends = make_pipe();
  const Fd second = reopen(ends.reader.get(), O_RDONLY | O_NONBLOCK).value();
  TestSource source;
  source.add(ends.reader.get());
  source.add(second.get());
  source.add(ends.writer.get());
  TestDestination destination;
  build_all(capture_all(source), destination);
  EXPECT_EQ(::fcntl(destination.built(0), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_EQ(::fcntl(destination.built(1), F_GETFL) & O_NONBLOCK, O_NONBLOCK);
  EXPECT_EQ(::write(destination.built(2), "x", 1), 1);
  EXPECT_EQ(read_some(destination.built(1)), "x");
}

TEST(Pipe, EndOutsideThePodIsRefused) {
  auto ends = make_pipe();
  TestSource source;
  source.add(ends.reader.get());
  const auto refused = pipe_kind.preflight(source.all[0], source);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::refused);
}

TEST(Pipe, ContentBeyondTheCapacityIsAnErrorAndNoHang) {
  auto ends = make_pipe();
  PipeContent content;
  content.chunks.emplace_back(100'000, 'x');
  EXPECT_FALSE(fill_pipe(ends.writer.get(), content));
}

TEST(Pipe, NamedFifoKeepsItsContent) {
  const std::string path = "/tmp/godwit-fifo-" + std::to_string(::getpid());
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  Fd reader{::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)};
  Fd writer{::open(path.c_str(), O_WRONLY | O_CLOEXEC)};
  ASSERT_EQ(::write(writer.get(), "named", 5), 5);
  TestSource source;
  source.add(reader.get());
  source.add(writer.get());
  const auto images = capture_all(source);
  // The same file would be the same pipe: another one stands under the name at the destination.
  ASSERT_EQ(::unlink(path.c_str()), 0);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  TestDestination destination;
  build_all(images, destination);
  EXPECT_EQ(read_some(destination.built(0)), "named");
  destination.made.erase(1);
  EXPECT_EQ(polled(destination.built(0), POLLIN) & POLLHUP, POLLHUP);
  ::unlink(path.c_str());
}

TEST(Eventfd, CountAndModeMove) {
  const Fd fd{::eventfd(5, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC)};
  TestSource source;
  source.add(fd.get());
  TestDestination destination;
  build_all(capture_all(source), destination);
  std::uint64_t value = 0;
  for (int i = 0; i < 5; ++i) {
    ASSERT_EQ(::read(destination.built(0), &value, 8), 8);
    EXPECT_EQ(value, 1u);
  }
  EXPECT_EQ(::read(destination.built(0), &value, 8), -1);
  EXPECT_EQ(errno, EAGAIN);
}

TEST(Eventfd, LargestCount) {
  const Fd fd{::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
  std::uint64_t value = ~0ull - 1;
  ASSERT_EQ(::write(fd.get(), &value, 8), 8);
  TestSource source;
  source.add(fd.get());
  TestDestination destination;
  build_all(capture_all(source), destination);
  ASSERT_EQ(::read(destination.built(0), &value, 8), 8);
  EXPECT_EQ(value, ~0ull - 1);
}

}  // namespace
}  // namespace godwit::objects::testing
