#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>

#include "objects/descriptor.hpp"
#include "objects/kinds.hpp"

/// Captures descriptors of this very process as if they were a pod's, and rebuilds them here: the pod's processes are
/// this one (pod pid == host pid).
namespace godwit::objects::testing {

class TestSource : public Source {
 public:
  /// Adds a description under its number; more numbers of the same description are added to it as holders.
  ObjectId add(int fd, std::vector<int> more = {}) {
    Descriptor each;
    each.id = static_cast<ObjectId>(all.size());
    each.fd = fd;
    EXPECT_EQ(::fstat(fd, &each.status), 0);
    char link[4096] = {};
    const std::string path = "/proc/self/fd/" + std::to_string(fd);
    EXPECT_GT(::readlink(path.c_str(), link, sizeof link - 1), 0);
    each.link = link;
    each.flags = ::fcntl(fd, F_GETFL);
    each.holders.push_back({.process = {::getpid()}, .number = fd});
    for (int number : more) each.holders.push_back({.process = {::getpid()}, .number = number});
    all.push_back(std::move(each));
    return all.back().id;
  }
  const std::vector<Descriptor>& descriptors() const override { return all; }
  std::optional<ObjectId> find(PodPid, int number) const override {
    for (const auto& each : all)
      for (const auto& holder : each.holders)
        if (holder.number == number) return each.id;
    return std::nullopt;
  }
  std::optional<std::string> stream(const struct stat&) const override { return std::nullopt; }
  const std::string& upper() const override { return upper_path; }
  const std::string& root() const override { return root_path; }
  std::optional<PodPid> pod_pid(HostPid pid) const override {
    return outside ? std::nullopt : std::optional(PodPid{pid.value});
  }
  std::optional<HostPid> host_pid(PodPid pid) const override { return HostPid{pid.value}; }

  std::vector<Descriptor> all;
  std::string upper_path = "/", root_path = "/";
  bool outside = false;  ///< every process is outside of the pod
};

class TestDestination : public Destination {
 public:
  int built(ObjectId id) const override {
    const auto at = made.find(id);
    return at == made.end() ? -1 : at->second.get();
  }
  Result<Fd> stream(const std::string& name) override {
    const auto at = streams.find(name);
    if (at == streams.end()) return fail(ErrorKind::not_found, "no stream {}", name);
    return Fd{::fcntl(at->second, F_DUPFD_CLOEXEC, 0)};
  }
  std::optional<HostPid> host_pid(PodPid pid) const override { return HostPid{pid.value}; }

  std::map<ObjectId, Fd> made;
  std::map<std::string, int> streams;
};

/// All of the source's descriptions, captured, packed, and what the destination needs of them.
inline std::vector<Image> capture_all(TestSource& source) {
  std::vector<Image> images;
  for (const auto& each : source.all) {
    const Kind* kind = kind_of(each);
    EXPECT_NE(kind, nullptr) << each.link;
    if (!kind) continue;
    const auto allowed = kind->preflight(each, source);
    EXPECT_TRUE(allowed) << (allowed ? "" : allowed.error().message());
    auto state = kind->capture(each, source);
    EXPECT_TRUE(state) << (state ? "" : state.error().message());
    images.push_back({std::string(kind->name), state.value_or(Bytes{}), {}, each.holders});
  }
  return images;
}

inline void build_all(const std::vector<Image>& images, TestDestination& destination) {
  for (ObjectId id = 0; id < images.size(); ++id) {
    const Kind* kind = kind_named(images[id].kind);
    ASSERT_NE(kind, nullptr);
    auto fd = kind->build(images[id].state, destination);
    ASSERT_TRUE(fd) << images[id].kind << ": " << fd.error().message();
    destination.made[id] = std::move(*fd);
  }
  const auto done = destination.all_built();
  ASSERT_TRUE(done) << done.error().message();
}

}  // namespace godwit::objects::testing
