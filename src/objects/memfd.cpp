#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <bit>

#include "objects/content.hpp"
#include "objects/descriptor.hpp"
#include "objects/kinds.hpp"
#include "objects/memory_object.hpp"
#include "objects/typed.hpp"

#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

namespace godwit::objects {
namespace {

struct State {
  std::uint64_t key = 0;
  std::string name;
  std::uint64_t size = 0;
  std::uint32_t seals = 0;
  std::uint32_t mode = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint64_t huge_page = 0;  ///< size of its huge pages; 0: none
  int flags = 0;
  std::int64_t position = 0;
  bool has_content = false;  ///< it comes with this state, not with the memory
  Content content;
  MSGPACK_DEFINE_MAP(key, name, size, seals, mode, uid, gid, huge_page, flags, position, has_content, content)
};

constexpr std::string_view prefix = "/memfd:";
constexpr std::string_view suffix = " (deleted)";
// memfd_create takes names of up to 249 bytes (NAME_MAX without "memfd:").
constexpr std::size_t longest_name = 249;

bool matches(const Descriptor& descriptor) {
  return S_ISREG(descriptor.status.st_mode) && (descriptor.flags & O_PATH) == 0 &&
         descriptor.link.starts_with(prefix) && descriptor.link.ends_with(suffix) &&
         ::fcntl(descriptor.fd, F_GET_SEALS) >= 0;
}

std::uint64_t key_of(const Descriptor& descriptor) {
  return memory_object_key(descriptor.status.st_dev, descriptor.status.st_ino);
}

bool carried(const Descriptor& descriptor, Source& source) {
  return source.shared<MemoryObjectKeys>("memory-objects").keys.contains(key_of(descriptor));
}

Result<void> preflight(const Descriptor& descriptor, Source& source) {
  if (carried(descriptor, source)) return {};
  const std::uint64_t bytes = TRY(estimate_content(descriptor.fd));
  if (bytes > largest_content)
    return fail(ErrorKind::refused, "{}: {} MiB that no process has mapped", descriptor.link, bytes / MiB);
  return {};
}

/// Which memfds came with their content already.
struct Captured {
  std::set<std::uint64_t> keys;
};

Result<State> capture(const Descriptor& descriptor, Source& source) {
  const auto& link = descriptor.link;
  State state{.key = key_of(descriptor),
              .name = link.substr(prefix.size(), link.size() - prefix.size() - suffix.size()),
              .size = static_cast<std::uint64_t>(descriptor.status.st_size),
              .mode = descriptor.status.st_mode & 07777,
              .uid = descriptor.status.st_uid,
              .gid = descriptor.status.st_gid,
              .flags = descriptor.flags};
  const int seals = ::fcntl(descriptor.fd, F_GET_SEALS);
  if (seals < 0) return fail_errno("F_GET_SEALS {}", link);
  state.seals = static_cast<std::uint32_t>(seals);
  state.position = ::lseek(descriptor.fd, 0, SEEK_CUR);
  if (state.position < 0) return fail_errno("position of {}", link);
  struct statfs system {};
  if (::fstatfs(descriptor.fd, &system) < 0) return fail_errno("fstatfs {}", link);
  if (system.f_type == HUGETLBFS_MAGIC) state.huge_page = static_cast<std::uint64_t>(system.f_bsize);
  if (carried(descriptor, source)) return state;
  state.has_content = source.shared<Captured>("memfds").keys.insert(state.key).second;
  if (state.has_content) {
    const Fd own = TRY(reopen(descriptor.fd, O_RDONLY));
    state.content = TRY(read_content(own.get()));
  }
  return state;
}

Result<Fd> create(const State& state) {
  if (state.name.size() > longest_name)
    return fail(ErrorKind::invalid, "a memfd's name of {} bytes", state.name.size());
  unsigned flags = MFD_CLOEXEC;
  if ((state.seals & F_SEAL_SEAL) == 0 || (state.seals & ~static_cast<unsigned>(F_SEAL_SEAL)) != 0)
    flags |= MFD_ALLOW_SEALING;
  if (state.huge_page != 0)
    flags |= MFD_HUGETLB | static_cast<unsigned>(std::countr_zero(state.huge_page)) << MFD_HUGE_SHIFT;
  Fd fd{::memfd_create(state.name.c_str(), flags)};
  if (!fd) return fail_errno("memfd_create {}", state.name);
  TRY(write_content(fd.get(), state.content));
  return fd;
}

Result<Fd> build(const State& state, Destination& destination) {
  auto& objects = destination.shared<MemoryObjects>("memory-objects").objects;
  auto object = objects.find(state.key);
  if (object == objects.end()) {
    if (!state.has_content) return fail(ErrorKind::invalid, "memfd {} came without its memory", state.name);
    object = objects.emplace(state.key, TRY(create(state))).first;
  }
  const int memory = object->second.get();
  if (::fchown(memory, state.uid, state.gid) < 0 || ::fchmod(memory, state.mode) < 0)
    return fail_errno("set owner and mode of memfd {}", state.name);
  Fd fd = TRY(reopen(memory, open_flags(state.flags)));
  if (::lseek(fd.get(), state.position, SEEK_SET) < 0) return fail_errno("position of memfd {}", state.name);
  return fd;
}

/// Mappings that a seal would have forbidden are there by now, and nothing of ours is mapped or written any more.
Result<void> open(const State& state, int, Destination& destination) {
  auto& objects = destination.shared<MemoryObjects>("memory-objects").objects;
  const auto object = objects.find(state.key);
  if (object == objects.end()) return fail(ErrorKind::invalid, "memfd {} is not there", state.name);
  const int memory = object->second.get();
  const int now = ::fcntl(memory, F_GET_SEALS);
  if (now < 0) return fail_errno("F_GET_SEALS {}", state.name);
  const unsigned missing = state.seals & ~static_cast<unsigned>(now);
  // Several descriptions of one memfd bring the same seals.
  if (missing == 0) return {};
  if (::fcntl(memory, F_ADD_SEALS, missing) < 0) return fail_errno("seal memfd {} with {:#x}", state.name, missing);
  return {};
}

}  // namespace

const Kind memfd_kind{.name = "memfd",
                      .matches = matches,
                      .preflight = preflight,
                      .capture = captures<State, capture>,
                      .build = builds<State, build>,
                      .attach = nothing_to_attach,
                      .open = opens<State, open>};

}  // namespace godwit::objects
