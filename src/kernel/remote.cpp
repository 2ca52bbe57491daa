#include "kernel/remote.hpp"

#include <linux/sched.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>

#include "kernel/gadget_x86_64.hpp"
#include "kernel/memory.hpp"

namespace godwit::kernel {

namespace {

// The gadget's mappings: a page of code, then the slots. A slot has what rt_sigreturn needs, then its batches' area.
constexpr std::size_t slots_offset = page_size;
constexpr std::size_t xsave_in_slot = 512;
constexpr std::size_t area_in_slot = 2 * page_size;
constexpr std::size_t further_area = 16 * KiB;
constexpr std::size_t further_slots = (Gadget::slots - 1) * (area_in_slot + further_area);

constexpr std::size_t mapped_size(std::size_t area_size) {
  return slots_offset + area_in_slot + area_size + further_slots;
}

constexpr std::uint64_t bit(int signal) {
  return 1ULL << (signal - 1);
}
/// Blocked signals during a batch: all but the one that ends it.
constexpr std::uint64_t batch_mask = ~bit(SIGWINCH);

constexpr bool is_error(std::int64_t result) {
  return result < 0 && result >= -4095;
}

constexpr std::array<std::uint8_t, 2> syscall_bytes{0x0f, 0x05};

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
  const Registers borrowed = gadget::at_call(own, instruction, number, arguments);
  const auto outcome = [&]() -> Result<std::int64_t> {
    TRY(thread.set_signal_mask(~0ULL));
    TRY(thread.set_registers(borrowed));
    int signal = 0;
    while (true) {
      TRY(thread.resume_to_syscall(signal));
      const WaitStatus status = TRY(thread.wait(Tracee::patience_for_own));
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
    TRY(thread.wait_stop(Tracee::patience_for_own));
    return static_cast<std::int64_t>(TRY(thread.registers()).rax);
  }();
  if (thread.stopped()) {
    TRY(thread.set_signal_mask(mask));
    TRY(thread.set_registers(own));
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
    if (got && *got == code.size() && code == syscall_bytes) return before;
  }
  for (const Mapping& mapping : mappings) {
    if (mapping.name != "[vdso]") continue;
    Bytes text(std::min<std::uint64_t>(mapping.size(), 64 * KiB));
    const auto got = read_memory(thread.tid(), mapping.begin, text.data(), text.size());
    if (!got) continue;
    const auto end = text.begin() + static_cast<std::ptrdiff_t>(*got);
    const auto found = std::search(text.begin(), end, syscall_bytes.begin(), syscall_bytes.end());
    if (found != end) return mapping.begin + static_cast<std::uint64_t>(found - text.begin());
  }
  return 0;
}

}  // namespace

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
  const std::size_t size = mapped_size(area_size);
  if (best_size < 3 * size) return fail(ErrorKind::refused, "no free range of {} bytes in the address space", 3 * size);
  return (best_begin + (best_size - size) / 2) / page_size * page_size;
}

Result<Gadget> Gadget::install(Tracee& thread, std::size_t area_size, std::optional<RemoteAddress> at) {
  area_size = (area_size + page_size - 1) / page_size * page_size;
  const std::size_t size = mapped_size(area_size);
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
    TRY(memory.write(instruction, syscall_bytes.data(), syscall_bytes.size()));
    lent = original;
  }
  // Two steps, because memory-deny-write-execute refuses to make writable memory executable, but not the reverse.
  constexpr std::uint64_t flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
  auto mapped = bare_call(thread, instruction, SYS_mmap, {where, size, PROT_READ | PROT_EXEC, flags, ~0ULL, 0});
  auto opened = Result<std::int64_t>(-ECANCELED);
  if (mapped && !is_error(*mapped))
    opened = bare_call(thread, instruction, SYS_mprotect,
                       {where + slots_offset, size - slots_offset, PROT_READ | PROT_WRITE});
  if (lent) TRY(memory.write(instruction, lent->data(), lent->size()));
  TRY(done(std::move(mapped), where, thread.tid()));
  TRY(done(std::move(opened), where, thread.tid()));
  TRY(memory.write(where, gadget::code().data(), gadget::code().size()));
  if (xsave_in_slot + gadget::empty_xsave_area().size() > area_in_slot)
    return fail(ErrorKind::refused, "this processor's extended registers take {} bytes",
                gadget::empty_xsave_area().size());
  return Gadget(where, area_size);
}

std::size_t Gadget::full_size(std::size_t area_size) {
  return mapped_size(area_size);
}

Result<std::optional<Gadget>> Gadget::find(HostPid process, std::size_t area_size) {
  const std::vector<Mapping> mappings = TRY(read_maps(process));
  Bytes expected(gadget::code().begin(), gadget::code().end());
  expected.resize(page_size);
  for (std::size_t i = 0; i + 1 < mappings.size(); ++i) {
    const Mapping& text = mappings[i];
    const Mapping& slots = mappings[i + 1];
    const bool shaped = text.size() == page_size && text.inode == 0 && text.name.empty() && !text.shared &&
                        slots.begin == text.end && slots.end == text.begin + mapped_size(area_size) &&
                        slots.inode == 0 && slots.name.empty() && !slots.shared;
    if (!shaped) continue;
    Bytes found(page_size);
    const auto got = read_memory(process, text.begin, found.data(), found.size());
    if (got && *got == found.size() && found == expected) return Gadget(text.begin, area_size);
  }
  return std::nullopt;
}

Gadget Gadget::inherited() const {
  return *this;
}
RemoteAddress Gadget::frame(std::size_t slot) const {
  const RemoteAddress first = base_ + slots_offset;
  return slot == 0 ? first : first + area_in_slot + area_size_ + (slot - 1) * (area_in_slot + further_area);
}
RemoteAddress Gadget::area(std::size_t slot) const {
  return frame(slot) + area_in_slot;
}
std::size_t Gadget::slot_of(RemoteAddress area) const {
  return area <= this->area() ? 0 : 1 + (area - this->area(1)) / (area_in_slot + further_area);
}
RemoteAddress Gadget::begin() const {
  return base_;
}
std::size_t Gadget::size() const {
  return mapped_size(area_size_);
}
RemoteAddress Gadget::syscall_instruction() const {
  return base_ + gadget::syscall_offset();
}
Batch Gadget::batch(std::size_t slot) const {
  return Batch(area(slot), slot == 0 ? area_size_ : further_area);
}

Result<void> Gadget::borrow(Tracee& thread, const Batch& batch, const Registers& own, std::uint64_t mask) {
  static const Bytes xsave = gadget::empty_xsave_area();
  const std::size_t slot = slot_of(batch.area_);
  const RemoteAddress frame_at = frame(slot), xsave_at = frame_at + xsave_in_slot;
  const gadget::Frame frame = gadget::frame_of(own, mask, xsave_at);
  const auto part = [](const void* data, std::size_t size) { return iovec{const_cast<void*>(data), size}; };
  const auto there_is = [](RemoteAddress at, std::size_t size) { return iovec{reinterpret_cast<void*>(at), size}; };
  const std::array<iovec, 3> here{part(&frame, sizeof frame), part(batch.image_.data(), batch.image_.size()),
                                  part(xsave.data(), xsave.size())};
  const std::array<iovec, 3> there{there_is(frame_at, sizeof frame), there_is(batch.area_, batch.image_.size()),
                                   there_is(xsave_at, xsave.size())};
  const bool prepared = (prepared_ >> slot & 1) != 0;
  const std::size_t parts = prepared ? 2 : 3;
  const std::size_t size = sizeof frame + batch.image_.size() + (prepared ? 0 : xsave.size());
  const ssize_t written = ::process_vm_writev(thread.tid().value, here.data(), parts, there.data(), parts, 0);
  if (written < 0) return fail_errno("write a batch into process {}", thread.tid().value);
  if (static_cast<std::size_t>(written) != size)
    return fail(ErrorKind::failed, "write a batch into process {}: its gadget isn't mapped", thread.tid().value);
  prepared_ |= 1U << slot;

  const Registers borrowed = gadget::at_batch(own, base_, batch.area_ + batch.calls_.front(), frame_at, xsave_at);
  // In this order: should we die in between, the thread runs the batch and puts its own mask back.
  TRY(thread.set_registers(borrowed));
  return thread.set_signal_mask(batch_mask);
}

Result<void> Gadget::to_the_end(Tracee& thread, RemoteAddress end, std::vector<Tracee>* born) {
  const HostPid tid = thread.tid();
  int signal = 0;
  bool user_signal = false;
  for (bool first = true;; first = false) {
    if (!first) TRY(thread.resume(signal));
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
    errno = 0;
    const long at = ::ptrace(PTRACE_PEEKUSER, tid.value, offsetof(user, regs.rip), nullptr);
    if (errno != 0) return fail_errno("read the registers of thread {}", tid.value);
    if (static_cast<RemoteAddress>(at) == end) break;
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
  if (batch.empty() && !batch.overflowed_) return {};
  Loan loan = TRY(start(thread, batch));
  return finish(loan, batch, born);
}

Result<Gadget::Loan> Gadget::start(Tracee& thread, const Batch& batch) {
  const std::size_t slot = slot_of(batch.area_);
  if (batch.overflowed_ || slot >= slots || batch.area_ != area(slot))
    return fail(ErrorKind::invalid, "a batch for process {} doesn't fit its gadget", thread.tid().value);
  Loan loan{.thread = &thread, .group_stopped = thread.group_stopped_};
  loan.own = TRY(thread.registers());
  if (loan.own.rip - begin() >= size()) {
    TRY(thread.leave_restartable_sequence());
    loan.own = TRY(thread.registers());
  }
  TRY(require_64_bit(thread, loan.own));
  loan.mask = TRY(thread.signal_mask());
  loan.outcome = borrow(thread, batch, loan.own, loan.mask);
  if (loan.outcome) loan.outcome = thread.resume();
  return loan;
}

Result<void> Gadget::finish(Loan& loan, Batch& batch, std::vector<Tracee>* born) {
  Tracee& thread = *loan.thread;
  auto outcome = std::move(loan.outcome);
  if (outcome) outcome = to_the_end(thread, base_ + gadget::stop_offset(), born);
  if (!thread.stopped_ && thread.attached_) {
    // Stuck in a system call that blocks. It ends with EINTR here.
    TRY(thread.interrupt());
    TRY(thread.wait_stop(Tracee::patience_for_own));
  }
  if (outcome) {
    const auto got = read_memory(thread.tid(), batch.area_, batch.image_.data(), batch.image_.size());
    if (!got) outcome = std::unexpected(got.error());
  }
  if (thread.stopped_) {
    // The mask first, for the same reason as in `borrow`.
    TRY(thread.set_signal_mask(loan.mask));
    TRY(thread.set_registers(loan.own));
    thread.group_stopped_ = loan.group_stopped || thread.group_stopped_;
  }
  TRY(outcome);
  for (const auto& [call, what] : batch.musts_) {
    const long result = batch.result(call);
    if (is_error(result)) return std::unexpected(Error{ErrorKind::failed, what, static_cast<int>(-result), {}});
  }
  return {};
}

Result<Batch> Relay::batch() {
  if (running_.size() == Gadget::slots) TRY(end_oldest());
  return gadget_.batch(next_);
}

Result<void> Relay::begin(Tracee& thread, Batch batch, Done done) {
  auto loan = TRY(gadget_.start(thread, batch));
  next_ = (next_ + 1) % Gadget::slots;
  running_.push_back({std::move(loan), std::move(batch), std::move(done)});
  return {};
}

Result<void> Relay::end_oldest() {
  Leg leg = std::move(running_.front());
  running_.pop_front();
  TRY(gadget_.finish(leg.loan, leg.batch, nullptr));
  return leg.done ? leg.done(leg.batch) : Result<void>{};
}

Result<void> Relay::finish() {
  Result<void> outcome;
  while (!running_.empty()) {
    auto ended = end_oldest();
    if (!ended && outcome) outcome = std::move(ended);
  }
  return outcome;
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
  const std::int64_t result = TRY(bare_call(thread, base_ + gadget::syscall_offset(), SYS_munmap, {base_, size()}));
  if (is_error(result))
    return std::unexpected(Error{ErrorKind::failed,
                                 fmt::format("unmap the gadget of process {}", thread.tid().value),
                                 static_cast<int>(-result),
                                 {}});
  base_ = 0;
  return {};
}

}  // namespace godwit::kernel
