#pragma once

#include <sys/types.h>

#include <array>
#include <map>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"

/// /proc as data. Every path is opened relative to a descriptor of the /proc that was mounted where the daemon started,
/// so that it works on threads that have entered a pod's mount namespace.
namespace godwit::kernel {

/// One line of /proc/PID/maps with the flags of smaps where asked for.
struct Mapping {
  RemoteAddress begin = 0;
  RemoteAddress end = 0;
  int protection = 0;  ///< PROT_*
  bool shared = false;
  std::uint64_t offset = 0;
  dev_t device = 0;
  ino_t inode = 0;
  std::string name;      ///< path, [heap], [stack], [vdso], [vvar], [anon:…] or empty
  std::string vm_flags;  ///< "rd wr mr …" from smaps; empty when read from maps
  [[nodiscard]] std::uint64_t size() const { return end - begin; }
  bool operator==(const Mapping&) const = default;
};

/// /proc/PID/status, only what godwit needs.
struct Status {
  std::string name;
  char state = '?';
  int umask = 0;
  HostPid parent;
  std::array<uid_t, 4> uids{};  ///< real, effective, saved, filesystem
  std::array<gid_t, 4> gids{};
  std::vector<gid_t> groups;
  std::vector<pid_t> ns_tgid, ns_pid, ns_pgid, ns_sid;  ///< outermost first; the pod's is the last
  std::uint64_t blocked = 0, ignored = 0, caught = 0;
  std::uint64_t cap_inheritable = 0, cap_permitted = 0, cap_effective = 0, cap_bounding = 0, cap_ambient = 0;
  bool no_new_privileges = false;
  int seccomp = 0;
  int seccomp_filters = 0;
  std::uint64_t resident_bytes = 0, swap_bytes = 0;
};

/// /proc/PID/stat, only what godwit needs.
struct Stat {
  std::string name;
  char state = '?';
  pid_t parent = 0, group = 0, session = 0;
  int tty = 0;
  int exit_signal = 0;
  int exit_code = 0;             ///< raw wait status of a zombie
  std::uint64_t start_time = 0;  ///< clock ticks since boot: with the pid, a process's identity
  RemoteAddress start_code = 0, end_code = 0, start_stack = 0, start_data = 0, end_data = 0, start_brk = 0,
                arg_start = 0, arg_end = 0, env_start = 0, env_end = 0;
};

/// A descriptor in the process's table, seen without duplicating it.
struct DescriptorEntry {
  int number = -1;
  std::string link;  ///< readlink of /proc/PID/fd/N
  std::uint64_t position = 0;
  int flags = 0;  ///< open flags, O_CLOEXEC being the descriptor's own
  int mount_id = 0;
  std::string info;  ///< the whole fdinfo text, for what is specific to a kind
};

Result<std::vector<Mapping>> read_maps(HostPid);
/// `headers` gets the text that /proc/PID/maps had at the same moment.
Result<std::vector<Mapping>> read_smaps(HostPid, std::string* headers = nullptr);
/// The text of /proc/PID/maps. Equal texts are equal mappings: comparing is much faster than understanding.
Result<std::string> read_maps_text(HostPid);
Result<std::vector<Mapping>> parse_maps(HostPid, std::string_view text);
/// Whether the file of this very mapping was opened for writing. What smaps tells ("sh" of a shared one), at a system
/// call's price.
Result<bool> mapped_for_writing(HostPid, const Mapping&);
Result<Status> read_status(HostPid);
Result<Stat> read_stat(HostPid);
Result<std::vector<HostPid>> list_threads(HostPid);
Result<std::vector<int>> list_descriptors(HostPid);
Result<DescriptorEntry> read_descriptor(HostPid, int number);
/// Whole small file /proc/PID/NAME.
Result<std::string> read_file(HostPid, std::string_view name);
Result<std::string> read_link(HostPid, std::string_view name);
/// An O_PATH-or-other descriptor of /proc/PID/NAME.
Result<Fd> open_file(HostPid, std::string_view name, int flags);
/// The directory /proc itself, opened when the program started.
int proc_directory();

}  // namespace godwit::kernel
