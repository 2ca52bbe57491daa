#include "migrate/machine.hpp"

#include <openssl/sha.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>
#include <thread>

#include "kernel/procfs.hpp"

namespace godwit::migrate {

namespace {

std::uint64_t xcr0() {
  std::uint32_t low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<std::uint64_t>(high) << 32 | low;
}

Result<std::string> hash_vdso() {
  std::string seen;
  for (const auto& mapping : TRY(kernel::read_maps(HostPid{::getpid()}))) {
    if (!mapping.name.starts_with("[v") || mapping.name == "[vsyscall]") continue;
    seen += fmt::format("{} {}\n", mapping.name, mapping.size());
    if (mapping.name == "[vdso]") seen.append(reinterpret_cast<const char*>(mapping.begin), mapping.size());
  }
  std::array<unsigned char, SHA256_DIGEST_LENGTH> digest{};
  ::SHA256(reinterpret_cast<const unsigned char*>(seen.data()), seen.size(), digest.data());
  std::string text;
  for (const auto byte : digest) text += fmt::format("{:02x}", byte);
  return text;
}

std::vector<std::string> read_cpu_flags() {
  std::ifstream file("/proc/cpuinfo");
  std::string line;
  while (std::getline(file, line)) {
    if (!line.starts_with("flags")) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    std::vector<std::string> flags;
    for (std::string word; words >> word;) flags.push_back(word);
    std::ranges::sort(flags);
    return flags;
  }
  return {};
}

}  // namespace

Result<control::Machine> read_machine() {
  utsname name{};
  if (::uname(&name) != 0) return fail_errno("uname");
  return control::Machine{
      .kernel = name.release, .vdso = TRY(hash_vdso()), .xfeatures = xcr0(), .cpu_flags = read_cpu_flags()};
}

std::uint32_t page_connections() {
  return std::clamp(std::thread::hardware_concurrency() / 2, 1U, 4U);
}

}  // namespace godwit::migrate
