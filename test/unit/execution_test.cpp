#include "pod/execution.hpp"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <thread>

#include "pod_fixture.hpp"

namespace godwit::pod {
namespace {

/// Programs beside the first, which does nothing.
class ExecutionTest : public PodTest {
 protected:
  std::unique_ptr<Pod> idle() { return run(create(shell("exec sleep 1000"))); }
};

/// Reads an execution's streams.
struct Reader {
  Fd ours;
  Bytes received;
  std::string text;
  std::uint64_t place = 0;  ///< bytes of frames so far
  std::optional<int> status;

  static Reader of(Pod& pod, const std::string& execution, std::uint64_t from = 0) {
    Reader reader;
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    reader.ours = Fd(ends[0]);
    reader.place = from;
    const Fd theirs(ends[1]);
    const auto attached = pod.attach(execution, from, theirs.get());
    EXPECT_TRUE(attached) << attached.error().message();
    return reader;
  }
  void say_delivered() const {
    Bytes frame;
    append_frame(frame, FrameKind::delivered, encode_delivered(place));
    EXPECT_EQ(write(ours.get(), frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
  }
  /// False at the end of the connection.
  bool receive() {
    pollfd watched{ours.get(), POLLIN, 0};
    EXPECT_EQ(poll(&watched, 1, limit_ms), 1) << "nothing came; so far: " << text;
    std::uint8_t part[4096];
    const ssize_t got = watched.revents != 0 ? read(ours.get(), part, sizeof part) : 0;
    if (got <= 0) return false;
    received.insert(received.end(), part, part + got);
    Frame frame;
    while (*take_frame(received, frame)) {
      if (frame.kind == FrameKind::exit) {
        status = *decode_status(frame);
        continue;
      }
      place += frame_header + frame.bytes.size();
      text.append(frame.bytes.begin(), frame.bytes.end());
    }
    return true;
  }
  void expect(const std::string& wanted) {
    while (text.find(wanted) == std::string::npos) ASSERT_TRUE(receive()) << text;
  }
  int end() {
    while (!status && receive()) {
    }
    return status.value_or(-1);
  }
};

Program script(const std::string& text) {
  Program program;
  program.arguments = {"sh", "-c", text};
  return program;
}

TEST_F(ExecutionTest, StartsProgramsBesideTheFirst) {
  auto pod = idle();
  ASSERT_TRUE(pod);
  auto program = script("echo $VALUE in $PWD; exit 9");
  program.environment = {"VALUE=beside"};
  program.directory = "/usr";
  const auto started = pod->execute("1f", program);
  ASSERT_TRUE(started) << started.error().message();
  auto reader = Reader::of(*pod, "1f");
  EXPECT_EQ(WEXITSTATUS(reader.end()), 9);
  EXPECT_EQ(reader.text, "beside in /usr\n");
  EXPECT_EQ(pod->execution("1f")->process, started->pid.value);
  EXPECT_FALSE(pod->execute("1f", program)) << "the name is taken";
  ASSERT_TRUE(pod->close("1f"));
  EXPECT_EQ(pod->execution("1f").error().kind, ErrorKind::not_found);

  // With a terminal of its own.
  program.arguments = {"tty"};
  program.terminal = true;
  ASSERT_TRUE(pod->execute("20", program));
  auto terminal = Reader::of(*pod, "20");
  EXPECT_EQ(terminal.end(), 0);
  EXPECT_EQ(terminal.text, "/dev/pts/0\r\n");

  program.arguments = {"/no/such/program"};
  EXPECT_EQ(pod->execute("21", program).error().code, ENOENT);
  EXPECT_EQ(pod->executions()->size(), 1u) << "of one that never began nothing is left";
  EXPECT_FALSE(pod->execute("../x", program));

  // They end with the pod, and their readers hear it.
  ASSERT_TRUE(pod->execute("22", script("sleep 1000")));
  auto last = Reader::of(*pod, "22");
  EXPECT_TRUE(pod->signal(SIGTERM));
  EXPECT_EQ(await_end(*pod), SIGTERM);
  EXPECT_EQ(last.end(), SIGKILL);
  EXPECT_TRUE(pod->destroy());
}

TEST_F(ExecutionTest, KeepsTheOutputOfAnExecutionUntilItIsDelivered) {
  auto pod = idle();
  ASSERT_TRUE(pod);
  auto program = script("echo one; read line; echo $line; cat");
  program.input = true;
  ASSERT_TRUE(pod->execute("a", program));
  auto reader = Reader::of(*pod, "a");
  reader.expect("one\n");
  // Nobody has said that it is there: the next reader gets it again.
  reader = Reader::of(*pod, "a");
  reader.expect("one\n");
  reader.say_delivered();
  await([&] { return pod->execution("a")->begin == reader.place; });
  {
    const auto writer = pod->withdraw("a/stdin-writer");
    ASSERT_TRUE(writer);
    type(*pod, *writer, "two\n");
  }
  auto next = Reader::of(*pod, "a", reader.place);
  next.expect("two\n");
  EXPECT_EQ(next.text, "two\n");
  ASSERT_TRUE(pod->forget("a/stdin-writer"));
  EXPECT_EQ(next.end(), 0);
  const Fd null(open("/dev/null", O_RDWR | O_CLOEXEC));
  EXPECT_FALSE(pod->attach("a", 0, null.get())) << "that has been forgotten";
  EXPECT_TRUE(pod->destroy());
}

TEST_F(ExecutionTest, HoldsUpAnExecutionThatNobodyReads) {
  auto pod = idle();
  ASSERT_TRUE(pod);
  // Four MiB, and a sign that all of it has been taken.
  ASSERT_TRUE(pod->execute("a", script("head -c 4194304 /dev/zero; touch /written")));
  await([&] { return pod->execution("a")->output.size() >= 256 * KiB; });
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LT(pod->execution("a")->output.size(), 512 * KiB);
  EXPECT_FALSE(std::filesystem::exists(pod->upper() + "/written"));
  auto reader = Reader::of(*pod, "a");
  while (!reader.status && reader.receive()) reader.say_delivered();
  EXPECT_EQ(reader.status, 0);
  EXPECT_EQ(reader.text, std::string(4194304, '\0'));
  EXPECT_TRUE(std::filesystem::exists(pod->upper() + "/written"));
  EXPECT_TRUE(pod->destroy());
}

TEST_F(ExecutionTest, AnExecutionHangsUpWhenItIsClosed) {
  auto pod = idle();
  ASSERT_TRUE(pod);
  auto program = script("trap 'touch /hung-up; exit' HUP; echo ready; while :; do sleep 0.01; done");
  program.terminal = true;
  ASSERT_TRUE(pod->execute("a", program));
  ASSERT_TRUE(pod->execute("b", script("while echo x; do sleep 0.01; done")));
  auto reader = Reader::of(*pod, "a");
  reader.expect("ready");
  ASSERT_TRUE(pod->close("a"));
  ASSERT_TRUE(pod->close("b"));
  await([&] { return pod->workload().processes()->size() == 1; });
  EXPECT_TRUE(std::filesystem::exists(pod->upper() + "/hung-up"));
  EXPECT_TRUE(pod->executions()->empty());
  EXPECT_TRUE(pod->destroy());
}

TEST_F(ExecutionTest, AnExecutionIsRestored) {
  auto pod = idle();
  ASSERT_TRUE(pod);
  Execution execution{.id = "a", .process = 4711, .input = true};
  ASSERT_TRUE(pod->restore(execution));
  EXPECT_EQ(pod->streams("a")->size(), 3u);
  EXPECT_EQ(pod->streams("a")->count("a/stdin"), 1u);
  execution.begin = 100;
  append_frame(execution.output, FrameKind::output, Bytes{'h', 'i'});
  execution.input_ended = execution.ended = true;
  execution.status = SIGKILL;
  ASSERT_TRUE(pod->restore(execution));
  const auto found = pod->execution("a");
  ASSERT_TRUE(found);
  EXPECT_TRUE(found->input_ended);
  EXPECT_EQ(found->output, execution.output);
  auto reader = Reader::of(*pod, "a", 100);
  EXPECT_EQ(reader.end(), SIGKILL);
  EXPECT_EQ(reader.text, "hi");
  EXPECT_TRUE(pod->destroy());
}

}  // namespace
}  // namespace godwit::pod
