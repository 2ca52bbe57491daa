#include <sys/un.h>

#include "kernel/kernel_state.hpp"
#include "objects/unix_state.hpp"
#include "socket_fixture.hpp"

namespace godwit::objects::socket_testing {
namespace {

struct Directory {
  Directory() {
    char pattern[] = "/tmp/godwit-unix-XXXXXX";
    path = ::mkdtemp(pattern);
  }
  ~Directory() { Net::run("rm -rf " + path); }
  std::string path;
};

struct UnixName {
  sockaddr_un address{};
  socklen_t length = 0;
  /// "@name" is abstract.
  explicit UnixName(const std::string& name) {
    address.sun_family = AF_UNIX;
    std::memcpy(address.sun_path, name.data(), name.size());
    if (name[0] == '@') address.sun_path[0] = 0;
    length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  }
  [[nodiscard]] const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&address); }
};

int made(int type) {
  return ::socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
}
int bound(int type, const std::string& name) {
  const int fd = made(type);
  const UnixName to(name);
  EXPECT_EQ(::bind(fd, to.get(), to.length), 0) << std::strerror(errno);
  return fd;
}
int listening(int type, const std::string& name, int backlog = 5) {
  const int fd = bound(type, name);
  EXPECT_EQ(::listen(fd, backlog), 0);
  return fd;
}
int connected(int type, const std::string& name) {
  const int fd = made(type);
  const UnixName to(name);
  EXPECT_EQ(::connect(fd, to.get(), to.length), 0) << std::strerror(errno);
  return fd;
}
std::pair<int, int> pair_of(int type) {
  int ends[2] = {-1, -1};
  EXPECT_EQ(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends), 0);
  return {ends[0], ends[1]};
}
std::string text_of(const sockaddr_un& address, socklen_t length) {
  if (length <= offsetof(sockaddr_un, sun_path)) return "";
  std::string text(address.sun_path, length - offsetof(sockaddr_un, sun_path));
  if (text[0] == 0) text[0] = '@';
  while (!text.empty() && text.back() == 0) text.pop_back();
  return text;
}
std::string name_of(int fd, bool peer = false) {
  sockaddr_un address{};
  socklen_t length = sizeof(address);
  auto* place = reinterpret_cast<sockaddr*>(&address);
  if ((peer ? ::getpeername(fd, place, &length) : ::getsockname(fd, place, &length)) != 0) return "-";
  return text_of(address, length);
}
/// "text from name", or "-" when nothing is there.
std::string next(int fd) {
  std::string text(100'000, '\0');
  sockaddr_un from{};
  socklen_t length = sizeof(from);
  const ssize_t count =
      ::recvfrom(fd, text.data(), text.size(), MSG_DONTWAIT, reinterpret_cast<sockaddr*>(&from), &length);
  if (count < 0) return "-";
  text.resize(static_cast<std::size_t>(count));
  return text + " from " + text_of(from, length);
}

TEST(Unix, PairsKeepBothQueues) {
  for (const int type : {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM}) {
    isolated([type] {
      SCOPED_TRACE(type);
      const auto [one, other] = pair_of(type);
      EXPECT_TRUE(write_all(one, "first"));
      EXPECT_TRUE(write_all(one, std::string(50'000, 'x')));
      EXPECT_TRUE(write_all(other, "back"));
      set_int(other, SOL_SOCKET, SO_PEEK_OFF, 2);
      const int buffer = get_int(one, SOL_SOCKET, SO_SNDBUF);
      expect_ok(move_all({one, other}));
      EXPECT_EQ(get_int(one, SOL_SOCKET, SO_SNDBUF), buffer);
      EXPECT_EQ(get_int(other, SOL_SOCKET, SO_PEEK_OFF), 2);
      if (type == SOCK_STREAM) {
        EXPECT_TRUE(read_all(other, 50'005) == "first" + std::string(50'000, 'x'));
      } else {
        EXPECT_EQ(read_some(other), "first");
        EXPECT_TRUE(read_some(other) == std::string(50'000, 'x'));
      }
      EXPECT_EQ(read_some(one), "back");
      EXPECT_TRUE(write_all(one, "on"));
      EXPECT_EQ(read_some(other), "on");
      if (type == SOCK_DGRAM) return;
      ::close(one);
      EXPECT_EQ(read_some(other), "");
    });
  }
}

TEST(Unix, ServersByPathAndByAbstractName) {
  for (const int type : {SOCK_STREAM, SOCK_SEQPACKET})
    for (const bool abstract : {false, true})
      for (const bool listener_first : {false, true}) {
        isolated([=] {
          SCOPED_TRACE(testing::Message() << type << ' ' << abstract << ' ' << listener_first);
          const Directory directory;
          const std::string name = abstract ? "@server" : directory.path + "/server";
          const int listener = listening(type, name, 3);
          if (!abstract) {
            EXPECT_EQ(::chmod(name.c_str(), 0640), 0);
          }
          const int client = connected(type, name);
          const int server = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
          EXPECT_TRUE(write_all(client, "asked"));
          std::vector<int> order{client, server};
          order.insert(listener_first ? order.begin() : order.end(), listener);
          expect_ok(move_all(order));
          EXPECT_EQ(name_of(server), name);
          EXPECT_EQ(name_of(client, true), name);
          EXPECT_EQ(name_of(client), "");
          EXPECT_EQ(read_some(server), "asked");
          EXPECT_TRUE(write_all(server, "answered"));
          EXPECT_EQ(read_some(client), "answered");
          if (!abstract) {
            struct stat status {};
            EXPECT_EQ(::stat(name.c_str(), &status), 0);
            EXPECT_EQ(status.st_mode & 07777, 0640u);
            EXPECT_NE(::access((name + ".aside").c_str(), F_OK), 0);
          }
          const int second = connected(type, name);
          EXPECT_GE(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC), 0);
          ::close(second);
        });
      }
}

TEST(Unix, ServerSocketWhoseListenerHasGone) {
  isolated([] {
    const Directory directory;
    const std::string name = directory.path + "/server";
    const int listener = listening(SOCK_STREAM, name);
    const int client = connected(SOCK_STREAM, name);
    const int server = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    ::close(listener);
    ASSERT_EQ(::unlink(name.c_str()), 0);
    expect_ok(move_all({server, client}));
    EXPECT_EQ(name_of(server), name);
    EXPECT_EQ(name_of(client, true), name);
    EXPECT_NE(::access(name.c_str(), F_OK), 0);
    EXPECT_TRUE(write_all(server, "x"));
    EXPECT_EQ(read_some(client), "x");
  });
}

TEST(Unix, BacklogKeepsItsOrder) {
  isolated([] {
    const int listener = listening(SOCK_STREAM, "@backlog", 4);
    const int one = connected(SOCK_STREAM, "@backlog");
    const int two = connected(SOCK_STREAM, "@backlog");
    expect_ok(move_all({one, two, listener}));
    const int first = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    const int second = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    EXPECT_TRUE(write_all(one, "one"));
    EXPECT_TRUE(write_all(two, "two"));
    EXPECT_EQ(read_some(first), "one");
    EXPECT_EQ(read_some(second), "two");
    const int three = connected(SOCK_STREAM, "@backlog");
    EXPECT_TRUE(write_all(three, "early"));
    expect_ok(move_all({three, listener}));
    EXPECT_EQ(read_some(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)), "early");
  });
}

TEST(Unix, WhatHasBeenReadOfAQueueIsBounded) {
  constexpr std::uint32_t gigabytes = ~0u;
  const local::Message message{{1}, {}, {}, gigabytes};
  const local::State own{.type = SOCK_STREAM, .phase = local::Phase::alone, .queue = {message}};
  local::State waiting{.type = SOCK_STREAM, .phase = local::Phase::listening, .backlog = 1};
  waiting.name.text = {0, 'b', 'o', 'u', 'n', 'd', 'e', 'd'};
  waiting.waiting = {0};
  waiting.waiting_as.resize(1);
  waiting.waiting_sent = {{message}};
  for (const auto& state : {own, waiting}) {
    FakeDestination destination;
    const auto built = kind_named("unix")->build(image::pack(state), destination);
    ASSERT_FALSE(built);
    EXPECT_EQ(built.error().kind, ErrorKind::invalid) << built.error().message();
  }
}

TEST(Unix, HalfShutAndDeserted) {
  for (const int type : {SOCK_STREAM, SOCK_SEQPACKET}) {
    isolated([type] {
      SCOPED_TRACE(type);
      auto [one, other] = pair_of(type);
      EXPECT_TRUE(write_all(one, "last"));
      EXPECT_EQ(::shutdown(one, SHUT_WR), 0);
      expect_ok(move_all({one, other}));
      EXPECT_EQ(read_some(other), "last");
      EXPECT_EQ(read_some(other), "");
      EXPECT_FALSE(write_all(one, "x"));
      EXPECT_EQ(errno, EPIPE);
      EXPECT_TRUE(write_all(other, "still"));
      EXPECT_EQ(read_some(one), "still");

      auto [left, gone] = pair_of(type);
      EXPECT_TRUE(write_all(gone, "legacy"));
      ::close(gone);
      expect_ok(move_all({left}));
      EXPECT_EQ(read_some(left), "legacy");
      EXPECT_EQ(read_some(left), "");
      EXPECT_FALSE(write_all(left, "x"));
      EXPECT_EQ(errno, EPIPE);

      auto [victim, rude] = pair_of(type);
      EXPECT_TRUE(write_all(victim, "never read"));
      ::close(rude);
      expect_ok(move_all({victim}));
      char byte = 0;
      EXPECT_EQ(::recv(victim, &byte, 1, 0), -1);
      EXPECT_EQ(errno, ECONNRESET);
    });
  }
}

TEST(Unix, DatagramsKeepTheirSenders) {
  isolated([] {
    const Directory directory;
    const std::string log = directory.path + "/log";
    const int receiver = bound(SOCK_DGRAM, log);
    const int named = bound(SOCK_DGRAM, "@named");
    const int pathed = bound(SOCK_DGRAM, directory.path + "/sender");
    const int client = connected(SOCK_DGRAM, log);
    const UnixName to(log);
    for (const int fd : {named, client, pathed})
      EXPECT_EQ(::sendto(fd, "hi", 2, 0, fd == client ? nullptr : to.get(), fd == client ? 0 : to.length), 2);
    expect_ok(move_all({client, named, receiver, pathed}));
    EXPECT_EQ(next(receiver), "hi from @named");
    EXPECT_EQ(next(receiver), "hi from ");
    EXPECT_EQ(next(receiver), "hi from " + directory.path + "/sender");
    EXPECT_EQ(next(receiver), "-");
    EXPECT_EQ(name_of(client, true), log);
    EXPECT_TRUE(write_all(client, "more"));
    EXPECT_EQ(next(receiver), "more from ");
    const int later = connected(SOCK_DGRAM, log);
    EXPECT_TRUE(write_all(later, "by path"));
    EXPECT_EQ(next(receiver), "by path from ");
    const UnixName back(directory.path + "/sender");
    EXPECT_EQ(::sendto(receiver, "re", 2, 0, back.get(), back.length), 2);
    EXPECT_EQ(next(pathed), "re from " + log);
  });
}

TEST(Unix, EmptyMessagesStayHoweverOftenTheyWereSeen) {
  isolated([] {
    const int receiver = bound(SOCK_DGRAM, "@receiver");
    const int one = bound(SOCK_DGRAM, "@one"), other = bound(SOCK_DGRAM, "@other");
    const auto [left, right] = pair_of(SOCK_SEQPACKET);
    const UnixName to("@receiver");
    for (const int fd : {one, other, one})
      for (const std::size_t size : {0UL, 2UL}) EXPECT_GE(::sendto(fd, "hi", size, 0, to.get(), to.length), 0);
    for (const char* text : {"", "a", "", ""}) EXPECT_GE(::send(left, text, std::strlen(text), 0), 0);
    // Captures that were given up.
    for (int round = 0; round < 2; ++round) ASSERT_TRUE(capture_all({receiver, one, other, left, right}));
    EXPECT_EQ(::send(left, "", 0, 0), 0);
    expect_ok(move_all({receiver, one, other, left, right}));
    for (const char* name : {"@one", "@other", "@one"})
      for (const char* text : {"", "hi"}) EXPECT_EQ(next(receiver), std::string(text) + " from " + name);
    EXPECT_EQ(next(receiver), "-");
    for (const char* text : {"", "a", "", "", ""}) EXPECT_EQ(next(right), std::string(text) + " from ");
    EXPECT_EQ(next(right), "-");
  });
}

TEST(Unix, CredentialsOfPeersAndMessages) {
  isolated([] {
    int one = -1, other = -1;
    ASSERT_EQ(::setresuid(-1, 1234, -1), 0);
    std::tie(one, other) = pair_of(SOCK_STREAM);
    ASSERT_EQ(::setresuid(-1, 0, -1), 0);
    set_int(other, SOL_SOCKET, SO_PASSCRED, 1);
    ASSERT_EQ(::setresuid(4321, 0, 0), 0);
    EXPECT_TRUE(write_all(one, "signed"));
    ASSERT_EQ(::setresuid(0, 0, 0), 0);
    expect_ok(move_all({one, other}));
    ucred credentials{};
    socklen_t length = sizeof(credentials);
    EXPECT_EQ(::getsockopt(one, SOL_SOCKET, SO_PEERCRED, &credentials, &length), 0);
    EXPECT_EQ(credentials.uid, 1234u);
    EXPECT_EQ(get_int(other, SOL_SOCKET, SO_PASSCRED), 1);
    EXPECT_EQ(::geteuid(), 0u);
    alignas(cmsghdr) char control[256];
    char text[16] = {};
    iovec part{text, sizeof(text)};
    msghdr message{.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    EXPECT_EQ(::recvmsg(other, &message, 0), 6);
    auto* first = CMSG_FIRSTHDR(&message);
    ASSERT_NE(first, nullptr);
    std::memcpy(&credentials, CMSG_DATA(first), sizeof(credentials));
    EXPECT_EQ(credentials.uid, 4321u);
    EXPECT_EQ(credentials.pid, ::getpid());
  });
}

TEST(Unix, RefusesWhatIsQueuedAndWhoIsOutside) {
  isolated([] {
    const auto [one, other] = pair_of(SOCK_STREAM);
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
    iovec part{const_cast<char*>("fd"), 2};
    msghdr message{.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
    auto* entry = CMSG_FIRSTHDR(&message);
    entry->cmsg_level = SOL_SOCKET;
    entry->cmsg_type = SCM_RIGHTS;
    entry->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(entry), &one, sizeof(int));
    ASSERT_EQ(::sendmsg(one, &message, 0), 2);
    kernel::prepare_to_read_kernel_state();
    const int lowest = ::dup(0);
    ::close(lowest);
    auto images = capture_all({one, other});
    ASSERT_FALSE(images);
    EXPECT_EQ(images.error().kind, ErrorKind::refused);
    EXPECT_NE(images.error().what.find("SCM_RIGHTS"), std::string::npos);
    const int after = ::dup(0);
    EXPECT_EQ(after, lowest) << "a descriptor was left open";
    EXPECT_EQ(read_some(other), "fd");

    const auto [inside, outside] = pair_of(SOCK_STREAM);
    images = capture_all({inside});
    ASSERT_FALSE(images);
    EXPECT_EQ(images.error().kind, ErrorKind::refused);
    EXPECT_NE(images.error().what.find("outside"), std::string::npos);
    EXPECT_TRUE(write_all(outside, "undisturbed"));
    EXPECT_EQ(read_some(inside), "undisturbed");
  });
}

TEST(Unix, CaptureAloneChangesNothing) {
  isolated([] {
    const auto [one, other] = pair_of(SOCK_SEQPACKET);
    EXPECT_TRUE(write_all(one, "a"));
    EXPECT_TRUE(write_all(one, "bc"));
    for (int round = 0; round < 3; ++round) ASSERT_TRUE(capture_all({one, other}));
    EXPECT_EQ(read_some(other), "a");
    EXPECT_EQ(read_some(other), "bc");
    EXPECT_EQ(get_int(other, SOL_SOCKET, SO_PEEK_OFF), -1);
  });
}

}  // namespace
}  // namespace godwit::objects::socket_testing
