#include "node/follow.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <deque>
#include <thread>

namespace godwit::node {
namespace {

/// A stream that says what it was given, and breaks off.
class Said final : public FrameSource {
 public:
  Said() {
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    ours_ = Stream(Fd(fds[0]));
    theirs_ = Stream(Fd(fds[1]));
  }
  Stream& stream() override { return theirs_; }
  Said& output(const std::string& text) { return say(pod::FrameKind::output, text); }
  Said& place(std::uint64_t offset) { return say(frame::position, encode_position({"1", offset})); }
  Said& exit() {
    EXPECT_TRUE(write_frame(ours_, pod::FrameKind::exit, pod::encode_status(0)));
    return *this;
  }
  /// Says more on a thread of its own.
  Stream speaker() { return Stream(Fd(fcntl(ours_.fd(), F_DUPFD_CLOEXEC, 0))); }
  std::unique_ptr<FrameSource> broken_off() {
    ours_.reset();
    return std::make_unique<Said>(std::move(*this));
  }

 private:
  Said& say(pod::FrameKind kind, const std::string& text) {
    EXPECT_TRUE(write_frame(ours_, kind, text));
    return *this;
  }

  Stream ours_, theirs_;
};

class FollowTest : public testing::Test {
 protected:
  void SetUp() override {
    int fds[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    client_ = Stream(Fd(fds[0]));
    served_ = Stream(Fd(fds[1]));
  }
  /// Follows `streams` one after the other.
  void run(const StreamOptions& options, std::deque<std::unique_ptr<FrameSource>> streams) {
    auto first = std::move(streams.front());
    streams.pop_front();
    const auto open = [&](const StreamOptions& from) -> Result<std::unique_ptr<FrameSource>> {
      opened_.push_back(encode_position(from.position));
      if (streams.empty()) return fail(ErrorKind::not_found, "there is no such pod");
      auto next = std::move(streams.front());
      streams.pop_front();
      return next;
    };
    follow(served_, options, std::move(first), open, [&](const pod::Frame& frame) {
      last_ = frame.kind;
      if (last_ != pod::FrameKind::exit) heard_.emplace_back(frame.bytes.begin(), frame.bytes.end());
      return true;
    });
  }
  static std::deque<std::unique_ptr<FrameSource>> both(Said& one, Said& two) {
    std::deque<std::unique_ptr<FrameSource>> streams;
    streams.push_back(one.broken_off());
    streams.push_back(two.broken_off());
    return streams;
  }

  Stream client_, served_;
  std::vector<std::string> opened_, heard_;
  pod::FrameKind last_ = pod::FrameKind::input;
};

using Texts = std::vector<std::string>;

TEST_F(FollowTest, WhatBreaksOffBeforeItsPlaceIsSaidIsThereOnce) {
  Said one, two;
  one.output("one").place(3).output("two");
  two.output("two").place(6).output("three").place(11).exit();
  run({}, both(one, two));
  EXPECT_EQ(opened_, Texts{"1 3"});
  EXPECT_EQ(heard_, (Texts{"one", "two", "three"}));
  EXPECT_EQ(last_, pod::FrameKind::exit);
}

TEST_F(FollowTest, APlaceComesAfterWhatItStandsFor) {
  Said one, two;
  one.output("one").output("two").place(6);
  two.place(6).exit();
  run({.places = true}, both(one, two));
  EXPECT_EQ(heard_, (Texts{"one", "two", "1 6", "1 6"}));
}

TEST_F(FollowTest, AServerThatNeverSaysWhereItIsFillsNoMemory) {
  Said one;
  const std::string much(pod::frame_limit, 'x');
  // Its end waits until all has been read: the socket holds less than that.
  std::thread talking([&, end = one.speaker()]() mutable {
    for (int i = 0; i < 40; i++) EXPECT_TRUE(write_frame(end, pod::FrameKind::output, much));
    EXPECT_TRUE(write_frame(end, pod::FrameKind::exit, pod::encode_status(0)));
  });
  std::deque<std::unique_ptr<FrameSource>> streams;
  streams.push_back(one.broken_off());
  run({}, std::move(streams));
  talking.join();
  EXPECT_GE(heard_.size(), 16u);
  EXPECT_EQ(last_, pod::FrameKind::exit);
}

}  // namespace
}  // namespace godwit::node
