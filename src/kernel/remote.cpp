#include "kernel/remote.hpp"

#include <cpuid.h>
#include <linux/sched.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>

#include "kernel/memory.hpp"

extern "C" {
extern const std::uint8_t godwit_gadget_begin[];
extern const std::uint8_t godwit_gadget_syscall[];
extern const std::uint8_t godwit_gadget_stop[];
extern const std::uint8_t godwit_gadget_end[];
}

namespace godwit::kernel {

/// What the loop in the target reads (gadget_x86_64.S).
struct Batch::Record {
  std::int64_t number = 0;
  std::array<std::uint64_t, 6> arguments{};
  std::int64_t result = -ECANCELED;  ///< of a call that an earlier failure kept from being made
  RemoteAddress next = 0;
  std::uint64_t flags = 0;
};

namespace {

constexpr std::int64_t copy_number = -1;  ///< no system call: copies a word from arguments[0] to arguments[1]
constexpr std::uint64_t flag_must = 1;
constexpr std::size_t result_offset = 56;
constexpr std::size_t arguments_offset = 8;

// The gadget's mappings: a page of code, then what rt_sigreturn needs, then the batches' area.
constexpr std::size_t frame_offset = page_size;
constexpr std::size_t xsave_offset = frame_offset + 512;
constexpr std::size_t area_offset = 3 * page_size;

std::size_t syscall_offset() {
  return static_cast<std::size_t>(godwit_gadget_syscall - godwit_gadget_begin);
}
std::size_t stop_offset() {
  return static_cast<std::size_t>(godwit_gadget_stop - godwit_gadget_begin);
}

constexpr std::uint64_t bit(int signal) {
  return 1ULL << (signal - 1);
}
/// Blocked signals during a batch: all but the one that ends it.
constexpr std::uint64_t batch_mask = ~bit(SIGWINCH);

constexpr bool is_error(std::int64_t result) {
  return result < 0 && result >= -4095;
}

/// struct ucontext and struct sigcontext as rt_sigreturn reads them (arch/x86/include/uapi/asm).
struct Frame {
  std::uint64_t flags = 7;  ///< UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
  std::uint64_t link = 0;
  std::uint64_t stack_pointer = 0;
  std::uint64_t stack_flags = 0x7f;  ///< not valid, on purpose: the thread's alternate stack stays what it is
  std::uint64_t stack_size = 0;
  std::uint64_t r8 = 0, r9 = 0, r10 = 0, r11 = 0, r12 = 0, r13 = 0, r14 = 0, r15 = 0;
  std::uint64_t rdi = 0, rsi = 0, rbp = 0, rbx = 0, rdx = 0, rax = 0, rcx = 0, rsp = 0, rip = 0, eflags = 0;
  std::uint16_t cs = 0, gs = 0, fs = 0, ss = 0;
  std::uint64_t error = 0, trap = 0, old_mask = 0, cr2 = 0;
  RemoteAddress floating_point = 0;
  std::array<std::uint64_t, 8> reserved{};
  std::uint64_t mask = 0;
};
static_assert(sizeof(Frame) == 304);

/// What an interrupted system call would have come to if nobody had traced: it is made again. One with a restart block
/// (nanosleep, poll) starts over with its whole time; the block doesn't survive rt_sigreturn.
void restart_by_hand(Frame& frame, std::uint64_t original) {
  const auto number = static_cast<std::int64_t>(original);
  const auto result = static_cast<std::int64_t>(frame.rax);
  const bool interrupted = result == -512 || result == -513 || result == -514 || result == -516;
  if (number < 0 || !interrupted) return;
  if (number == SYS_restart_syscall) {
    frame.rax = static_cast<std::uint64_t>(-EINTR);
    return;
  }
  frame.rax = original;
  frame.rip -= 2;
}

Frame frame_of(const Registers& own, std::uint64_t mask, RemoteAddress base) {
  Frame frame;
  frame.r8 = own.r8, frame.r9 = own.r9, frame.r10 = own.r10, frame.r11 = own.r11;
  frame.r12 = own.r12, frame.r13 = own.r13, frame.r14 = own.r14, frame.r15 = own.r15;
  frame.rdi = own.rdi, frame.rsi = own.rsi, frame.rbp = own.rbp, frame.rbx = own.rbx;
  frame.rdx = own.rdx, frame.rax = own.rax, frame.rcx = own.rcx, frame.rsp = own.rsp;
  frame.rip = own.rip, frame.eflags = own.eflags;
  frame.cs = static_cast<std::uint16_t>(own.cs), frame.ss = static_cast<std::uint16_t>(own.ss);
  frame.floating_point = base + xsave_offset;
  frame.mask = mask;
  restart_by_hand(frame, own.orig_rax);
  return frame;
}

/// The components that XSAVE may store without the permission that AMX tiles need, and the bytes that they take.
struct XsaveLayout {
  std::uint64_t components = 0;
  std::uint32_t size = 512 + 64;
};

const XsaveLayout& xsave_layout() {
  static const XsaveLayout layout = [] {
    constexpr std::uint64_t tiles = 3ULL << 17;
    std::uint32_t low = 0, high = 0;
    asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    XsaveLayout found;
    found.components = ((std::uint64_t{high} << 32) | low) & ~tiles;
    for (unsigned component = 2; component < 63; ++component) {
      if ((found.components >> component & 1) == 0) continue;
      unsigned size = 0, offset = 0, c = 0, d = 0;
      __cpuid_count(0xd, component, size, offset, c, d);
      found.size = std::max(found.size, offset + size);
    }
    return found;
  }();
  return layout;
}

/// An XSAVE area as the kernel wants to see it in a signal frame: its size and components at byte 464, which XSAVE
/// leaves alone, and a second magic number behind it (struct _fpx_sw_bytes).
Bytes empty_xsave_area() {
  constexpr std::uint32_t magic1 = 0x46505853, magic2 = 0x46505845;
  const XsaveLayout& layout = xsave_layout();
  Bytes area(layout.size + sizeof magic2);
  struct {
    std::uint32_t magic, extended_size;
    std::uint64_t components;
    std::uint32_t size;
  } software{magic1, layout.size + static_cast<std::uint32_t>(sizeof magic2), layout.components, layout.size};
  std::memcpy(area.data() + 464, &software, 20);
  std::memcpy(area.data() + layout.size, &magic2, sizeof magic2);
  return area;
}

constexpr std::array<std::uint8_t, 2> syscall_instruction{0x0f, 0x05};

Result<void> require_64_bit(const Tracee& thread, const Registers& registers) {
  constexpr std::uint64_t user_64 = 0x33;
  if (registers.cs == user_64) return {};
  return fail(ErrorKind::refused, "thread {} runs 32-bit code", thread.tid().value);
}

/// One system call by a `syscall` instruction that stands at `instruction`. It is interrupted between the call's entry
/// and its end, so that the thread stops again before any instruction that follows.
Result<std::int64_t> bare_call(Tracee& thread, RemoteAddress instruction, long number,
                               const std::array<std::uint64_t, 6>& arguments) {
  TRY(thread.leave_restartable_sequence());
  const Registers own = TRY(thread.registers());
  TRY(require_64_bit(thread, own));
  const std::uint64_t mask = TRY(thread.signal_mask());
  const int options = thread.options();
  TRY(thread.set_options(options | PTRACE_O_TRACESYSGOOD));

  Registers borrowed = own;
  borrowed.rip = instruction;
  borrowed.rax = static_cast<std::uint64_t>(number);
  borrowed.orig_rax = ~0ULL;
  borrowed.rdi = arguments[0], borrowed.rsi = arguments[1], borrowed.rdx = arguments[2];
  borrowed.r10 = arguments[3], borrowed.r8 = arguments[4], borrowed.r9 = arguments[5];
  borrowed.eflags = 0x202;
  const auto outcome = [&]() -> Result<std::int64_t> {
    TRY(thread.set_signal_mask(~0ULL));
    TRY(thread.set_registers(borrowed));
    int signal = 0;
    while (true) {
      TRY(thread.resume_to_syscall(signal));
      const WaitStatus status = TRY(thread.wait());
      if (!status.stopped()) return fail(ErrorKind::gone, "thread {} has ended", thread.tid().value);
      if (status.event() == 0 && status.signal() == (SIGTRAP | 0x80)) break;
      // Only SIGSTOP can come; a group stop that it makes is passed over, and taken up again on detach.
      if (status.event() == 0 && status.signal() != SIGSTOP)
        return fail(ErrorKind::failed, "system call {} in thread {} ended in signal {}", number, thread.tid().value,
                    status.signal());
      signal = status.event() == 0 ? SIGSTOP : 0;
    }
    TRY(thread.interrupt());
    TRY(thread.resume());
    TRY(thread.wait_stop());
    return static_cast<std::int64_t>(TRY(thread.registers()).rax);
  }();
  if (thread.stopped()) {
    TRY(thread.set_signal_mask(mask));
    TRY(thread.set_registers(own));
    TRY(thread.set_options(options));
  }
  return outcome;
}

Result<void> done(Result<std::int64_t> outcome, RemoteAddress where, HostPid process) {
  const std::int64_t value = TRY(outcome);
  if (!is_error(value)) return {};
  return std::unexpected(Error{ErrorKind::failed,
                               fmt::format("map the gadget at {:#x} of process {}", where, process.value),
                               static_cast<int>(-value),
                               {}});
}

/// A `syscall` instruction that the thread may stand on: the one it came from, or one of the vdso's. 0 when none.
RemoteAddress find_syscall(const Tracee& thread, const Registers& registers, const std::vector<Mapping>& mappings) {
  std::array<std::uint8_t, 2> code{};
  const RemoteAddress before = registers.rip - code.size();
  if (registers.rip % page_size >= code.size()) {
    const auto got = read_memory(thread.tid(), before, code.data(), code.size());
    if (got && *got == code.size() && code == syscall_instruction) return before;
  }
  for (const Mapping& mapping : mappings) {
    if (mapping.name != "[vdso]") continue;
    Bytes text(std::min<std::uint64_t>(mapping.size(), 64 * KiB));
    const auto got = read_memory(thread.tid(), mapping.begin, text.data(), text.size());
    if (!got) continue;
    const auto end = text.begin() + static_cast<std::ptrdiff_t>(*got);
    const auto found = std::search(text.begin(), end, syscall_instruction.begin(), syscall_instruction.end());
    if (found != end) return mapping.begin + static_cast<std::uint64_t>(found - text.begin());
  }
  return 0;
}

}  // namespace

Batch::Batch(RemoteAddress area, std::size_t capacity) : area_(area), capacity_(capacity) {
  image_.reserve(1 * KiB);
}

std::size_t Batch::take(std::size_t size, std::size_t alignment) {
  const std::size_t offset = (image_.size() + alignment - 1) / alignment * alignment;
  if (offset > capacity_ || size > capacity_ - offset) {
    overflowed_ = true;
    return 0;
  }
  image_.resize(offset + size);
  return offset;
}

RemoteAddress Batch::space(std::size_t size) {
  const std::size_t offset = take(size, 16);
  return overflowed_ ? 0 : area_ + offset;
}

RemoteAddress Batch::data(BytesView bytes) {
  const RemoteAddress where = space(bytes.size());
  if (!overflowed_ && !bytes.empty()) std::memcpy(image_.data() + (where - area_), bytes.data(), bytes.size());
  return where;
}

RemoteAddress Batch::text(std::string_view zero_terminated_copy) {
  const RemoteAddress where = space(zero_terminated_copy.size() + 1);
  if (!overflowed_)
    std::memcpy(image_.data() + (where - area_), zero_terminated_copy.data(), zero_terminated_copy.size());
  return where;
}

Batch::Record Batch::record(std::size_t offset) const {
  Record record;
  std::memcpy(&record, image_.data() + offset, sizeof record);
  return record;
}

void Batch::put(std::size_t offset, const Record& record) {
  std::memcpy(image_.data() + offset, &record, sizeof record);
}

std::size_t Batch::append(const Record& added, std::optional<std::size_t> after) {
  const std::size_t offset = take(sizeof added, alignof(Record));
  if (overflowed_) return 0;
  Record linked = added;
  if (!calls_.empty()) {
    const std::size_t place = after.value_or(last_);
    Record previous = record(place);
    linked.next = previous.next;
    previous.next = area_ + offset;
    put(place, previous);
    if (place == last_) last_ = offset;
  } else {
    last_ = offset;
  }
  put(offset, linked);
  return offset;
}

Batch::Call Batch::call(long number, std::array<std::uint64_t, 6> arguments) {
  Record record;
  record.number = number;
  record.arguments = arguments;
  const std::size_t offset = append(record);
  calls_.push_back(offset);
  return calls_.size() - 1;
}

Batch::Call Batch::must(std::string what, long number, std::array<std::uint64_t, 6> arguments) {
  const Call made = call(number, arguments);
  if (overflowed_) return made;
  Record changed = record(calls_[made]);
  changed.flags |= flag_must;
  put(calls_[made], changed);
  musts_.emplace_back(made, std::move(what));
  return made;
}

void Batch::forward(Call from, Call to, unsigned argument) {
  if (overflowed_) return;
  Record copy;
  copy.number = copy_number;
  copy.arguments[0] = area_ + calls_[from] + result_offset;
  copy.arguments[1] = area_ + calls_[to] + arguments_offset + argument * sizeof(std::uint64_t);
  append(copy, calls_[from]);
}

bool Batch::empty() const {
  return calls_.empty();
}

std::size_t Batch::size() const {
  return calls_.size();
}

bool Batch::full(std::size_t calls, std::size_t bytes) const {
  // Every call may come with a forward; every piece of data is aligned to 16 bytes.
  const std::size_t needed = 2 * calls * sizeof(Record) + bytes + 16 * (calls + 1);
  return overflowed_ || image_.size() + needed > capacity_;
}

long Batch::result(Call call) const {
  return record(calls_[call]).result;
}

BytesView Batch::bytes(RemoteAddress where, std::size_t size) const {
  return BytesView(image_).subspan(where - area_, size);
}

Result<RemoteAddress> Gadget::place(const std::vector<Mapping>& mappings, std::size_t area_size) {
  constexpr RemoteAddress lowest = 16 * MiB, highest = 0x7fff'0000'0000;
  std::vector<std::pair<RemoteAddress, RemoteAddress>> taken;
  taken.reserve(mappings.size());
  for (const Mapping& mapping : mappings) taken.emplace_back(mapping.begin, mapping.end);
  std::sort(taken.begin(), taken.end());
  RemoteAddress gap_begin = lowest, best_begin = 0, best_size = 0;
  const auto consider = [&](RemoteAddress gap_end) {
    gap_end = std::min(gap_end, highest);
    if (gap_end <= gap_begin || gap_end - gap_begin <= best_size) return;
    best_begin = gap_begin;
    best_size = gap_end - gap_begin;
  };
  for (const auto& [begin, end] : taken) {
    consider(begin);
    gap_begin = std::max(gap_begin, end);
  }
  consider(highest);
  // Room on both sides, so that the gadget never touches the user's mappings.
  const std::size_t size = area_offset + area_size;
  if (best_size < 3 * size) return fail(ErrorKind::refused, "no free range of {} bytes in the address space", 3 * size);
  return (best_begin + (best_size - size) / 2) / page_size * page_size;
}

Result<Gadget> Gadget::install(Tracee& thread, std::size_t area_size, std::optional<RemoteAddress> at) {
  area_size = (area_size + page_size - 1) / page_size * page_size;
  const std::size_t size = area_offset + area_size;
  const std::vector<Mapping> mappings = TRY(read_maps(thread.tid()));
  const RemoteAddress where = at ? *at : TRY(place(mappings, area_size));
  const Registers registers = TRY(thread.registers());
  TRY(require_64_bit(thread, registers));
  const MemoryFile memory = TRY(MemoryFile::open(thread.tid()));

  RemoteAddress instruction = find_syscall(thread, registers, mappings);
  // No vdso, and the thread isn't in a system call: lend it an instruction where it stands. Another thread of the
  // process must not come by, so all of them have to be stopped.
  std::optional<std::array<std::uint8_t, 2>> lent;
  if (instruction == 0) {
    TRY(thread.leave_restartable_sequence());
    instruction = TRY(thread.registers()).rip;
    std::array<std::uint8_t, 2> original{};
    TRY(memory.read(instruction, original.data(), original.size()));
    TRY(memory.write(instruction, syscall_instruction.data(), syscall_instruction.size()));
    lent = original;
  }
  // Two steps, because memory-deny-write-execute refuses to make writable memory executable, but not the reverse.
  constexpr std::uint64_t flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
  auto mapped = bare_call(thread, instruction, SYS_mmap, {where, size, PROT_READ | PROT_EXEC, flags, ~0ULL, 0});
  auto opened = Result<std::int64_t>(-ECANCELED);
  if (mapped && !is_error(*mapped))
    opened = bare_call(thread, instruction, SYS_mprotect,
                       {where + frame_offset, size - frame_offset, PROT_READ | PROT_WRITE});
  if (lent) TRY(memory.write(instruction, lent->data(), lent->size()));
  TRY(done(std::move(mapped), where, thread.tid()));
  TRY(done(std::move(opened), where, thread.tid()));
  TRY(memory.write(where, godwit_gadget_begin, static_cast<std::size_t>(godwit_gadget_end - godwit_gadget_begin)));
  const Bytes xsave = empty_xsave_area();
  if (xsave_offset + xsave.size() > area_offset)
    return fail(ErrorKind::refused, "this processor's extended registers take {} bytes", xsave.size());
  TRY(memory.write(where + xsave_offset, xsave.data(), xsave.size()));
  return Gadget(where, area_size);
}

Gadget Gadget::inherited() const {
  return *this;
}
RemoteAddress Gadget::area() const {
  return base_ + area_offset;
}
RemoteAddress Gadget::begin() const {
  return base_;
}
std::size_t Gadget::size() const {
  return area_offset + area_size_;
}
Batch Gadget::batch() const {
  return Batch(area(), area_size_);
}

Result<void> Gadget::borrow(Tracee& thread, const Batch& batch, const Registers& own, std::uint64_t mask) const {
  const Frame frame = frame_of(own, mask, base_);
  const std::array<iovec, 2> here{{{const_cast<Frame*>(&frame), sizeof frame},
                                   {const_cast<std::uint8_t*>(batch.image_.data()), batch.image_.size()}}};
  const std::array<iovec, 2> there{{{reinterpret_cast<void*>(base_ + frame_offset), sizeof frame},
                                    {reinterpret_cast<void*>(area()), batch.image_.size()}}};
  const ssize_t written = ::process_vm_writev(thread.tid().value, here.data(), 2, there.data(), 2, 0);
  if (written < 0) return fail_errno("write a batch into process {}", thread.tid().value);
  if (static_cast<std::size_t>(written) != sizeof frame + batch.image_.size())
    return fail(ErrorKind::failed, "write a batch into process {}: its gadget isn't mapped", thread.tid().value);

  Registers borrowed = own;
  borrowed.rip = base_;
  borrowed.rax = 0;
  // No system call was interrupted: the kernel must not turn the instruction pointer back to restart one.
  borrowed.orig_rax = ~0ULL;
  borrowed.rbx = area() + batch.calls_.front();
  borrowed.r12 = base_ + xsave_offset;
  borrowed.r13 = xsave_layout().components;
  borrowed.r14 = base_ + frame_offset;
  borrowed.eflags = 0x202;
  // In this order: should we die in between, the thread runs the batch and puts its own mask back.
  TRY(thread.set_registers(borrowed));
  return thread.set_signal_mask(batch_mask);
}

Result<void> Gadget::to_the_end(Tracee& thread, RemoteAddress end, std::vector<Tracee>* born) {
  const HostPid tid = thread.tid();
  int signal = 0;
  bool user_signal = false;
  while (true) {
    TRY(thread.resume(signal));
    signal = 0;
    const WaitStatus status = TRY(thread.wait());
    if (!status.stopped()) return fail(ErrorKind::gone, "thread {} has ended", tid.value);
    switch (status.event()) {
      case 0:
        break;
      case PTRACE_EVENT_CLONE:
      case PTRACE_EVENT_FORK:
      case PTRACE_EVENT_VFORK:
        if (born) {
          Tracee child = Tracee::adopt(HostPid{static_cast<pid_t>(TRY(thread.event_message()))});
          child.options_ = thread.options_;
          born->push_back(std::move(child));
        }
        continue;
      default:  // a group stop, or an interrupt that came too late
        continue;
    }
    if (status.signal() == SIGSTOP) {
      signal = SIGSTOP;
      continue;
    }
    if (status.signal() != SIGWINCH)
      return fail(ErrorKind::failed, "a batch in thread {} ended in signal {}", tid.value, status.signal());
    const std::uint64_t at = TRY(thread.registers()).rip;
    if (at == end) break;
    // A SIGWINCH of the program's own, taken by a mask that isn't the program's: sent again below.
    user_signal = true;
  }
  thread.signal_ = 0;
  thread.sequence_left_ = true;
  if (user_signal) ::syscall(SYS_tkill, tid.value, SIGWINCH);
  return {};
}

Result<void> Gadget::run(Tracee& thread, Batch& batch) {
  return run(thread, batch, nullptr);
}

Result<void> Gadget::run(Tracee& thread, Batch& batch, std::vector<Tracee>* born) {
  const HostPid tid = thread.tid();
  if (batch.overflowed_ || batch.area_ != area() || batch.image_.size() > area_size_)
    return fail(ErrorKind::invalid, "a batch for process {} doesn't fit its gadget's {} bytes", tid.value, area_size_);
  if (batch.empty()) return {};
  const bool group_stopped = thread.group_stopped_;
  TRY(thread.leave_restartable_sequence());
  const Registers own = TRY(thread.registers());
  TRY(require_64_bit(thread, own));
  const std::uint64_t mask = TRY(thread.signal_mask());

  auto outcome = borrow(thread, batch, own, mask);
  if (outcome) outcome = to_the_end(thread, base_ + stop_offset(), born);
  if (!thread.stopped_ && thread.attached_) {
    // Stuck in a system call that blocks. It ends with EINTR here.
    TRY(thread.interrupt());
    TRY(thread.wait_stop());
  }
  if (outcome) {
    const auto got = read_memory(tid, area(), batch.image_.data(), batch.image_.size());
    if (!got) outcome = std::unexpected(got.error());
  }
  if (thread.stopped_) {
    // The mask first, for the same reason as in `borrow`.
    TRY(thread.set_signal_mask(mask));
    TRY(thread.set_registers(own));
    thread.group_stopped_ = group_stopped || thread.group_stopped_;
  }
  TRY(outcome);
  for (const auto& [call, what] : batch.musts_) {
    const long result = batch.result(call);
    if (is_error(result)) return std::unexpected(Error{ErrorKind::failed, what, static_cast<int>(-result), {}});
  }
  return {};
}

Result<long> Gadget::call(Tracee& thread, long number, std::array<std::uint64_t, 6> arguments) {
  Batch one = batch();
  const Batch::Call made = one.call(number, arguments);
  TRY(run(thread, one));
  return one.result(made);
}

Result<Tracee> Gadget::clone(Tracee& thread, BytesView arguments, BytesView set_tid) {
  clone_args order{};
  if (arguments.size() > sizeof order || set_tid.size() > 32 * sizeof(pid_t))
    return fail(ErrorKind::invalid, "clone in thread {}: the arguments are too long", thread.tid().value);
  std::memcpy(&order, arguments.data(), arguments.size());
  if ((order.flags & (CLONE_VFORK | CLONE_UNTRACED)) != 0)
    return fail(ErrorKind::invalid, "clone in thread {}: CLONE_VFORK and CLONE_UNTRACED can't be", thread.tid().value);
  Batch one = batch();
  if (!set_tid.empty()) {
    order.set_tid = one.data(set_tid);
    order.set_tid_size = set_tid.size() / sizeof(pid_t);
  }
  const RemoteAddress where = one.value(order);
  one.must(fmt::format("clone in thread {}", thread.tid().value), SYS_clone3, {where, sizeof order});

  const std::uint64_t mask = TRY(thread.signal_mask());
  const int options = thread.options();
  TRY(thread.set_options(options | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK));
  std::vector<Tracee> born;
  auto outcome = run(thread, one, &born);
  if (thread.stopped()) TRY(thread.set_options(options));
  TRY(outcome);
  if (born.size() != 1)
    return fail(ErrorKind::failed, "clone in thread {}: {} children were caught", thread.tid().value, born.size());
  Tracee child = std::move(born.front());
  TRY(child.wait_stop());
  // It has inherited the mask of the batch.
  TRY(child.set_signal_mask(mask));
  TRY(child.set_options(options));
  return child;
}

Result<void> Gadget::remove(Tracee& thread) {
  const std::int64_t result = TRY(bare_call(thread, base_ + syscall_offset(), SYS_munmap, {base_, size()}));
  if (is_error(result))
    return std::unexpected(Error{ErrorKind::failed,
                                 fmt::format("unmap the gadget of process {}", thread.tid().value),
                                 static_cast<int>(-result),
                                 {}});
  base_ = 0;
  return {};
}

}  // namespace godwit::kernel
