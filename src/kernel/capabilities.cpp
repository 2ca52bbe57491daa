#include "kernel/capabilities.hpp"

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string_view>

namespace godwit::kernel {
namespace {

/// By number, linux/capability.h.
constexpr std::array<std::string_view, 41> names{"CHOWN",
                                                 "DAC_OVERRIDE",
                                                 "DAC_READ_SEARCH",
                                                 "FOWNER",
                                                 "FSETID",
                                                 "KILL",
                                                 "SETGID",
                                                 "SETUID",
                                                 "SETPCAP",
                                                 "LINUX_IMMUTABLE",
                                                 "NET_BIND_SERVICE",
                                                 "NET_BROADCAST",
                                                 "NET_ADMIN",
                                                 "NET_RAW",
                                                 "IPC_LOCK",
                                                 "IPC_OWNER",
                                                 "SYS_MODULE",
                                                 "SYS_RAWIO",
                                                 "SYS_CHROOT",
                                                 "SYS_PTRACE",
                                                 "SYS_PACCT",
                                                 "SYS_ADMIN",
                                                 "SYS_BOOT",
                                                 "SYS_NICE",
                                                 "SYS_RESOURCE",
                                                 "SYS_TIME",
                                                 "SYS_TTY_CONFIG",
                                                 "MKNOD",
                                                 "LEASE",
                                                 "AUDIT_WRITE",
                                                 "AUDIT_CONTROL",
                                                 "SETFCAP",
                                                 "MAC_OVERRIDE",
                                                 "MAC_ADMIN",
                                                 "SYSLOG",
                                                 "WAKE_ALARM",
                                                 "BLOCK_SUSPEND",
                                                 "AUDIT_READ",
                                                 "PERFMON",
                                                 "BPF",
                                                 "CHECKPOINT_RESTORE"};

using Data = std::array<__user_cap_data_struct, 2>;

constexpr __user_cap_header_struct header_of(HostPid thread) {
  return {.version = _LINUX_CAPABILITY_VERSION_3, .pid = thread.value};
}

}  // namespace

int last_capability() {
  static const int last = [] {
    int number = 63;
    while (number > 0 && ::prctl(PR_CAPBSET_READ, number) < 0) --number;
    return number;
  }();
  return last;
}

Capabilities all_capabilities() {
  return ~0ULL >> (63 - last_capability());
}

std::string to_text(Capabilities set) {
  if (set == 0) return "none";
  if (set == all_capabilities()) return "all";
  std::string text;
  for (int number = 0; number < 64; ++number) {
    if ((set & capability(number)) == 0) continue;
    const auto index = static_cast<std::size_t>(number);
    text += text.empty() ? "CAP_" : ", CAP_";
    text += index < names.size() ? std::string(names[index]) : std::to_string(number);
  }
  return text;
}

Result<Capabilities> parse_capabilities(const std::vector<std::string>& wanted) {
  Capabilities set = 0;
  for (std::string name : wanted) {
    std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::toupper(c); });
    if (name.starts_with("CAP_")) name.erase(0, 4);
    if (wanted.size() == 1 && name == "ALL") return all_capabilities();
    if (wanted.size() == 1 && name == "NONE") return 0;
    const auto found = std::ranges::find(names, name);
    if (found == names.end()) return fail(ErrorKind::invalid, "'{}' is no capability", name);
    set |= capability(static_cast<int>(found - names.begin()));
  }
  return set;
}

Result<Capabilities> permitted_capabilities(HostPid thread) {
  auto header = header_of(thread);
  Data data{};
  if (::syscall(SYS_capget, &header, data.data()) < 0)
    return fail_errno("read the capabilities of thread {}", thread.value);
  return data[0].permitted | static_cast<Capabilities>(data[1].permitted) << 32;
}

Capabilities bounding_capabilities() {
  Capabilities set = 0;
  for (int number = 0; number <= last_capability(); ++number)
    if (::prctl(PR_CAPBSET_READ, number) == 1) set |= capability(number);
  return set;
}

Result<void> limit_bounding(Capabilities kept) {
  for (int number = 0; number <= last_capability(); ++number)
    if ((kept & capability(number)) == 0 && ::prctl(PR_CAPBSET_READ, number) == 1 &&
        ::prctl(PR_CAPBSET_DROP, number) < 0)
      return fail_errno("give up {}", to_text(capability(number)));
  return {};
}

Result<void> keep_capabilities(Capabilities kept) {
  TRY(limit_bounding(kept));
  auto header = header_of(HostPid{0});
  Data data{};
  if (::syscall(SYS_capget, &header, data.data()) < 0) return fail_errno("read our capabilities");
  for (std::size_t half = 0; half < data.size(); ++half) {
    const auto part = static_cast<std::uint32_t>(kept >> (32 * half));
    data[half].effective &= part;
    data[half].permitted &= part;
    data[half].inheritable &= part;
  }
  if (::syscall(SYS_capset, &header, data.data()) < 0) return fail_errno("give up capabilities");
  return {};
}

}  // namespace godwit::kernel
