#include "migrate/tree.hpp"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/nsfs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <map>

#include "kernel/procfs.hpp"

namespace godwit::migrate {

namespace {

PodPid innermost(const std::vector<pid_t>& ids) {
  return PodPid{ids.empty() ? 0 : ids.back()};
}

/// Whether two processes have one and the same table (kcmp(2)).
bool shares(HostPid a, HostPid b, int what) {
  return ::syscall(SYS_kcmp, a.value, b.value, what, 0, 0) == 0;
}

/// Whether it is one of the namespaces within the other, or this one itself (ioctl_ns(2)).
bool is_within(Fd inner, const Fd& outer) {
  struct stat wanted {
  }, status{};
  if (::fstat(outer.get(), &wanted) != 0) return false;
  while (inner && ::fstat(inner.get(), &status) == 0) {
    if (status.st_dev == wanted.st_dev && status.st_ino == wanted.st_ino) return true;
    inner.reset(::ioctl(inner.get(), NS_GET_PARENT));
  }
  return false;
}

/// Children of every thread of the process, zombies included (/proc/PID/task/TID/children).
Result<std::vector<HostPid>> read_children(HostPid process) {
  std::vector<HostPid> found;
  for (const auto thread : TRY(kernel::list_threads(process))) {
    auto text = kernel::read_file(process, fmt::format("task/{}/children", thread.value));
    if (!text) continue;
    const char* at = text->data();
    const char* const end = at + text->size();
    while (at < end) {
      pid_t child = 0;
      const auto [next, problem] = std::from_chars(at, end, child);
      if (problem != std::errc{}) break;
      found.push_back(HostPid{child});
      at = next + 1;
    }
  }
  return found;
}

}  // namespace

bool is_of(HostPid init, PodPid process, HostPid thread, PodPid number) {
  const auto status = kernel::read_status(thread);
  if (!status || innermost(status->ns_tgid) != process) return false;
  if (number.value != 0 && innermost(status->ns_pid) != number) return false;
  const auto pods = kernel::open_file(init, "ns/pid", O_RDONLY);
  auto its = kernel::open_file(thread, "ns/pid", O_RDONLY);
  return pods && its && is_within(std::move(*its), *pods);
}

Result<std::vector<ThreadIds>> read_threads(HostPid process) {
  std::vector<ThreadIds> threads;
  for (const auto tid : TRY(kernel::list_threads(process))) {
    auto status = kernel::read_status(tid);
    if (!status) {
      if (status.error().kind == ErrorKind::gone || status.error().code == ENOENT) continue;
      return std::unexpected(status.error());
    }
    if (status->state == 'Z' || status->state == 'X') continue;
    threads.push_back({tid, innermost(status->ns_pid)});
  }
  std::ranges::stable_sort(
      threads, [&](const ThreadIds& a, const ThreadIds& b) { return (a.host == process) > (b.host == process); });
  return threads;
}

Result<bool> refresh_tree(std::vector<ProcessIds>& tree) {
  for (auto& process : tree) {
    auto status = kernel::read_status(process.host);
    if (!status && (process.zombie || status.error().kind == ErrorKind::gone)) return false;
    if (!status) return std::unexpected(status.error());
    if (process.zombie) continue;
    process.group = innermost(status->ns_pgid);
    process.session = innermost(status->ns_sid);
    process.status = std::move(*status);
    if (!process.shares_files && !process.shares_filesystem) continue;
    const auto parent = std::ranges::find(tree, process.parent, &ProcessIds::pod);
    if (parent == tree.end()) return false;
    process.shares_files = process.shares_files && shares(process.host, parent->host, KCMP_FILES);
    process.shares_filesystem = process.shares_filesystem && shares(process.host, parent->host, KCMP_FS);
  }
  return true;
}

Result<std::vector<ProcessIds>> read_tree(HostPid init) {
  std::vector<ProcessIds> tree;
  std::map<pid_t, PodPid> known{{init.value, PodPid{1}}};
  std::vector<HostPid> parents{init};
  // Children of one that ends while the tree is walked turn up where it has been already: it is walked until nobody new
  // is found.
  for (std::size_t before = 0; before != parents.size();) {
    before = parents.size();
    for (std::size_t next = 0; next < parents.size(); ++next) {
      auto children = read_children(parents[next]);
      if (!children) {
        if (children.error().kind == ErrorKind::gone || children.error().code == ENOENT) continue;
        return std::unexpected(children.error());
      }
      for (const auto child : *children) {
        if (known.contains(child.value)) continue;
        auto status = kernel::read_status(child);
        const auto stat = kernel::read_stat(child);
        if (!status || !stat) continue;  // it has gone meanwhile
        ProcessIds process{.host = child, .pod = innermost(status->ns_tgid)};
        process.parent = known[parents[next].value];
        process.group = innermost(status->ns_pgid);
        process.session = innermost(status->ns_sid);
        process.exit_signal = stat->exit_signal;
        process.exit_code = stat->exit_code;
        process.name = stat->name;
        auto threads = read_threads(child);
        if (threads) process.threads = std::move(*threads);
        process.zombie = process.threads.empty();
        // It may have ended since its state was read.
        if (process.zombie) process.exit_code = kernel::read_stat(child).value_or(*stat).exit_code;
        process.leader_exited = !process.zombie && process.threads.front().host != child;
        if (!process.zombie && parents[next] != init) {
          process.shares_files = shares(child, parents[next], KCMP_FILES);
          process.shares_filesystem = shares(child, parents[next], KCMP_FS);
          process.shares_memory = shares(child, parents[next], KCMP_VM);
        }
        process.status = std::move(*status);
        known[child.value] = process.pod;
        tree.push_back(std::move(process));
        parents.push_back(child);
      }
    }
  }
  return tree;
}

}  // namespace godwit::migrate
