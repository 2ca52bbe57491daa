#include "kernel/bpf.hpp"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

namespace godwit::kernel::bpf {
namespace {

int call_bpf(int command, bpf_attr& attributes) {
  return static_cast<int>(syscall(SYS_bpf, command, &attributes, sizeof attributes));
}

std::uint64_t pointer(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p);
}

}  // namespace

Result<Cell> Cell::create(const char* name, std::uint32_t value) {
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_ARRAY;
  attributes.key_size = sizeof(std::uint32_t);
  attributes.value_size = sizeof(std::uint32_t);
  attributes.max_entries = 1;
  std::strncpy(attributes.map_name, name, sizeof attributes.map_name - 1);
  Cell cell{Fd(call_bpf(BPF_MAP_CREATE, attributes))};
  if (!cell.map_) return fail_errno("create the BPF map {}", name);
  TRY(cell.set(value));
  return cell;
}

Result<void> Cell::set(std::uint32_t value) const {
  const std::uint32_t key = 0;
  bpf_attr attributes{};
  attributes.map_fd = static_cast<std::uint32_t>(map_.get());
  attributes.key = pointer(&key);
  attributes.value = pointer(&value);
  if (call_bpf(BPF_MAP_UPDATE_ELEM, attributes) != 0) return fail_errno("write a BPF map");
  return {};
}

Result<std::uint32_t> Cell::get() const {
  const std::uint32_t key = 0;
  std::uint32_t value = 0;
  bpf_attr attributes{};
  attributes.map_fd = static_cast<std::uint32_t>(map_.get());
  attributes.key = pointer(&key);
  attributes.value = pointer(&value);
  if (call_bpf(BPF_MAP_LOOKUP_ELEM, attributes) != 0) return fail_errno("read a BPF map");
  return value;
}

Assembler::Label Assembler::label() {
  labels_.push_back(0);
  return static_cast<Label>(labels_.size() - 1);
}

void Assembler::place(Label label) {
  labels_[static_cast<std::size_t>(label)] = code_.size();
}

void Assembler::load_cell(int to, const Cell& cell) {
  const auto reg = static_cast<std::uint8_t>(to);
  code_.push_back(
      {.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = reg, .src_reg = BPF_PSEUDO_MAP_VALUE, .imm = cell.fd()});
  code_.push_back({});  // upper half: offset 0 in the value
  code_.push_back({.code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = reg, .src_reg = reg});
}

void Assembler::load_context(int to, std::size_t offset) {
  code_.push_back({.code = BPF_LDX | BPF_MEM | BPF_W,
                   .dst_reg = static_cast<std::uint8_t>(to),
                   .src_reg = 1,
                   .off = static_cast<std::int16_t>(offset)});
}

void Assembler::move(int to, std::int32_t value) {
  code_.push_back({.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = static_cast<std::uint8_t>(to), .imm = value});
}

void Assembler::jump_if_equal(int reg, std::int32_t value, Label to) {
  jumps_.push_back({code_.size(), to});
  code_.push_back({.code = BPF_JMP | BPF_JEQ | BPF_K, .dst_reg = static_cast<std::uint8_t>(reg), .imm = value});
}

void Assembler::call(std::int32_t helper) {
  code_.push_back({.code = BPF_JMP | BPF_CALL, .imm = helper});
}

void Assembler::exit() {
  code_.push_back({.code = BPF_JMP | BPF_EXIT});
}

void Assembler::leave_with(std::int32_t value) {
  move(0, value);
  exit();
}

const std::vector<bpf_insn>& Assembler::finish() {
  for (const auto& jump : jumps_) {
    const std::size_t target = labels_[static_cast<std::size_t>(jump.to)];
    code_[jump.at].off = static_cast<std::int16_t>(target - jump.at - 1);
  }
  jumps_.clear();
  return code_;
}

Result<Fd> load_tcx(const char* name, std::uint32_t attach_type, const std::vector<bpf_insn>& code) {
  char words[4096] = {};
  const auto load = [&](bool explain) {
    bpf_attr attributes{};
    attributes.prog_type = BPF_PROG_TYPE_SCHED_CLS;
    attributes.insn_cnt = static_cast<std::uint32_t>(code.size());
    attributes.insns = pointer(code.data());
    attributes.license = pointer("Apache-2.0");
    attributes.expected_attach_type = attach_type;
    std::strncpy(attributes.prog_name, name, sizeof attributes.prog_name - 1);
    if (explain) {
      attributes.log_level = 1;
      attributes.log_buf = pointer(words);
      attributes.log_size = sizeof words;
    }
    return Fd(call_bpf(BPF_PROG_LOAD, attributes));
  };
  Fd program = load(false);
  if (program) return program;
  program = load(true);
  if (program) return program;
  auto error = fail_errno("load the BPF program {}", name);
  error.error().hint = words;
  return error;
}

Result<Fd> attach_tcx(int program, std::uint32_t attach_type, int device_index) {
  bpf_attr attributes{};
  attributes.link_create.prog_fd = static_cast<std::uint32_t>(program);
  attributes.link_create.target_ifindex = static_cast<std::uint32_t>(device_index);
  attributes.link_create.attach_type = attach_type;
  Fd link(call_bpf(BPF_LINK_CREATE, attributes));
  if (!link) return fail_errno("attach a BPF program to device {} (needs Linux 6.6)", device_index);
  return link;
}

}  // namespace godwit::kernel::bpf
