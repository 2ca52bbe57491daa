#include "kernel/gadget_x86_64.hpp"

#include <cpuid.h>
#include <sys/syscall.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

extern "C" {
extern const std::uint8_t godwit_gadget_begin[];
extern const std::uint8_t godwit_gadget_syscall[];
extern const std::uint8_t godwit_gadget_stop[];
extern const std::uint8_t godwit_gadget_end[];
}

namespace godwit::kernel::gadget {

namespace {

constexpr std::uint64_t interrupts_enabled = 0x202;  ///< eflags with neither direction nor trap flag

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

}  // namespace

Frame frame_of(const Registers& own, std::uint64_t mask, RemoteAddress xsave_area) {
  Frame frame;
  frame.r8 = own.r8, frame.r9 = own.r9, frame.r10 = own.r10, frame.r11 = own.r11;
  frame.r12 = own.r12, frame.r13 = own.r13, frame.r14 = own.r14, frame.r15 = own.r15;
  frame.rdi = own.rdi, frame.rsi = own.rsi, frame.rbp = own.rbp, frame.rbx = own.rbx;
  frame.rdx = own.rdx, frame.rax = own.rax, frame.rcx = own.rcx, frame.rsp = own.rsp;
  frame.rip = own.rip, frame.eflags = own.eflags;
  frame.cs = static_cast<std::uint16_t>(own.cs), frame.ss = static_cast<std::uint16_t>(own.ss);
  frame.floating_point = xsave_area;
  frame.mask = mask;
  restart_by_hand(frame, own.orig_rax);
  return frame;
}

BytesView code() {
  return {godwit_gadget_begin, godwit_gadget_end};
}
std::size_t syscall_offset() {
  return static_cast<std::size_t>(godwit_gadget_syscall - godwit_gadget_begin);
}
std::size_t stop_offset() {
  return static_cast<std::size_t>(godwit_gadget_stop - godwit_gadget_begin);
}

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

Registers at_batch(const Registers& own, RemoteAddress code, RemoteAddress first_record, RemoteAddress frame,
                   RemoteAddress xsave_area) {
  Registers registers = own;
  registers.rip = code;
  registers.rax = 0;
  // No system call was interrupted: the kernel must not turn the instruction pointer back to restart one.
  registers.orig_rax = ~0ULL;
  registers.rbx = first_record;
  registers.r12 = xsave_area;
  registers.r13 = xsave_layout().components;
  registers.r14 = frame;
  registers.eflags = interrupts_enabled;
  return registers;
}

Registers at_call(const Registers& own, RemoteAddress instruction, long number,
                  const std::array<std::uint64_t, 6>& arguments) {
  Registers registers = own;
  registers.rip = instruction;
  registers.rax = static_cast<std::uint64_t>(number);
  registers.orig_rax = ~0ULL;
  registers.rdi = arguments[0], registers.rsi = arguments[1], registers.rdx = arguments[2];
  registers.r10 = arguments[3], registers.r8 = arguments[4], registers.r9 = arguments[5];
  registers.eflags = interrupts_enabled;
  return registers;
}

}  // namespace godwit::kernel::gadget
