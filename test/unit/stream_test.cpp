#include "node/stream.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <filesystem>
#include <thread>

namespace godwit::node {
namespace {

using namespace std::chrono_literals;

Bytes bytes_of(const std::string& text) {
  return Bytes(text.begin(), text.end());
}
std::string text_of(const Bytes& bytes) {
  return std::string(bytes.begin(), bytes.end());
}

/// A pod's log without a pod, and a stream of it.
class StreamTest : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/godwit-stream-XXXXXX";
    directory_ = mkdtemp(pattern);
    pod::Spec spec;
    spec.name = "web";
    pod_ = std::make_unique<LocalPod>(spec, directory_);
    std::filesystem::create_directories(pod_->log_directory);
    writer_ = std::make_unique<pod::LogWriter>(Fd(open(pod_->log_directory.c_str(), O_DIRECTORY | O_CLOEXEC)));
    int fds[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    client_ = Stream(Fd(fds[0]));
    server_ = Stream(Fd(fds[1]));
  }
  void TearDown() override {
    client_.reset();
    if (thread_.joinable()) thread_.join();
    std::filesystem::remove_all(directory_);
  }

  void serve(const StreamOptions& options) {
    thread_ = std::thread([this, options] {
      serve_stream(server_, *pod_, options);
      server_.reset();
    });
  }
  void write(const std::string& text, pod::FrameKind kind = pod::FrameKind::output) {
    writer_->append(kind, bytes_of(text));
  }

  std::string directory_;
  std::unique_ptr<LocalPod> pod_;
  std::unique_ptr<pod::LogWriter> writer_;
  Stream client_, server_;
  std::thread thread_;
};

TEST_F(StreamTest, WhatIsThereThenTheEnd) {
  write("one");
  write("two", pod::FrameKind::error);
  serve({.follow = false});
  FrameReader frames(client_);
  auto frame = frames.next();
  ASSERT_TRUE(frame);
  EXPECT_EQ(text_of(frame->bytes), "one");
  frame = frames.next();
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->kind, pod::FrameKind::error);
  EXPECT_EQ(text_of(frame->bytes), "two");
  frame = frames.next();
  ASSERT_TRUE(frame);
  EXPECT_EQ(frame->kind, frame::position);
  EXPECT_EQ(frames.next()->kind, frame::end);
  EXPECT_EQ(frames.next().error().kind, ErrorKind::gone);
}

TEST_F(StreamTest, GoesOnFromAPositionWithoutLossOrRepetition) {
  write("one");
  serve({});
  pod::LogPosition position;
  {
    FrameReader frames(client_);
    EXPECT_EQ(text_of(frames.next()->bytes), "one");
    const auto place = decode_position(text_of(frames.next()->bytes));
    ASSERT_TRUE(place) << place.error().message();
    position = *place;
    client_.reset();
    thread_.join();
  }
  write("two");
  writer_->end_segment();
  write("three");
  int fds[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  client_ = Stream(Fd(fds[0]));
  server_ = Stream(Fd(fds[1]));
  serve({.position = position});
  FrameReader frames(client_);
  std::string all;
  while (all.size() < 8) {
    const auto frame = frames.next();
    ASSERT_TRUE(frame);
    if (frame->kind == pod::FrameKind::output) all += text_of(frame->bytes);
  }
  EXPECT_EQ(all, "twothree");
}

TEST_F(StreamTest, FollowsWhatIsWrittenLater) {
  serve({});
  FrameReader frames(client_);
  for (int i = 0; i < 50; i++) {
    const std::string text = std::to_string(i);
    write(text);
    std::string got;
    while (got.empty()) {
      const auto frame = frames.next();
      ASSERT_TRUE(frame);
      if (frame->kind == pod::FrameKind::output) got = text_of(frame->bytes);
    }
    ASSERT_EQ(got, text);
  }
}

TEST_F(StreamTest, TailBeginsAtTheEnd) {
  write("old");
  serve({.tail = true});
  FrameReader frames(client_);
  const auto place = frames.next();
  ASSERT_TRUE(place);
  EXPECT_EQ(place->kind, frame::position);
  write("new");
  EXPECT_EQ(text_of(frames.next()->bytes), "new");
}

TEST_F(StreamTest, EndsWhenTheClientGoesAlthoughNothingIsWritten) {
  serve({});
  client_.reset();
  thread_.join();
}

TEST(Position, OnlyPlacesInLogsAreDecoded) {
  const pod::LogPosition position{"00000000000000000042", 17};
  const auto read = decode_position(encode_position(position));
  ASSERT_TRUE(read);
  EXPECT_EQ(read->segment, position.segment);
  EXPECT_EQ(read->offset, position.offset);
  EXPECT_TRUE(decode_position("")->segment.empty());
  for (const char* hostile : {"x", "../../etc/passwd 0", "a/b 1", "a -1", "a 1x", "a 99999999999999999999999", " "})
    EXPECT_FALSE(decode_position(hostile)) << hostile;
}

TEST(Status, RoundTripsInAnExitFrame) {
  for (const int status : {0, 1792, 9, 0x7f, 0xffff})
    EXPECT_EQ(*pod::decode_status({pod::FrameKind::exit, pod::encode_status(status)}), status);
  EXPECT_FALSE(pod::decode_status({pod::FrameKind::exit, {1, 2}}));
  EXPECT_EQ(exit_code(1792), 7);
  EXPECT_EQ(exit_code(9), 137);
}

}  // namespace
}  // namespace godwit::node
