#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "objects/kinds.hpp"

/// Two network namespaces joined by a cable: the pod's (10.9.0.2, fd09::2) and a peer's (10.9.0.1, fd09::1). A socket
/// is moved by being captured, closed without a sound, and rebuilt at the same address.
namespace godwit::objects::socket_testing {

/// Runs the body in a process and network namespace of its own; fails when one of its expectations does.
inline void isolated(const std::function<void()>& body) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    ::alarm(60);
    if (::unshare(CLONE_NEWNET) != 0) ::_exit(3);
    body();
    ::fflush(nullptr);
    ::_exit(::testing::Test::HasFailure() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

class Net {
 public:
  Net() {
    pod_.reset(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    EXPECT_EQ(::unshare(CLONE_NEWNET), 0);
    peer_.reset(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
    const std::string pod = "/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(pod_.get());
    run("ip link set lo up; ip link add eth0 type veth peer name eth0 netns " + pod +
        "; ip addr add 10.9.0.1/24 dev eth0; ip addr add fd09::1/64 dev eth0 nodad; ip link set eth0 up");
    EXPECT_EQ(::setns(pod_.get(), CLONE_NEWNET), 0);
    run("ip link set lo up; ip addr add 10.9.0.2/24 dev eth0; ip addr add fd09::2/64 dev eth0 nodad; ip link set eth0 "
        "up");
  }
  /// Calls `make` in the peer's namespace.
  template <typename Make>
  auto at_peer(Make make) {
    EXPECT_EQ(::setns(peer_.get(), CLONE_NEWNET), 0);
    auto made = make();
    EXPECT_EQ(::setns(pod_.get(), CLONE_NEWNET), 0);
    return made;
  }
  static void run(const std::string& command) { EXPECT_EQ(std::system(command.c_str()), 0) << command; }

 private:
  Fd pod_, peer_;
};

class FakeSource : public Source {
 public:
  const std::vector<Descriptor>& descriptors() const override { return all; }
  std::optional<ObjectId> find(PodPid, int number) const override {
    for (const auto& each : all)
      if (each.fd == number) return each.id;
    return std::nullopt;
  }
  std::optional<std::string> stream(const struct stat&) const override { return std::nullopt; }
  const std::string& upper() const override { return path; }
  const std::string& root() const override { return path; }
  std::optional<PodPid> pod_pid(HostPid pid) const override { return PodPid{pid.value}; }
  std::optional<HostPid> host_pid(PodPid pid) const override { return HostPid{pid.value}; }
  void add(int fd) {
    Descriptor each;
    each.id = static_cast<ObjectId>(all.size());
    each.fd = fd;
    EXPECT_EQ(::fstat(fd, &each.status), 0);
    each.link = "socket:[" + std::to_string(each.status.st_ino) + "]";
    each.flags = ::fcntl(fd, F_GETFL);
    each.holders.push_back({.process = {::getpid()}, .number = fd});
    all.push_back(std::move(each));
  }
  std::vector<Descriptor> all;
  std::string path = "/";
};

class FakeDestination : public Destination {
 public:
  int built(ObjectId id) const override {
    const auto at = made.find(id);
    return at == made.end() ? -1 : at->second;
  }
  Result<Fd> stream(const std::string& name) override { return fail(ErrorKind::not_found, "no stream {}", name); }
  std::optional<HostPid> host_pid(PodPid pid) const override { return HostPid{pid.value}; }
  std::map<ObjectId, int> made;
};

inline void close_silently(int fd) {
  const int on = TCP_REPAIR_ON;
  ::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on));
  ::close(fd);
}

/// Captures without closing: what a move that is given up comes to.
inline Result<std::vector<Bytes>> capture_all(const std::vector<int>& fds) {
  FakeSource source;
  for (const int fd : fds) source.add(fd);
  std::vector<Bytes> images;
  for (const auto& each : source.all) {
    const Kind* kind = kind_of(each);
    if (kind == nullptr) return fail(ErrorKind::refused, "no kind for {}", each.link);
    TRY(kind->preflight(each, source));
    images.push_back(TRY(kind->capture(each, source)));
  }
  return images;
}

/// Moves sockets: each number then stands for the rebuilt one.
inline Result<void> move_all(const std::vector<int>& fds) {
  std::vector<const Kind*> kinds;
  {
    FakeSource source;
    for (const int fd : fds) source.add(fd);
    for (const auto& each : source.all) kinds.push_back(kind_of(each));
  }
  const auto images = TRY(capture_all(fds));
  // The numbers stay taken, so that nothing else gets them.
  const Fd placeholder(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  for (const int fd : fds) {
    const int on = TCP_REPAIR_ON;
    ::setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof(on));
    if (::dup3(placeholder.get(), fd, O_CLOEXEC) < 0) return fail_errno("dup");
  }
  FakeDestination destination;
  std::vector<Fd> built;
  for (std::size_t i = 0; i < fds.size(); ++i) {
    built.push_back(TRY(kinds[i]->build(images[i], destination)));
    destination.made[static_cast<ObjectId>(i)] = built.back().get();
  }
  TRY(destination.all_built());
  for (std::size_t i = 0; i < fds.size(); ++i) {
    TRY(kinds[i]->open(images[i], built[i].get(), destination));
    if (::dup3(built[i].get(), fds[i], O_CLOEXEC) < 0) return fail_errno("dup");
  }
  return {};
}

inline void expect_ok(const Result<void>& result, int line = __builtin_LINE()) {
  EXPECT_TRUE(result) << "line " << line << ": " << result.error().message();
}

/// Waits for events, at most 10 s.
inline int wait_for(int fd, short events) {
  pollfd entry{.fd = fd, .events = events, .revents = 0};
  return ::poll(&entry, 1, 10'000) > 0 ? entry.revents : 0;
}

inline std::string read_some(int fd) {
  std::string text(1 << 20, '\0');
  if (wait_for(fd, POLLIN) == 0) return "(nothing came)";
  const ssize_t count = ::recv(fd, text.data(), text.size(), 0);
  text.resize(count > 0 ? static_cast<std::size_t>(count) : 0);
  return text;
}

/// Exactly so many bytes, or fewer at the end of the stream.
inline std::string read_all(int fd, std::size_t size) {
  std::string text;
  while (text.size() < size) {
    const auto some = read_some(fd);
    if (some.empty() || some.front() == '(') break;
    text += some;
  }
  return text;
}

inline bool write_all(int fd, const std::string& text) {
  return ::send(fd, text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size());
}

inline int get_int(int fd, int level, int name) {
  int value = -12345;
  socklen_t length = sizeof(value);
  ::getsockopt(fd, level, name, &value, &length);
  return value;
}
inline void set_int(int fd, int level, int name, int value) {
  EXPECT_EQ(::setsockopt(fd, level, name, &value, sizeof(value)), 0) << level << ' ' << name;
}

}  // namespace godwit::objects::socket_testing
