// Also offered under the MIT licence and the GPL, version 2: what it makes is loaded into the kernel.

#include "kernel/task_reader.hpp"

#include <linux/bpf.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <mutex>
#include <set>

#include "base/bytes.hpp"
#include "kernel/memory_reader.hpp"
#include "kernel/pidfd.hpp"

namespace godwit::kernel {
namespace {

constexpr std::size_t threads_limit = 4096;  // a pidfd each
constexpr std::size_t groups_limit = 65'536;

int call_bpf(int command, bpf_attr& attributes) {
  return static_cast<int>(::syscall(SYS_bpf, command, &attributes, sizeof attributes));
}

std::uint64_t pointer(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p);
}

/// Where a few bytes lie in the kernel.
struct Place {
  std::uint64_t address = 0;
  std::uint32_t size = 0;
};

/// A few bytes of the kernel's; none where it couldn't be read.
class Found {
 public:
  static constexpr std::size_t most = 120;
  Found(const std::uint8_t* bytes, bool there) : bytes_(bytes), there_(there) {}
  explicit operator bool() const { return there_; }
  template <typename T>
  [[nodiscard]] T as(std::size_t at = 0) const {
    T value{};
    std::memcpy(&value, bytes_ + at, sizeof value);
    return value;
  }

 private:
  const std::uint8_t* bytes_;
  bool there_;
};

/// Reads many places in one system call. The program and we share the map's memory.
class Gather {
 public:
  static Result<Gather> open();
  /// Valid until the next call.
  Result<std::vector<Found>> read(const std::vector<Place>& places);

 private:
  static constexpr std::int32_t at_once = 256;
  static constexpr std::int32_t slot = 128;  // more than `Found::most`; a power of two for the verifier
  struct Request {
    std::uint64_t address;
    std::uint32_t size;
    std::int32_t outcome;
  };
  struct Shared {
    std::array<Request, at_once> requests;
    std::array<std::array<std::uint8_t, slot>, at_once> found;
  };
  struct Unmap {
    void operator()(Shared* shared) const { ::munmap(shared, sizeof(Shared)); }
  };
  Fd map_, program_;
  std::unique_ptr<Shared, Unmap> shared_;
  Bytes found_;
};

Result<Gather> Gather::open() {
  static_assert(sizeof(Request) == 16 && sizeof(Shared) % 4096 == 0);
  Gather gather;
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_ARRAY;
  attributes.map_flags = BPF_F_MMAPABLE;
  attributes.key_size = sizeof(std::uint32_t);
  attributes.value_size = sizeof(Shared);
  attributes.max_entries = 1;
  gather.map_.reset(call_bpf(BPF_MAP_CREATE, attributes));
  if (!gather.map_) return fail_errno("create a BPF map");
  void* const memory = ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, gather.map_.get(), 0);
  if (memory == MAP_FAILED) return fail_errno("map a BPF map");
  gather.shared_.reset(static_cast<Shared*>(memory));

  const auto code = [](unsigned operation, std::uint8_t to, std::uint8_t from, std::int16_t offset,
                       std::int32_t value) {
    return bpf_insn{
        .code = static_cast<std::uint8_t>(operation), .dst_reg = to, .src_reg = from, .off = offset, .imm = value};
  };
  const auto copy = [&](std::uint8_t to, std::uint8_t from) {
    return code(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
  };
  const auto add = [&](std::uint8_t to, std::uint8_t from) {
    return code(BPF_ALU64 | BPF_ADD | BPF_X, to, from, 0, 0);
  };
  constexpr std::uint8_t shared = 6, number = 7, request = 8;
  const std::array<bpf_insn, 20> program{
      code(BPF_LD | BPF_DW | BPF_IMM, shared, BPF_PSEUDO_MAP_VALUE, 0, gather.map_.get()),
      bpf_insn{},
      code(BPF_ALU64 | BPF_MOV | BPF_K, number, 0, 0, 0),
      // r8: the request of this number; r1: where what is found goes.
      copy(request, number),
      code(BPF_ALU64 | BPF_LSH | BPF_K, request, 0, 0, 4),
      add(request, shared),
      code(BPF_LDX | BPF_MEM | BPF_DW, 3, request, offsetof(Request, address), 0),
      code(BPF_JMP | BPF_JEQ | BPF_K, 3, 0, 10, 0),  // the end of the list
      code(BPF_LDX | BPF_MEM | BPF_W, 2, request, offsetof(Request, size), 0),
      code(BPF_ALU64 | BPF_AND | BPF_K, 2, 0, 0, slot - 1),
      copy(1, number),
      code(BPF_ALU64 | BPF_LSH | BPF_K, 1, 0, 0, 7),
      add(1, shared),
      code(BPF_ALU64 | BPF_ADD | BPF_K, 1, 0, 0, offsetof(Shared, found)),
      code(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel),
      code(BPF_STX | BPF_MEM | BPF_W, request, 0, offsetof(Request, outcome), 0),
      code(BPF_ALU64 | BPF_ADD | BPF_K, number, 0, 0, 1),
      code(BPF_JMP | BPF_JNE | BPF_K, number, 0, -15, at_once),
      code(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0),
      code(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
  };
  static_assert(slot == 1 << 7 && Found::most < slot);
  attributes = {};
  attributes.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
  attributes.insn_cnt = program.size();
  attributes.insns = pointer(program.data());
  // The helper is for programs with a licence of this kind only.
  attributes.license = pointer("Dual MIT/GPL");
  gather.program_.reset(call_bpf(BPF_PROG_LOAD, attributes));
  if (!gather.program_) return fail_errno("load a BPF program that reads the kernel's tasks");
  return gather;
}

Result<std::vector<Found>> Gather::read(const std::vector<Place>& places) {
  found_.resize(places.size() * slot);
  std::vector<bool> there(places.size());
  for (std::size_t begin = 0; begin < places.size(); begin += at_once) {
    const std::size_t count = std::min<std::size_t>(places.size() - begin, at_once);
    for (std::size_t i = 0; i < count; ++i) {
      const Place& place = places[begin + i];
      if (place.size > Found::most) return fail(ErrorKind::invalid, "{} bytes of the kernel's at once", place.size);
      // One that ends the list would end it for those behind it, too.
      shared_->requests[i] = {place.address == 0 ? 1 : place.address, place.size, -1};
    }
    if (count < at_once) shared_->requests[count] = {};
    bpf_attr attributes{};
    attributes.test.prog_fd = static_cast<std::uint32_t>(program_.get());
    if (call_bpf(BPF_PROG_TEST_RUN, attributes) != 0) return fail_errno("run a BPF program");
    for (std::size_t i = 0; i < count; ++i) there[begin + i] = shared_->requests[i].outcome == 0;
    std::memcpy(&found_[begin * slot], shared_->found.data(), count * slot);
  }
  std::vector<Found> result;
  result.reserve(places.size());
  for (std::size_t i = 0; i < places.size(); ++i) result.emplace_back(&found_[i * slot], there[i]);
  return result;
}

/// Where what is needed stands in the running kernel's structs.
struct Offsets {
  std::size_t files, fdt, fd, file_inode, inode_private, pid_tasks, task_pids, comm, robust_list, clear_child_tid,
      sas_ss_sp, sas_ss_size, sas_ss_flags, rseq, rseq_size, rseq_signature, timer_slack, personality, pdeath_signal,
      atomic_flags, pending, pending_signal, real_cred, uid, gid, suid, sgid, euid, egid, fsuid, fsgid, securebits,
      inheritable, permitted, effective, bounding, ambient, group_info, user_ns, ngroups, gids;

  static Result<Offsets> read() {
    const Layouts l = TRY(Layouts::read());
    return Offsets{
        .files = TRY(l.offset("task_struct", "files")),
        .fdt = TRY(l.offset("files_struct", "fdt")),
        .fd = TRY(l.offset("fdtable", "fd")),
        .file_inode = TRY(l.offset("file", "f_inode")),
        .inode_private = TRY(l.offset("inode", "i_private")),
        .pid_tasks = TRY(l.offset("pid", "tasks")),
        .task_pids = TRY(l.offset("task_struct", "pid_links")),
        .comm = TRY(l.offset("task_struct", "comm")),
        .robust_list = TRY(l.offset("task_struct", "robust_list")),
        .clear_child_tid = TRY(l.offset("task_struct", "clear_child_tid")),
        .sas_ss_sp = TRY(l.offset("task_struct", "sas_ss_sp")),
        .sas_ss_size = TRY(l.offset("task_struct", "sas_ss_size")),
        .sas_ss_flags = TRY(l.offset("task_struct", "sas_ss_flags")),
        .rseq = TRY(l.offset("task_struct", "rseq")),
        .rseq_size = TRY(l.offset("task_struct", "rseq_len")),
        .rseq_signature = TRY(l.offset("task_struct", "rseq_sig")),
        .timer_slack = TRY(l.offset("task_struct", "timer_slack_ns")),
        .personality = TRY(l.offset("task_struct", "personality")),
        .pdeath_signal = TRY(l.offset("task_struct", "pdeath_signal")),
        .atomic_flags = TRY(l.offset("task_struct", "atomic_flags")),
        .pending = TRY(l.offset("task_struct", "pending")),
        .pending_signal = TRY(l.offset("sigpending", "signal")),
        .real_cred = TRY(l.offset("task_struct", "real_cred")),
        .uid = TRY(l.offset("cred", "uid")),
        .gid = TRY(l.offset("cred", "gid")),
        .suid = TRY(l.offset("cred", "suid")),
        .sgid = TRY(l.offset("cred", "sgid")),
        .euid = TRY(l.offset("cred", "euid")),
        .egid = TRY(l.offset("cred", "egid")),
        .fsuid = TRY(l.offset("cred", "fsuid")),
        .fsgid = TRY(l.offset("cred", "fsgid")),
        .securebits = TRY(l.offset("cred", "securebits")),
        .inheritable = TRY(l.offset("cred", "cap_inheritable")),
        .permitted = TRY(l.offset("cred", "cap_permitted")),
        .effective = TRY(l.offset("cred", "cap_effective")),
        .bounding = TRY(l.offset("cred", "cap_bset")),
        .ambient = TRY(l.offset("cred", "cap_ambient")),
        .group_info = TRY(l.offset("cred", "group_info")),
        .user_ns = TRY(l.offset("cred", "user_ns")),
        .ngroups = TRY(l.offset("group_info", "ngroups")),
        .gids = TRY(l.offset("group_info", "gid")),
    };
  }
};

/// The kernel's ids are the ones we and everybody else use only where nobody maps them.
Result<void> require_initial_user_namespace() {
  std::ifstream map("/proc/self/uid_map");
  std::uint64_t inside = 1, outside = 1, count = 0;
  map >> inside >> outside >> count;
  if (inside == 0 && outside == 0 && count == UINT32_MAX) return {};
  return fail(ErrorKind::failed, "user ids are mapped");
}

/// One for the daemon.
class Tasks {
 public:
  static Result<std::unique_ptr<Tasks>> open() {
    TRY(require_initial_user_namespace());
    auto tasks =
        std::unique_ptr<Tasks>(new Tasks(TRY(Offsets::read()), TRY(Gather::open()), TRY(MemoryReader::open())));
    const auto self = TRY(tasks->memory_.current_task());
    const auto credentials = TRY(tasks->memory_.get<std::uint64_t>(self + tasks->at_.real_cred));
    tasks->user_ns_ = TRY(tasks->memory_.get<std::uint64_t>(credentials + tasks->at_.user_ns));
    return tasks;
  }

  /// struct pid behind descriptors of the calling thread's; 0 for one that can't be found.
  Result<std::vector<std::uint64_t>> pids(const std::vector<int>& pidfds) {
    const auto files = TRY(memory_.get<std::uint64_t>(TRY(memory_.current_task()) + at_.files));
    const auto table = TRY(memory_.get<std::uint64_t>(TRY(memory_.get<std::uint64_t>(files + at_.fdt)) + at_.fd));
    std::vector<std::uint64_t> found;
    for (const int pidfd : pidfds) found.push_back(table + 8 * static_cast<std::uint64_t>(pidfd));
    // The descriptor's struct file, its inode, and (Linux 6.9) what that keeps.
    for (const std::size_t next : {at_.file_inode, at_.inode_private, std::size_t{0}}) TRY(follow(found, next));
    return found;
  }

  Result<std::vector<std::optional<TaskFacts>>> facts(std::vector<std::uint64_t> tasks) {
    // A pid's first list is that of the one task that has it.
    for (auto& pid : tasks)
      if (pid != 0) pid += at_.pid_tasks;
    TRY(follow(tasks, 0));
    for (auto& link : tasks)
      if (link != 0) link -= at_.task_pids;
    const std::array<Place, 15> fields{Place{at_.comm, 16},
                                       Place{at_.robust_list, 8},
                                       Place{at_.clear_child_tid, 8},
                                       Place{at_.sas_ss_sp, 8},
                                       Place{at_.sas_ss_size, 8},
                                       Place{at_.sas_ss_flags, 4},
                                       Place{at_.rseq, 8},
                                       Place{at_.rseq_size, 4},
                                       Place{at_.rseq_signature, 4},
                                       Place{at_.timer_slack, 8},
                                       Place{at_.personality, 4},
                                       Place{at_.pdeath_signal, 4},
                                       Place{at_.atomic_flags, 8},
                                       Place{at_.pending + at_.pending_signal, 8},
                                       Place{at_.real_cred, 8}};
    std::vector<Place> places;
    for (const auto task : tasks)
      for (const auto& field : fields) places.push_back({task == 0 ? 0 : task + field.address, field.size});
    const auto found = TRY(gather_.read(places));
    std::vector<std::optional<TaskFacts>> result(tasks.size());
    std::vector<std::uint64_t> credentials(tasks.size());
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      const auto* field = &found[i * fields.size()];
      if (!std::all_of(field, field + fields.size(), [](const Found& each) { return static_cast<bool>(each); }))
        continue;
      constexpr std::uint64_t no_new_privileges = 1;  // PFA_NO_NEW_PRIVS is bit 0
      auto& facts = result[i].emplace();
      const auto name = field[0].as<std::array<char, 16>>();
      facts.name.assign(name.begin(), std::ranges::find(name, '\0'));
      facts.robust_list = field[1].as<std::uint64_t>();
      facts.clear_tid = field[2].as<std::uint64_t>();
      facts.stack_pointer = field[3].as<std::uint64_t>();
      facts.stack_size = field[4].as<std::uint64_t>();
      facts.stack_flags = field[5].as<std::uint32_t>();
      facts.rseq = field[6].as<std::uint64_t>();
      facts.rseq_size = field[7].as<std::uint32_t>();
      facts.rseq_signature = field[8].as<std::uint32_t>();
      facts.timer_slack = field[9].as<std::uint64_t>();
      facts.personality = field[10].as<std::uint32_t>();
      facts.death_signal = field[11].as<std::int32_t>();
      facts.no_new_privileges = (field[12].as<std::uint64_t>() & no_new_privileges) != 0;
      facts.signals = field[13].as<std::uint64_t>() != 0;
      credentials[i] = field[14].as<std::uint64_t>();
    }
    // Threads of one process nearly always have theirs in common.
    std::map<std::uint64_t, std::optional<TaskCredentials>> known;
    for (std::size_t i = 0; i < tasks.size(); ++i) {
      if (!result[i]) continue;
      auto of_these = known.find(credentials[i]);
      if (of_these == known.end())
        of_these = known.emplace(credentials[i], TRY(this->credentials(credentials[i]))).first;
      if (of_these->second)
        result[i]->credentials = *of_these->second;
      else
        result[i].reset();
    }
    return result;
  }

 private:
  Tasks(const Offsets& offsets, Gather gather, MemoryReader memory)
      : at_(offsets), gather_(std::move(gather)), memory_(std::move(memory)) {}

  /// Each address becomes the pointer that stands there, plus `next`.
  Result<void> follow(std::vector<std::uint64_t>& addresses, std::size_t next) {
    std::vector<Place> places;
    for (const auto address : addresses) places.push_back({address, sizeof(std::uint64_t)});
    const auto found = TRY(gather_.read(places));
    for (std::size_t i = 0; i < addresses.size(); ++i) {
      addresses[i] = found[i] ? found[i].as<std::uint64_t>() : 0;
      if (addresses[i] != 0) addresses[i] += next;
    }
    return {};
  }

  Result<std::optional<TaskCredentials>> credentials(std::uint64_t from) {
    const std::array<std::size_t, 9> words{at_.uid,  at_.euid, at_.suid,  at_.fsuid,     at_.gid,
                                           at_.egid, at_.sgid, at_.fsgid, at_.securebits};
    const std::array<std::size_t, 7> longs{at_.effective, at_.permitted,  at_.inheritable, at_.ambient,
                                           at_.bounding,  at_.group_info, at_.user_ns};
    std::vector<Place> places;
    for (const auto word : words) places.push_back({from + word, 4});
    for (const auto each : longs) places.push_back({from + each, 8});
    const auto found = TRY(gather_.read(places));
    if (!std::ranges::all_of(found, [](const Found& each) { return static_cast<bool>(each); })) return std::nullopt;
    const auto number = [&](std::size_t i) { return found[i].as<std::uint32_t>(); };
    const auto set = [&](std::size_t i) { return found[words.size() + i].as<std::uint64_t>(); };
    if (set(6) != user_ns_) return std::nullopt;
    TaskCredentials result{.uids = {number(0), number(1), number(2), number(3)},
                           .gids = {number(4), number(5), number(6), number(7)},
                           .groups = {},
                           .effective = set(0),
                           .permitted = set(1),
                           .inheritable = set(2),
                           .ambient = set(3),
                           .bounding = set(4),
                           .securebits = number(8)};
    const auto groups = set(5);
    const auto count = TRY(gather_.read({{groups + at_.ngroups, 4}}));
    if (!count[0] || count[0].as<std::uint32_t>() > groups_limit) return std::nullopt;
    constexpr std::size_t in_place = Found::most / sizeof(std::uint32_t);
    result.groups.resize(count[0].as<std::uint32_t>());
    places.clear();
    for (std::size_t at = 0; at < result.groups.size(); at += in_place)
      places.push_back({groups + at_.gids + at * sizeof(std::uint32_t),
                        static_cast<std::uint32_t>(std::min(in_place, result.groups.size() - at) * 4)});
    const auto parts = TRY(gather_.read(places));
    for (std::size_t i = 0; i < result.groups.size(); ++i) {
      if (!parts[i / in_place]) return std::nullopt;
      result.groups[i] = parts[i / in_place].as<std::uint32_t>(i % in_place * sizeof(std::uint32_t));
    }
    return result;
  }

  Offsets at_;
  Gather gather_;
  MemoryReader memory_;
  std::uint64_t user_ns_ = 0;
};

/// The only one, made when it is first needed.
std::mutex tasks_mutex;
std::unique_ptr<Tasks> only_tasks;

template <typename Read>
auto with_tasks(Read read) -> decltype(read(std::declval<Tasks&>())) {
  const std::scoped_lock lock(tasks_mutex);
  if (!only_tasks) only_tasks = TRY(Tasks::open());
  return read(*only_tasks);
}

}  // namespace

Result<TaskReader> TaskReader::open() {
  TRY(with_tasks([](Tasks&) { return Result<void>{}; }));
  return TaskReader();
}

Result<void> TaskReader::know(std::span<const HostPid> threads) {
  const std::set<HostPid> wanted(threads.begin(), threads.end());
  std::erase_if(known_, [&](const auto& entry) { return !wanted.contains(HostPid{entry.first}); });
  std::vector<pid_t> added;
  std::vector<int> pidfds;
  for (const HostPid tid : threads) {
    if (known_.contains(tid.value) || known_.size() >= threads_limit) continue;
    auto pidfd = pidfd_open(tid, true);
    if (!pidfd) continue;
    added.push_back(tid.value);
    pidfds.push_back(pidfd->get());
    known_[tid.value].pidfd = std::move(*pidfd);
  }
  if (added.empty()) return {};
  const auto pids = TRY(with_tasks([&](Tasks& tasks) { return tasks.pids(pidfds); }));
  for (std::size_t i = 0; i < added.size(); ++i) known_.at(added[i]).pid = pids[i];
  return {};
}

Result<std::vector<std::optional<TaskFacts>>> TaskReader::read(std::span<const HostPid> threads) {
  std::vector<std::uint64_t> pids;
  for (const HostPid tid : threads) {
    const auto known = known_.find(tid.value);
    pids.push_back(known == known_.end() ? 0 : known->second.pid);
  }
  return with_tasks([&](Tasks& tasks) { return tasks.facts(std::move(pids)); });
}

}  // namespace godwit::kernel
