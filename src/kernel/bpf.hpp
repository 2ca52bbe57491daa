#pragma once

#include <linux/bpf.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/result.hpp"

/// eBPF by bare system calls: programs of a dozen instructions, written by hand, that share one number with us.
namespace godwit::kernel::bpf {

/// A 32-bit number that programs read and we write, each in one step.
class Cell {
 public:
  static Result<Cell> create(const char* name, std::uint32_t value);
  explicit Cell(Fd map) : map_(std::move(map)) {}
  Result<void> set(std::uint32_t value) const;
  [[nodiscard]] Result<std::uint32_t> get() const;
  [[nodiscard]] int fd() const { return map_.get(); }

 private:
  Fd map_;
};

/// Verdicts of a TCX program (linux/bpf.h since 6.6).
inline constexpr std::int32_t tcx_next = -1;  ///< as if we weren't there
inline constexpr std::int32_t tcx_drop = 2;
inline constexpr std::uint32_t tcx_ingress = 46;  ///< bpf_attach_type
inline constexpr std::uint32_t tcx_egress = 47;

/// A program being written. Jumps go forward, to a label that is placed later.
class Assembler {
 public:
  using Label = int;
  Label label();
  void place(Label);

  /// r[to] = the cell's value.
  void load_cell(int to, const Cell&);
  /// r[to] = the 32-bit field of the context at r1.
  void load_context(int to, std::size_t offset);
  void move(int to, std::int32_t value);
  void jump_if_equal(int reg, std::int32_t value, Label);
  /// r0 = helper(r1 … r5).
  void call(std::int32_t helper);
  void exit();
  /// r0 = value; exit.
  void leave_with(std::int32_t value);

  [[nodiscard]] const std::vector<bpf_insn>& finish();

 private:
  struct Jump {
    std::size_t at;
    Label to;
  };
  std::vector<bpf_insn> code_;
  std::vector<Jump> jumps_;
  std::vector<std::size_t> labels_;
};

/// Loads a traffic-control program. The error's hint is the verifier's last words.
Result<Fd> load_tcx(const char* name, std::uint32_t attach_type, const std::vector<bpf_insn>&);
/// Attaches it to a device of the calling thread's network namespace for as long as the returned descriptor is open.
Result<Fd> attach_tcx(int program, std::uint32_t attach_type, int device_index);

}  // namespace godwit::kernel::bpf
