#include "kernel/procfs.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <memory>

namespace godwit::kernel {

namespace {

/// 65,530 mappings (the kernel's own default limit) with long paths; smaps has some 1.2 KB more for each.
constexpr std::size_t most_maps_bytes = 64 * 1024 * 1024;
constexpr std::size_t most_smaps_bytes = 160 * 1024 * 1024;
constexpr std::size_t most_file_bytes = 8 * 1024 * 1024;

/// The start of the program, before anybody can have entered a pod's mount namespace.
const int opened_at_start = proc_directory();

using PathText = std::array<char, 96>;

Result<PathText> path_of(HostPid pid, std::string_view name) {
  PathText path{};
  const auto written = fmt::format_to_n(path.data(), path.size() - 1, "{}/{}", pid.value, name);
  if (written.size >= path.size())
    return fail(ErrorKind::invalid, "/proc/{}/{}: the name is too long", pid.value, name);
  return path;
}

/// ENOENT below /proc/PID means that the process has ended, or that there is no such file: look which.
std::unexpected<Error> fail_in(HostPid pid, std::string_view verb, std::string_view name) {
  const int code = errno;
  bool gone = code == ESRCH;
  if (code == ENOENT) {
    const std::string directory = std::to_string(pid.value);
    gone = ::faccessat(proc_directory(), directory.c_str(), F_OK, 0) < 0;
  }
  return std::unexpected(Error{
      gone ? ErrorKind::gone : ErrorKind::failed, fmt::format("{} /proc/{}/{}", verb, pid.value, name), code, {}});
}

Result<std::string> read_bounded(HostPid pid, std::string_view name, std::size_t limit) {
  const Fd fd = TRY(open_file(pid, name, O_RDONLY));
  std::string text;
  std::size_t used = 0;
  while (true) {
    if (text.size() - used < 4096) text.resize(std::max<std::size_t>(16 * 1024, text.size() * 2));
    const ssize_t got = ::read(fd.get(), text.data() + used, text.size() - used);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_in(pid, "read", name);
    if (got == 0) break;
    used += static_cast<std::size_t>(got);
    if (used > limit) return fail(ErrorKind::refused, "/proc/{}/{} has more than {} bytes", pid.value, name, limit);
  }
  text.resize(used);
  return text;
}

/// Walks through one line; every step says whether it found what it expected.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : at_(text.data()), end_(text.data() + text.size()) {}

  bool hexadecimal(std::uint64_t& value) { return number(value, 16); }
  template <typename T>
  bool decimal(T& value) {
    return number(value, 10);
  }
  template <typename T>
  bool number(T& value, int base) {
    const auto [next, error] = std::from_chars(at_, end_, value, base);
    if (error != std::errc{}) return false;
    at_ = next;
    return true;
  }
  bool literal(char expected) {
    if (at_ == end_ || *at_ != expected) return false;
    ++at_;
    return true;
  }
  bool character(char& value) {
    if (at_ == end_) return false;
    value = *at_++;
    return true;
  }
  void blanks() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\t')) ++at_;
  }
  [[nodiscard]] std::string_view rest() const { return {at_, static_cast<std::size_t>(end_ - at_)}; }

 private:
  const char* at_;
  const char* end_;
};

/// Calls `visit(line)` for each line of `text`; false stops it.
template <typename Visit>
bool each_line(std::string_view text, Visit visit) {
  while (!text.empty()) {
    const std::size_t length = std::min(text.find('\n'), text.size());
    if (!visit(text.substr(0, length))) return false;
    text.remove_prefix(std::min(length + 1, text.size()));
  }
  return true;
}

/// seq_file writes a newline in a path as \012 (and nothing else of a path in maps).
std::string unescape(std::string_view name) {
  std::string plain(name);
  for (std::size_t at = plain.find("\\012"); at != std::string::npos; at = plain.find("\\012", at + 1))
    plain.replace(at, 4, "\n");
  return plain;
}

bool parse_mapping(std::string_view line, Mapping& mapping) {
  Cursor cursor(line);
  char r = 0, w = 0, x = 0, s = 0;
  std::uint64_t major_number = 0, minor_number = 0;
  if (!cursor.hexadecimal(mapping.begin) || !cursor.literal('-') || !cursor.hexadecimal(mapping.end) ||
      !cursor.literal(' ') || !cursor.character(r) || !cursor.character(w) || !cursor.character(x) ||
      !cursor.character(s) || !cursor.literal(' ') || !cursor.hexadecimal(mapping.offset) || !cursor.literal(' ') ||
      !cursor.hexadecimal(major_number) || !cursor.literal(':') || !cursor.hexadecimal(minor_number) ||
      !cursor.literal(' ') || !cursor.decimal(mapping.inode))
    return false;
  mapping.protection = (r == 'r' ? PROT_READ : 0) | (w == 'w' ? PROT_WRITE : 0) | (x == 'x' ? PROT_EXEC : 0);
  mapping.shared = s == 's';
  mapping.device = makedev(major_number, minor_number);
  cursor.blanks();
  mapping.name = unescape(cursor.rest());
  return true;
}

Result<std::vector<Mapping>> parse_maps(HostPid pid, std::string_view text, bool detailed, std::string* headers) {
  std::vector<Mapping> mappings;
  if (!detailed) mappings.reserve(static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')));
  const bool good = each_line(text, [&](std::string_view line) {
    // Between two mappings smaps has lines that begin with a capital; a mapping begins with a hexadecimal digit in
    // lower case.
    if (detailed && !line.empty() && line[0] >= 'A' && line[0] <= 'Z') {
      constexpr std::string_view key = "VmFlags: ";
      if (line.starts_with(key) && !mappings.empty()) {
        std::string_view flags = line.substr(key.size());
        while (!flags.empty() && flags.back() == ' ') flags.remove_suffix(1);
        mappings.back().vm_flags = flags;
      }
      return true;
    }
    if (headers != nullptr) headers->append(line).push_back('\n');
    return parse_mapping(line, mappings.emplace_back());
  });
  if (!good) return fail(ErrorKind::invalid, "/proc/{}/maps has a line that can't be understood", pid.value);
  return mappings;
}

/// Numbers between blanks, up to the end of the line.
template <typename T>
bool parse_list(std::string_view text, std::vector<T>& list) {
  Cursor cursor(text);
  cursor.blanks();
  while (!cursor.rest().empty()) {
    T value{};
    if (!cursor.decimal(value)) return false;
    list.push_back(value);
    cursor.blanks();
  }
  return true;
}

template <typename T>
bool parse_four(std::string_view text, std::array<T, 4>& four) {
  std::vector<T> list;
  if (!parse_list(text, list) || list.size() != four.size()) return false;
  std::copy(list.begin(), list.end(), four.begin());
  return true;
}

bool parse_hexadecimal(std::string_view text, std::uint64_t& value) {
  return Cursor(text).hexadecimal(value);
}

template <typename T>
bool parse_number(std::string_view text, T& value, int base = 10) {
  return Cursor(text).number(value, base);
}

bool parse_kilobytes(std::string_view text, std::uint64_t& bytes) {
  if (!parse_number(text, bytes)) return false;
  bytes *= 1024;
  return true;
}

/// False when a field that is known can't be understood.
bool parse_status_field(std::string_view key, std::string_view value, Status& status) {
  if (key == "Name") status.name = value;
  if (key == "State") status.state = value.empty() ? '?' : value[0];
  if (key == "Umask") return parse_number(value, status.umask, 8);
  if (key == "PPid") return parse_number(value, status.parent.value);
  if (key == "Uid") return parse_four(value, status.uids);
  if (key == "Gid") return parse_four(value, status.gids);
  if (key == "Groups") return parse_list(value, status.groups);
  if (key == "NStgid") return parse_list(value, status.ns_tgid);
  if (key == "NSpid") return parse_list(value, status.ns_pid);
  if (key == "NSpgid") return parse_list(value, status.ns_pgid);
  if (key == "NSsid") return parse_list(value, status.ns_sid);
  if (key == "SigBlk") return parse_hexadecimal(value, status.blocked);
  if (key == "SigIgn") return parse_hexadecimal(value, status.ignored);
  if (key == "SigCgt") return parse_hexadecimal(value, status.caught);
  if (key == "CapInh") return parse_hexadecimal(value, status.cap_inheritable);
  if (key == "CapPrm") return parse_hexadecimal(value, status.cap_permitted);
  if (key == "CapEff") return parse_hexadecimal(value, status.cap_effective);
  if (key == "CapBnd") return parse_hexadecimal(value, status.cap_bounding);
  if (key == "CapAmb") return parse_hexadecimal(value, status.cap_ambient);
  if (key == "NoNewPrivs") status.no_new_privileges = value == "1";
  if (key == "Seccomp") return parse_number(value, status.seccomp);
  if (key == "Seccomp_filters") return parse_number(value, status.seccomp_filters);
  if (key == "VmRSS") return parse_kilobytes(value, status.resident_bytes);
  if (key == "VmSwap") return parse_kilobytes(value, status.swap_bytes);
  return true;
}

struct CloseDirectory {
  void operator()(DIR* directory) const { ::closedir(directory); }
};

/// The entries of /proc/PID/NAME that are numbers, in ascending order.
Result<std::vector<int>> list_numbers(HostPid pid, std::string_view name) {
  Fd fd = TRY(open_file(pid, name, O_RDONLY | O_DIRECTORY));
  const std::unique_ptr<DIR, CloseDirectory> directory(::fdopendir(fd.get()));
  if (!directory) return fail_in(pid, "list", name);
  (void)fd.release();
  std::vector<int> numbers;
  while (true) {
    errno = 0;
    const dirent* entry = ::readdir(directory.get());
    if (entry == nullptr && errno != 0) return fail_in(pid, "list", name);
    if (entry == nullptr) break;
    int number = 0;
    if (parse_number(entry->d_name, number)) numbers.push_back(number);
  }
  std::sort(numbers.begin(), numbers.end());
  return numbers;
}

}  // namespace

int proc_directory() {
  static const int directory = ::open("/proc", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  return directory;
}

Result<Fd> open_file(HostPid pid, std::string_view name, int flags) {
  const PathText path = TRY(path_of(pid, name));
  const int fd = ::openat(proc_directory(), path.data(), flags | O_CLOEXEC);
  if (fd < 0) return fail_in(pid, "open", name);
  return Fd(fd);
}

Result<std::string> read_file(HostPid pid, std::string_view name) {
  return read_bounded(pid, name, most_file_bytes);
}

Result<std::string> read_link(HostPid pid, std::string_view name) {
  const PathText path = TRY(path_of(pid, name));
  // The kernel builds a link's text in one page.
  std::array<char, page_size + 1> target;
  const ssize_t length = ::readlinkat(proc_directory(), path.data(), target.data(), target.size());
  if (length < 0) return fail_in(pid, "read the link", name);
  return std::string(target.data(), static_cast<std::size_t>(length));
}

Result<std::string> read_maps_text(HostPid pid) {
  return read_bounded(pid, "maps", most_maps_bytes);
}

Result<std::vector<Mapping>> parse_maps(HostPid pid, std::string_view text) {
  return parse_maps(pid, text, false, nullptr);
}

Result<std::vector<Mapping>> read_maps(HostPid pid) {
  return parse_maps(pid, TRY(read_maps_text(pid)));
}

Result<std::vector<Mapping>> read_smaps(HostPid pid, std::string* headers) {
  return parse_maps(pid, TRY(read_bounded(pid, "smaps", most_smaps_bytes)), true, headers);
}

Result<bool> mapped_for_writing(HostPid pid, const Mapping& mapping) {
  const std::string name = fmt::format("map_files/{:x}-{:x}", mapping.begin, mapping.end);
  const PathText path = TRY(path_of(pid, name));
  struct stat link {};
  if (::fstatat(proc_directory(), path.data(), &link, AT_SYMLINK_NOFOLLOW) != 0) return fail_in(pid, "stat", name);
  return (link.st_mode & S_IWUSR) != 0;
}

Result<Status> read_status(HostPid pid) {
  const std::string text = TRY(read_file(pid, "status"));
  Status status;
  const bool good = each_line(text, [&](std::string_view line) {
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) return false;
    std::string_view value = line.substr(colon + 1);
    while (!value.empty() && (value[0] == '\t' || value[0] == ' ')) value.remove_prefix(1);
    return parse_status_field(line.substr(0, colon), value, status);
  });
  if (!good) return fail(ErrorKind::invalid, "/proc/{}/status has a line that can't be understood", pid.value);
  return status;
}

Result<Stat> read_stat(HostPid pid) {
  const std::string text = TRY(read_file(pid, "stat"));
  // The name stands in brackets and may hold brackets and blanks of its own: the last one ends it.
  const std::size_t open = text.find('(');
  const std::size_t close = text.rfind(')');
  if (open == std::string::npos || close == std::string::npos || close < open || close + 2 >= text.size())
    return fail(ErrorKind::invalid, "/proc/{}/stat can't be understood", pid.value);
  Stat stat;
  stat.name = text.substr(open + 1, close - open - 1);
  Cursor cursor(std::string_view(text).substr(close + 2));
  // Fields as numbered in proc(5): 3 is the state, 52 the exit code.
  constexpr int first_field = 4, last_field = 52;
  std::array<std::uint64_t, last_field + 1> field{};
  if (!cursor.character(stat.state)) return fail(ErrorKind::invalid, "/proc/{}/stat has no state", pid.value);
  for (int i = first_field; i <= last_field; ++i) {
    cursor.blanks();
    std::int64_t negative = 0;
    auto& value = field[static_cast<std::size_t>(i)];
    if (cursor.decimal(value)) continue;
    if (!cursor.decimal(negative)) return fail(ErrorKind::invalid, "/proc/{}/stat: field {} is missing", pid.value, i);
    value = static_cast<std::uint64_t>(negative);
  }
  stat.parent = static_cast<pid_t>(field[4]);
  stat.group = static_cast<pid_t>(field[5]);
  stat.session = static_cast<pid_t>(field[6]);
  stat.tty = static_cast<int>(field[7]);
  stat.start_time = field[22];
  stat.start_code = field[26];
  stat.end_code = field[27];
  stat.start_stack = field[28];
  stat.exit_signal = static_cast<int>(field[38]);
  stat.start_data = field[45];
  stat.end_data = field[46];
  stat.start_brk = field[47];
  stat.arg_start = field[48];
  stat.arg_end = field[49];
  stat.env_start = field[50];
  stat.env_end = field[51];
  stat.exit_code = static_cast<int>(field[52]);
  return stat;
}

Result<std::vector<HostPid>> list_threads(HostPid pid) {
  std::vector<HostPid> threads;
  for (const int tid : TRY(list_numbers(pid, "task"))) threads.push_back(HostPid{tid});
  return threads;
}

Result<std::vector<int>> list_descriptors(HostPid pid) {
  return list_numbers(pid, "fd");
}

Result<DescriptorEntry> read_descriptor(HostPid pid, int number) {
  DescriptorEntry entry;
  entry.number = number;
  entry.link = TRY(read_link(pid, fmt::format("fd/{}", number)));
  entry.info = TRY(read_file(pid, fmt::format("fdinfo/{}", number)));
  // The common part comes first and ends with `ino` (since 5.14); a kind may have lines of the same names further down.
  bool understood = true;
  each_line(entry.info, [&](std::string_view line) {
    const std::size_t colon = line.find(':');
    if (colon == std::string_view::npos) return true;
    const std::string_view key = line.substr(0, colon);
    Cursor cursor(line.substr(colon + 1));
    cursor.blanks();
    std::int64_t position = 0;
    if (key == "pos") {
      understood = cursor.decimal(position);
      entry.position = static_cast<std::uint64_t>(position);
    }
    if (key == "flags") understood = cursor.number(entry.flags, 8);
    if (key == "mnt_id") understood = cursor.decimal(entry.mount_id);
    return understood && key != "ino";
  });
  if (!understood) return fail(ErrorKind::invalid, "/proc/{}/fdinfo/{} can't be understood", pid.value, number);
  return entry;
}

}  // namespace godwit::kernel
