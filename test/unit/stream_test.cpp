#include <pty.h>
#include <sys/ioctl.h>
#include <termios.h>

#include "object_fixture.hpp"

namespace godwit::objects::testing {
namespace {

struct Pty {
  Pty() {
    int ends[2];
    EXPECT_EQ(::openpty(&ends[0], &ends[1], nullptr, nullptr, nullptr), 0);
    master = Fd(ends[0]);
    slave = Fd(ends[1]);
  }
  Fd master, slave;
};

TEST(Stream, TerminalKeepsItsSettingsAndSize) {
  Pty here, there;
  struct termios settings {};
  ASSERT_EQ(::tcgetattr(here.slave.get(), &settings), 0);
  settings.c_lflag &= ~static_cast<tcflag_t>(ECHO | ICANON);
  settings.c_cc[VINTR] = 7;
  ASSERT_EQ(::tcsetattr(here.slave.get(), TCSANOW, &settings), 0);
  const struct winsize size { .ws_row = 50, .ws_col = 132, .ws_xpixel = 3, .ws_ypixel = 4 };
  ASSERT_EQ(::ioctl(here.slave.get(), TIOCSWINSZ, &size), 0);
  const Fd second = reopen(here.slave.get(), O_RDWR | O_NONBLOCK).value();
  TestSource source;
  source.add(here.slave.get());
  source.add(second.get());
  for (auto& each : source.all) each.stream = "terminal";
  TestDestination destination;
  destination.streams["terminal"] = there.slave.get();
  build_all(capture_all(source), destination);
  struct termios got {};
  struct winsize got_size {};
  ASSERT_EQ(::tcgetattr(there.slave.get(), &got), 0);
  ASSERT_EQ(::ioctl(there.slave.get(), TIOCGWINSZ, &got_size), 0);
  EXPECT_EQ(got.c_lflag, settings.c_lflag);
  EXPECT_EQ(got.c_cc[VINTR], 7);
  EXPECT_EQ(got_size.ws_row, 50);
  EXPECT_EQ(got_size.ws_col, 132);
  EXPECT_EQ(::write(destination.built(0), "x", 1), 1);
  char byte = 0;
  EXPECT_EQ(::read(there.master.get(), &byte, 1), 1);
  EXPECT_EQ(byte, 'x');
  EXPECT_EQ(::fcntl(destination.built(0), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_NE(::fcntl(destination.built(1), F_GETFL) & O_NONBLOCK, 0);
}

TEST(Stream, InputThatWasNotReadMovesAndOutputIsReopened) {
  int in[2], out[2], new_in[2], new_out[2];
  for (int* ends : {in, out, new_in, new_out}) ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  std::vector<Fd> owned;
  for (int* ends : {in, out, new_in, new_out})
    for (int i = 0; i < 2; ++i) owned.emplace_back(ends[i]);
  ASSERT_EQ(::write(in[1], "typed ahead", 11), 11);
  TestSource source;
  source.add(in[0]);
  source.add(out[1]);
  source.all[0].stream = "stdin";
  source.all[1].stream = "stdout";
  TestDestination destination;
  destination.streams = {{"stdin", new_in[0]}, {"stdout", new_out[1]}};
  build_all(capture_all(source), destination);
  char text[32] = {};
  EXPECT_EQ(::read(destination.built(0), text, sizeof text), 11);
  EXPECT_STREQ(text, "typed ahead");
  EXPECT_EQ(::write(destination.built(1), "out", 3), 3);
  EXPECT_EQ(::read(new_out[0], text, sizeof text), 3);
  EXPECT_EQ(::read(in[0], text, sizeof text), 11);  // nothing was consumed
}

TEST(Stream, NullAsInputIsADevice) {
  const Fd null{::open("/dev/null", O_RDONLY | O_CLOEXEC)};
  TestSource source;
  source.add(null.get());
  source.all[0].stream = "stdin";
  EXPECT_EQ(kind_of(source.all[0]), &device_kind);
}

}  // namespace
}  // namespace godwit::objects::testing
