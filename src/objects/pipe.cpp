#include "objects/pipe.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "objects/descriptor.hpp"
#include "objects/kinds.hpp"
#include "objects/typed.hpp"

namespace godwit::objects {

// A pipe is bounded by pipe-max-size for users (1 MiB by default), and by this for us.
constexpr std::size_t largest_pipe = 64 * MiB;

Result<PipeContent> peek_pipe(int fd, bool packets) {
  PipeContent content{.packets = packets};
  int waiting = 0;
  if (::ioctl(fd, FIONREAD, &waiting) < 0) return fail_errno("FIONREAD of a pipe");
  if (waiting == 0) return content;
  const int capacity = ::fcntl(fd, F_GETPIPE_SZ);
  if (capacity < 0) return fail_errno("F_GETPIPE_SZ");
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0) return fail_errno("pipe");
  const Fd out{ends[0]}, in{ends[1]};
  // tee shares the pages slot by slot, so the copy needs as many slots.
  if (::fcntl(in.get(), F_SETPIPE_SZ, capacity) < 0) return fail_errno("F_SETPIPE_SZ {}", capacity);
  const ssize_t shared = ::tee(fd, in.get(), largest_pipe, SPLICE_F_NONBLOCK);
  if (shared < waiting) return fail_errno("tee of {} bytes from a pipe gave {}", waiting, shared);
  std::size_t left = static_cast<std::size_t>(shared);
  std::vector<std::uint8_t> buffer(packets ? 4096 : 256 * KiB);
  while (left > 0) {
    const ssize_t got = ::read(out.get(), buffer.data(), buffer.size());
    if (got <= 0) return fail_errno("read {} bytes of a pipe's content", left);
    content.chunks.emplace_back(buffer.begin(), buffer.begin() + got);
    left -= static_cast<std::size_t>(got);
  }
  return content;
}

Result<void> fill_pipe(int fd, const PipeContent& content) {
  if (content.chunks.empty()) return {};
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) return fail_errno("F_GETFL");
  // Without O_NONBLOCK a state whose content is larger than its capacity would stop us for ever.
  if (::fcntl(fd, F_SETFL, (flags & ~O_DIRECT) | O_NONBLOCK | (content.packets ? O_DIRECT : 0)) < 0)
    return fail_errno("F_SETFL of a pipe");
  for (const auto& chunk : content.chunks) {
    const ssize_t put = ::write(fd, chunk.data(), chunk.size());
    if (put < 0) return fail_errno("write {} bytes into a pipe", chunk.size());
    if (static_cast<std::size_t>(put) != chunk.size())
      return fail(ErrorKind::invalid, "a pipe's content is larger than the pipe");
  }
  if (::fcntl(fd, F_SETFL, flags) < 0) return fail_errno("F_SETFL of a pipe");
  return {};
}

namespace {

struct State {
  InodeKey inode;
  std::string path;  ///< of a FIFO in the pod; empty for pipe(2)
  int flags = 0;
  int capacity = 0;
  std::uint32_t mode = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint32_t descriptions = 0;  ///< of this inode in the pod: after the last one no end of ours may stay open
  PipeContent content;             ///< with the first description only
  MSGPACK_DEFINE_MAP(inode, path, flags, capacity, mode, uid, gid, descriptions, content)
};

bool reads(int flags) {
  return (flags & O_ACCMODE) != O_WRONLY;
}
bool writes(int flags) {
  return (flags & O_ACCMODE) != O_RDONLY;
}

bool matches(const Descriptor& descriptor) {
  return S_ISFIFO(descriptor.status.st_mode) && (descriptor.flags & O_PATH) == 0;
}

/// All descriptions of each pipe of the pod.
struct Ends {
  std::map<InodeKey, std::vector<const Descriptor*>> of;
  bool filled = false;
};

const std::vector<const Descriptor*>& ends_of(const Descriptor& descriptor, Source& source) {
  auto& ends = source.shared<Ends>("pipe-ends");
  if (!ends.filled) {
    for (const auto& each : source.descriptors())
      if (matches(each)) ends.of[inode_key(each.status)].push_back(&each);
    ends.filled = true;
  }
  return ends.of[inode_key(descriptor.status)];
}

Result<bool> has_name(const Descriptor& descriptor) {
  struct statfs system {};
  if (::fstatfs(descriptor.fd, &system) < 0) return fail_errno("fstatfs {}", descriptor.link);
  return system.f_type != PIPEFS_MAGIC;
}

/// An end that no process of the pod has, yet isn't closed, is somebody else's: it would be cut off by the move.
Result<void> check_other_end(const Descriptor& descriptor, Source& source) {
  bool reader = false, writer = false;
  for (const auto* each : ends_of(descriptor, source)) {
    reader |= reads(each->flags);
    writer |= writes(each->flags);
  }
  if (reader && writer) return {};
  struct pollfd state {
    .fd = descriptor.fd, .events = 0, .revents = 0
  };
  if (::poll(&state, 1, 0) < 0) return fail_errno("poll {}", descriptor.link);
  const bool other_closed = (state.revents & (reader ? POLLHUP : POLLERR)) != 0;
  // A FIFO opened for reading that never had a writer shows no POLLHUP, and no one outside can have its file.
  if (other_closed || TRY(has_name(descriptor))) return {};
  return fail(ErrorKind::refused, "{}: the {} end belongs to a process outside the pod", descriptor.link,
              reader ? "writing" : "reading");
}

Result<void> preflight(const Descriptor& descriptor, Source& source) {
  TRY(check_other_end(descriptor, source));
  const int capacity = ::fcntl(descriptor.fd, F_GETPIPE_SZ);
  if (capacity < 0) return fail_errno("F_GETPIPE_SZ {}", descriptor.link);
  if (static_cast<std::size_t>(capacity) > largest_pipe)
    return fail(ErrorKind::refused, "{}: a pipe of {} bytes", descriptor.link, capacity);
  if (TRY(has_name(descriptor)) && descriptor.link.ends_with(" (deleted)"))
    return fail(ErrorKind::refused, "{}: a FIFO whose name was removed", descriptor.link);
  return {};
}

Result<State> capture(const Descriptor& descriptor, Source& source) {
  TRY(check_other_end(descriptor, source));
  const auto& ends = ends_of(descriptor, source);
  State state{.inode = inode_key(descriptor.status),
              .flags = descriptor.flags,
              .mode = descriptor.status.st_mode & 07777,
              .uid = descriptor.status.st_uid,
              .gid = descriptor.status.st_gid,
              .descriptions = static_cast<std::uint32_t>(ends.size())};
  if (TRY(has_name(descriptor))) state.path = descriptor.link;
  state.capacity = ::fcntl(descriptor.fd, F_GETPIPE_SZ);
  if (state.capacity < 0) return fail_errno("F_GETPIPE_SZ {}", descriptor.link);
  if (ends.empty() || ends.front()->id != descriptor.id) return state;
  // What stands in a pipe that no one reads from is lost to the pod already.
  bool packets = false;
  int reader = -1;
  for (const auto* each : ends) {
    packets |= (each->flags & O_DIRECT) != 0;
    if (reads(each->flags)) reader = each->fd;
  }
  if (reader >= 0) state.content = TRY(peek_pipe(reader, packets));
  return state;
}

/// A pipe whose descriptions are being built: both ends are held open meanwhile, so that no order of opening blocks.
struct Rebuilt {
  Fd reader, writer;
  bool reader_given = false, writer_given = false;  ///< to a description that was one of pipe2's own
  std::uint32_t left = 0;
};
struct RebuiltPipes {
  std::map<InodeKey, Rebuilt> of;
};

Result<Rebuilt> make(const State& state, const Opener* opener) {
  Rebuilt pipe{.left = state.descriptions};
  if (state.path.empty()) {
    int ends[2];
    if (::pipe2(ends, O_CLOEXEC) < 0) return fail_errno("pipe");
    pipe.reader.reset(ends[0]);
    pipe.writer.reset(ends[1]);
    // The owner counts when the pipe is opened again through /proc/PID/fd.
    if (::fchown(ends[0], state.uid, state.gid) < 0 || ::fchmod(ends[0], state.mode) < 0)
      return fail_errno("set the owner of a pipe");
  } else {
    TRY(check_permission(opener, state.path, state.flags));
    const Fd path{::open(state.path.c_str(), O_PATH | O_CLOEXEC | O_NOFOLLOW)};
    struct stat status {};
    if (!path || ::fstat(path.get(), &status) < 0) return fail_errno("open the FIFO {}", state.path);
    if (!S_ISFIFO(status.st_mode)) return fail(ErrorKind::failed, "{} is no FIFO here", state.path);
    pipe.reader = TRY(reopen(path.get(), O_RDONLY | O_NONBLOCK));
    pipe.writer = TRY(reopen(path.get(), O_WRONLY));
  }
  if (state.capacity <= 0 || static_cast<std::size_t>(state.capacity) > largest_pipe)
    return fail(ErrorKind::invalid, "a pipe of {} bytes", state.capacity);
  if (::fcntl(pipe.writer.get(), F_SETPIPE_SZ, state.capacity) < 0)
    return fail_errno("give a pipe its {} bytes", state.capacity);
  return pipe;
}

/// open(2) adds O_LARGEFILE, which F_GETFL shows; pipe2's own ends don't have it.
bool made_by_pipe(const State& state) {
  return state.path.empty() && (state.flags & O_LARGEFILE) == 0 && (state.flags & O_ACCMODE) != O_RDWR;
}

Result<Fd> build(const State& state, Destination& destination) {
  auto& pipes = destination.shared<RebuiltPipes>("pipes").of;
  auto at = pipes.find(state.inode);
  if (at == pipes.end()) at = pipes.emplace(state.inode, TRY(make(state, destination.opener()))).first;
  auto& pipe = at->second;
  TRY(fill_pipe(pipe.writer.get(), state.content));
  const bool reader_only = !writes(state.flags);
  const int end = reader_only ? pipe.reader.get() : pipe.writer.get();
  bool& given = reader_only ? pipe.reader_given : pipe.writer_given;
  Fd fd;
  if (made_by_pipe(state) && !given) {
    given = true;
    fd.reset(::fcntl(end, F_DUPFD_CLOEXEC, 0));
    if (!fd) return fail_errno("duplicate an end of a pipe");
  } else {
    fd = TRY(reopen(end, state.flags & O_ACCMODE));
  }
  TRY(set_status_flags(fd.get(), state.flags));
  if (pipe.left <= 1)
    pipes.erase(at);
  else
    --pipe.left;
  return fd;
}

}  // namespace

const Kind pipe_kind{.name = "pipe",
                     .matches = matches,
                     .preflight = preflight,
                     .capture = captures<State, capture>,
                     .build = builds<State, build>,
                     .attach = nothing_to_attach,
                     .open = nothing_to_open};

}  // namespace godwit::objects
