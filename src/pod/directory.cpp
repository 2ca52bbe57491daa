#include "pod/directory.hpp"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "base/fd.hpp"
#include "base/log.hpp"
#include "base/names.hpp"
#include "base/remove_tree.hpp"
#include "kernel/pidfd.hpp"
#include "kernel/procfs.hpp"
#include "pod/root.hpp"

namespace godwit::pod {

namespace {

constexpr std::size_t record_limit = 4 * MiB;
constexpr const char* said_here = "/said-here";
constexpr const char* said_there = "/said-there";

Result<std::optional<Bytes>> read_whole(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file && errno == ENOENT) return std::nullopt;
  if (!file) return fail_errno("open {}", path);
  Bytes bytes(record_limit + 1);
  const ssize_t got = ::read(file.get(), bytes.data(), bytes.size());
  if (got < 0) return fail_errno("read {}", path);
  if (static_cast<std::size_t>(got) > record_limit) return fail(ErrorKind::invalid, "{} is over the limit", path);
  bytes.resize(static_cast<std::size_t>(got));
  return bytes;
}

Result<void> write_whole(const std::string& path, BytesView bytes) {
  const Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file) return fail_errno("open {}", path);
  if (::write(file.get(), bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size()))
    return fail_errno("write {}", path);
  return {};
}

bool exists(const std::string& path) {
  return access(path.c_str(), F_OK) == 0;
}

/// What counts is that it is there.
Result<void> make_mark(const std::string& path) {
  const Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  if (!file) return fail_errno("make {}", path);
  return {};
}

Result<void> remove_mark(const std::string& path) {
  if (unlink(path.c_str()) != 0 && errno != ENOENT) return fail_errno("remove {}", path);
  return {};
}

}  // namespace

Result<void> write_word(const std::string& directory, bool here) {
  return make_mark(directory + (here ? said_here : said_there));
}

std::optional<bool> read_word(const std::string& directory) {
  if (exists(directory + said_here)) return true;
  if (exists(directory + said_there)) return false;
  return std::nullopt;
}

Result<void> forget_word(const std::string& directory) {
  TRY(remove_mark(directory + said_here));
  return remove_mark(directory + said_there);
}

Result<void> check_name(const std::string& name) {
  if (valid_name(name)) return {};
  return fail(ErrorKind::invalid, "\"{}\" is no name for a pod: lower-case letters, digits, '.' and '-', at most 63",
              name);
}

Result<void> make_path(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) {
    errno = error.value();
    return fail_errno("mkdir {}", path);
  }
  return {};
}

Directory::Directory(const std::string& state_dir, const std::string& run_dir, const std::string& name)
    : state_dir_(state_dir),
      name_(name),
      path_(fmt::format("{}/pods/{}", state_dir, name)),
      socket_(fmt::format("{}/pods/{}.sock", run_dir, name)) {}

Result<void> Directory::make(const Spec& spec) {
  TRY(check_name(spec.name));
  const auto record = TRY(read_record());
  if (record && alive(*record)) return fail(ErrorKind::busy, "pod {} is on this node already", spec.name);
  const auto left = TRY(read_whole(path_ + "/left"));
  if (left && std::string(left->begin(), left->end()) == spec.id) {
    for (const auto& stale : {upper(), work(), merged(), path_ + "/left"}) TRY(remove_tree(stale));
  } else {
    TRY(clear());
  }
  TRY(make_path(state_dir_ + "/pods"));
  TRY(make_path(socket_.substr(0, socket_.rfind('/'))));
  if (chmod((state_dir_ + "/pods").c_str(), 0700) != 0) return fail_errno("chmod {}/pods", state_dir_);
  TRY(check_upper_place(state_dir_ + "/pods"));
  for (const auto& directory : {upper(), work(), merged(), log()}) TRY(make_path(directory));
  // What the pod sees as the rights of its root directory.
  struct stat root {};
  if (stat("/", &root) == 0 && chmod(upper().c_str(), root.st_mode & 07777) != 0)
    return fail_errno("chmod {}", upper());
  return {};
}

Result<void> Directory::write_record(const Record& record) const {
  const std::string whole = path_ + "/record";
  const std::string part = whole + ".new";
  TRY(write_whole(part, image::pack(record)));
  if (rename(part.c_str(), whole.c_str()) != 0) return fail_errno("rename {}", part);
  return {};
}

Result<std::optional<Record>> Directory::read_record() const {
  const auto bytes = TRY(read_whole(path_ + "/record"));
  if (!bytes) return std::nullopt;
  return TRY(image::unpack<Record>(*bytes));
}

Result<void> Directory::mark_kept() const {
  return make_mark(path_ + "/kept");
}

Result<void> Directory::mark_forsaken() const {
  return remove_mark(path_ + "/kept");
}

bool Directory::alive(const Record& record) {
  const auto stat = kernel::read_stat(HostPid{record.init});
  return stat && stat->start_time == record.start_time && stat->state != 'Z';
}

Result<void> Directory::clear() const {
  if (!exists(path_)) return {};
  const auto record = TRY(read_record());
  if (record) {
    // The pidfd first, then the look: what we kill is what we looked at.
    const auto pidfd = kernel::pidfd_open(HostPid{record->init});
    if (pidfd && alive(*record)) {
      TRY(kernel::pidfd_send_signal(pidfd->get(), SIGKILL));
      pollfd end{pidfd->get(), POLLIN, 0};
      if (poll(&end, 1, 10'000) == 0)
        return fail(ErrorKind::timeout, "the init of what is left of {} doesn't end", name_);
    }
    TRY(remove_cgroups(record->cgroups));
  }
  unlink(socket_.c_str());
  if (!exists(path_ + "/kept")) return remove_tree(path_);
  TRY(make_path(state_dir_ + "/lost"));
  std::string lost = fmt::format("{}/lost/{}-{}", state_dir_, name_, record ? record->spec.id : "");
  for (int i = 1; exists(lost); ++i) lost = fmt::format("{}/lost/{}.{}", state_dir_, name_, i);
  if (rename(path_.c_str(), lost.c_str()) != 0) return fail_errno("move {} to {}", path_, lost);
  log::warn("pod {} has died without us (a crash of the machine or of its init); its files are in {}", name_, lost);
  return {};
}

Result<void> Directory::remove() const {
  unlink(socket_.c_str());
  return remove_tree(path_);
}

Result<void> Directory::leave(const std::string& id) const {
  unlink(socket_.c_str());
  TRY(write_whole(path_ + "/left", BytesView(reinterpret_cast<const std::uint8_t*>(id.data()), id.size())));
  for (const char* name : {"/work", "/merged", "/record", "/kept"}) TRY(remove_tree(path_ + name));
  return {};
}

Result<std::vector<std::string>> Directory::all(const std::string& state_dir) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(state_dir + "/pods", error), end; !error && entry != end;
       entry.increment(error))
    names.push_back(entry->path().filename());
  if (error && error != std::errc::no_such_file_or_directory) {
    errno = error.value();
    return fail_errno("read {}/pods", state_dir);
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace godwit::pod
