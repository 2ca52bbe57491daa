#include "migrate/source_descriptors.hpp"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <tuple>

#include "base/both.hpp"
#include "kernel/pidfd.hpp"
#include "kernel/procfs.hpp"
#include "objects/common.hpp"

namespace godwit::migrate {

namespace {

/// How the kernel orders two descriptions: 0 when they are the same one.
long compare(int a, int b) {
  const pid_t self = ::getpid();
  const long order = ::syscall(SYS_kcmp, self, self, KCMP_FILE, a, b);
  return order == 2 ? -1 : order;
}

std::string link_of(int fd, const struct stat& status) {
  if (S_ISSOCK(status.st_mode)) return fmt::format("socket:[{}]", status.st_ino);
  auto link = kernel::read_link(HostPid{::getpid()}, fmt::format("fd/{}", fd));
  return link.value_or("?");
}

std::string where(const objects::Descriptor& descriptor) {
  const auto& holder = descriptor.holders.front();
  return fmt::format("process {}, descriptor {} ({})", holder.process.value, holder.number, descriptor.link);
}

}  // namespace

Result<SourceDescriptors::Pod> SourceDescriptors::look_at(pod::Pod& pod) {
  Pod facts{.upper = pod.upper(), .root = fmt::format("/proc/{}/root", pod.init().value)};
  std::vector<std::string> programs{""};
  for (const auto& execution : TRY(pod.executions())) programs.push_back(execution.id);
  for (const auto& program : programs) {
    for (const auto& [name, fd] : TRY(pod.streams(program))) {
      struct stat status {};
      if (::fstat(fd.get(), &status) == 0) facts.streams.emplace(std::pair{status.st_dev, status.st_ino}, name);
    }
  }
  return facts;
}

Result<void> SourceDescriptors::duplicate(int pidfd, PodPid process, std::span<const int> numbers,
                                          std::vector<Entry>& into) {
  into.reserve(numbers.size());
  for (const int number : numbers) {
    auto fd = kernel::pidfd_getfd(pidfd, number);
    if (!fd) {
      if (fd.error().code == EBADF || fd.error().kind == ErrorKind::gone) continue;
      return std::unexpected(
          std::move(fd).error().within(fmt::format("process {}, descriptor {}", process.value, number)));
    }
    Entry entry{.process = process, .number = number, .fd = std::move(*fd)};
    if (::fstat(entry.fd.get(), &entry.status) != 0)
      return fail_errno("stat descriptor {} of process {}", number, process.value);
    entry.flags = ::fcntl(entry.fd.get(), F_GETFL);
    into.push_back(std::move(entry));
  }
  return {};
}

Result<SourceDescriptors> SourceDescriptors::open(const Pod& pod, const std::vector<ProcessIds>& processes) {
  SourceDescriptors all(pod);
  all.processes_ = processes;
  for (const auto& process : processes) {
    // A table that is the parent's is seen there.
    if (process.zombie || process.shares_files) continue;
    // An exited leader has no table any more; a living thread has.
    const HostPid holder = process.threads.front().host;
    auto pidfd = kernel::pidfd_open(holder, process.leader_exited);
    auto numbers = kernel::list_descriptors(holder);
    if (!pidfd || !numbers) continue;  // it has ended meanwhile
    std::vector<Entry> first, second;
    constexpr std::size_t worth_a_thread = 256;
    const auto half = numbers->size() < worth_a_thread ? 0 : numbers->size() / 2;
    const auto front = [&] { return duplicate(pidfd->get(), process.pod, std::span(*numbers).first(half), first); };
    const auto back = [&] { return duplicate(pidfd->get(), process.pod, std::span(*numbers).subspan(half), second); };
    TRY(half == 0 ? back() : both(front, back));
    auto& listed = all.numbers_[process.pod.value];
    for (auto* part : {&first, &second}) {
      for (auto& entry : *part) {
        listed.push_back(entry.number);
        all.entries_.push_back(std::move(entry));
      }
    }
  }
  all.group();
  return all;
}

void SourceDescriptors::group() {
  std::vector<Entry*> order;
  for (auto& entry : entries_) order.push_back(&entry);
  const auto coarse = [](const Entry& e) {
    return std::tuple(e.status.st_dev, e.status.st_ino, e.status.st_mode, e.flags);
  };
  const auto same = [&](const Entry& a, const Entry& b) {
    if (coarse(a) != coarse(b)) return false;
    return S_ISSOCK(a.status.st_mode) || compare(a.fd.get(), b.fd.get()) == 0;
  };
  std::ranges::stable_sort(order, [&](const Entry* a, const Entry* b) {
    if (coarse(*a) != coarse(*b)) return coarse(*a) < coarse(*b);
    return !S_ISSOCK(a->status.st_mode) && compare(a->fd.get(), b->fd.get()) < 0;
  });
  for (std::size_t i = 0; i < order.size(); ++i) {
    Entry& entry = *order[i];
    if (i == 0 || !same(*order[i - 1], entry)) {
      objects::Descriptor descriptor;
      descriptor.id = static_cast<objects::ObjectId>(descriptors_.size());
      descriptor.fd = entry.fd.get();
      descriptor.status = entry.status;
      descriptor.flags = entry.flags;
      descriptor.link = link_of(entry.fd.get(), entry.status);
      descriptor.stream = stream(entry.status).value_or("");
      descriptors_.push_back(std::move(descriptor));
    }
    entry.id = descriptors_.back().id;
    descriptors_.back().holders.push_back({entry.process, entry.number, false});
    by_number_[{entry.process.value, entry.number}] = entry.id;
  }
}

const std::vector<int>& SourceDescriptors::numbers(PodPid process) const {
  static const std::vector<int> none;
  const auto found = numbers_.find(process.value);
  return found == numbers_.end() ? none : found->second;
}

bool SourceDescriptors::still_held(const objects::Descriptor& descriptor) const {
  return std::ranges::any_of(descriptor.holders, [&](const objects::Holder& holder) {
    const auto host = host_pid(holder.process);
    if (!host) return false;
    const auto now = kernel::read_descriptor(*host, holder.number);
    return now && now->link == descriptor.link;
  });
}

std::vector<std::string> SourceDescriptors::preflight() {
  std::vector<std::string> refusals;
  for (const auto& descriptor : descriptors_) {
    const auto* kind = objects::kind_of(descriptor);
    if (kind == nullptr) {
      refusals.push_back(fmt::format("{}: this kind of object can't be moved yet; close it or stop the process first",
                                     where(descriptor)));
      continue;
    }
    auto checked = kind->preflight(descriptor, *this);
    // The pod runs: what it has closed meanwhile is no obstacle.
    if (!checked && !still_held(descriptor)) continue;
    if (!checked) refusals.push_back(fmt::format("{}: {}", where(descriptor), checked.error().message()));
  }
  return refusals;
}

Result<void> SourceDescriptors::look_ahead(HostPid init, const std::vector<ProcessIds>& processes,
                                           objects::AheadSource& ahead,
                                           const std::function<Result<void>(std::vector<objects::AheadImage>)>& send) {
  // A duplicate keeps what the program closes from telling its other end: they are held for milliseconds.
  constexpr std::size_t at_once = 64;
  for (const auto& process : processes) {
    if (process.zombie || process.shares_files) continue;
    const HostPid holder = process.threads.front().host;
    const auto pidfd = kernel::pidfd_open(holder, process.leader_exited);
    const auto numbers = kernel::list_descriptors(holder);
    // It has ended meanwhile; its number may be somebody else's.
    if (!pidfd || !numbers || !is_of(init, process.pod, holder)) continue;
    for (auto next = numbers->begin(); next != numbers->end();) {
      std::vector<Fd> duplicates;
      std::vector<objects::Descriptor> sockets;
      for (; next != numbers->end() && duplicates.size() < at_once; ++next) {
        auto fd = kernel::pidfd_getfd(pidfd->get(), *next);
        objects::Descriptor descriptor;
        if (!fd || ::fstat(fd->get(), &descriptor.status) != 0 || !S_ISSOCK(descriptor.status.st_mode)) continue;
        descriptor.fd = fd->get();
        descriptor.flags = ::fcntl(fd->get(), F_GETFL);
        descriptor.holders.push_back({process.pod, *next, false});
        duplicates.push_back(std::move(*fd));
        sockets.push_back(std::move(descriptor));
      }
      auto images = TRY(ahead.look(sockets));
      duplicates.clear();
      if (!images.empty()) TRY(send(std::move(images)));
    }
  }
  return {};
}

Result<std::vector<objects::Kept>> SourceDescriptors::keep(objects::AheadSource& ahead) {
  std::vector<objects::Kept> all;
  TRY(ahead.compare(*this));
  for (const auto& descriptor : descriptors_) {
    auto kept = ahead.keep(descriptor, *this);
    if (!kept) return std::unexpected(std::move(kept).error().within(where(descriptor)));
    if (!*kept) continue;
    kept_.insert(descriptor.id);
    all.push_back(std::move(**kept));
  }
  return all;
}

Result<std::vector<objects::Image>> SourceDescriptors::capture() {
  std::vector<objects::Image> images(descriptors_.size());
  for (const auto& descriptor : descriptors_) {
    if (kept_.contains(descriptor.id)) continue;
    const auto* kind = objects::kind_of(descriptor);
    if (kind == nullptr)
      return fail(ErrorKind::refused, "{}: this kind of object can't be moved yet", where(descriptor));
    auto state = kind->capture(descriptor, *this);
    if (!state) return std::unexpected(std::move(state).error().within(where(descriptor)));
    const auto common = TRY(objects::capture_common(descriptor, *this));
    images[descriptor.id] = {std::string(kind->name), std::move(*state), common.empty() ? Bytes{} : image::pack(common),
                             descriptor.holders};
  }
  return images;
}

std::optional<objects::ObjectId> SourceDescriptors::find(PodPid process, int number) const {
  const auto found = by_number_.find({process.value, number});
  return found == by_number_.end() ? std::nullopt : std::optional(found->second);
}

std::optional<std::string> SourceDescriptors::stream(const struct stat& status) const {
  const auto found = pod_->streams.find({status.st_dev, status.st_ino});
  return found == pod_->streams.end() ? std::nullopt : std::optional(found->second);
}

std::optional<PodPid> SourceDescriptors::pod_pid(HostPid host) const {
  for (const auto& process : processes_)
    for (const auto& thread : process.threads)
      if (thread.host == host) return thread.pod;
  return std::nullopt;
}

std::optional<HostPid> SourceDescriptors::host_pid(PodPid pod) const {
  for (const auto& process : processes_) {
    for (const auto& thread : process.threads)
      if (thread.pod == pod) return thread.host;
    // What /proc says about a process whose leader has exited, it says about the threads that live.
    if (process.pod == pod && !process.threads.empty()) return process.threads.front().host;
  }
  return std::nullopt;
}

}  // namespace godwit::migrate
