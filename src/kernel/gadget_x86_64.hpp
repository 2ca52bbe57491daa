#pragma once

#include <array>
#include <cstdint>

#include "base/bytes.hpp"
#include "base/ids.hpp"
#include "kernel/tracee.hpp"

/// What of the gadget (kernel/remote) depends on the processor: the code, and the signal frame by which a thread finds
/// back by itself when its tracer has died.
namespace godwit::kernel::gadget {

/// The bytes of gadget_x86_64.S.
BytesView code();
/// Within `code`: a `syscall` instruction, and where the thread stands when a batch is done.
std::size_t syscall_offset();
std::size_t stop_offset();

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

/// The frame that takes a thread back to `own` and `mask`; interrupted system calls are made again.
Frame frame_of(const Registers& own, std::uint64_t mask, RemoteAddress xsave_area);

/// The components that XSAVE may store without the permission that AMX tiles need, and the bytes that they take.
struct XsaveLayout {
  std::uint64_t components = 0;
  std::uint32_t size = 512 + 64;
};
const XsaveLayout& xsave_layout();

/// An XSAVE area as the kernel wants to see it in a signal frame: its size and components at byte 464, which XSAVE
/// leaves alone, and a second magic number behind it (struct _fpx_sw_bytes).
Bytes empty_xsave_area();

/// The registers with which a thread begins a batch.
Registers at_batch(const Registers& own, RemoteAddress code, RemoteAddress first_record, RemoteAddress frame,
                   RemoteAddress xsave_area);
/// The registers with which a thread makes one system call.
Registers at_call(const Registers& own, RemoteAddress instruction, long number,
                  const std::array<std::uint64_t, 6>& arguments);

}  // namespace godwit::kernel::gadget
