// Also offered under the MIT licence and the GPL, version 2: what it makes is loaded into the kernel.

#include "kernel/memory_reader.hpp"

#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/btf.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace godwit::kernel {
namespace {

constexpr std::size_t btf_limit = 64 * MiB;
/// One call reads less than this: a power of two, so that the verifier sees the bound in a mask.
constexpr std::size_t chunk = 8 * KiB;

int call_bpf(int command, bpf_attr& attributes) {
  return static_cast<int>(::syscall(SYS_bpf, command, &attributes, sizeof attributes));
}

std::uint64_t pointer(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p);
}

Result<Bytes> read_btf() {
  const Fd file(::open("/sys/kernel/btf/vmlinux", O_RDONLY | O_CLOEXEC));
  struct stat status {};
  if (!file || ::fstat(file.get(), &status) != 0) return fail_errno("open /sys/kernel/btf/vmlinux");
  if (status.st_size <= 0 || static_cast<std::size_t>(status.st_size) > btf_limit)
    return fail(ErrorKind::failed, "the kernel's BTF has {} bytes", status.st_size);
  Bytes bytes(static_cast<std::size_t>(status.st_size));
  for (std::size_t got = 0; got < bytes.size();) {
    const ssize_t count = ::read(file.get(), bytes.data() + got, bytes.size() - got);
    if (count <= 0) return fail_errno("read /sys/kernel/btf/vmlinux");
    got += static_cast<std::size_t>(count);
  }
  return bytes;
}

/// Bytes that follow a btf_type (linux/btf.h).
std::size_t extra_size(unsigned kind, std::size_t count) {
  switch (kind) {
    case BTF_KIND_INT:
    case BTF_KIND_VAR:
    case BTF_KIND_DECL_TAG:
      return 4;
    case BTF_KIND_ARRAY:
      return sizeof(btf_array);
    case BTF_KIND_STRUCT:
    case BTF_KIND_UNION:
    case BTF_KIND_DATASEC:
    case BTF_KIND_ENUM64:
      return 12 * count;
    case BTF_KIND_ENUM:
    case BTF_KIND_FUNC_PROTO:
      return 8 * count;
    default:
      return 0;
  }
}

}  // namespace

Result<Layouts> Layouts::read() {
  const Bytes bytes = TRY(read_btf());
  btf_header header{};
  if (bytes.size() < sizeof(header)) return fail(ErrorKind::failed, "the kernel's BTF is short");
  std::memcpy(&header, bytes.data(), sizeof(header));
  const std::size_t types = std::size_t{header.hdr_len} + header.type_off, types_end = types + header.type_len;
  const std::size_t strings = std::size_t{header.hdr_len} + header.str_off, strings_end = strings + header.str_len;
  if (header.magic != BTF_MAGIC || types_end > bytes.size() || strings_end > bytes.size())
    return fail(ErrorKind::failed, "the kernel's BTF is malformed");
  Layouts layouts;
  layouts.strings_.assign(reinterpret_cast<const char*>(bytes.data()) + strings, header.str_len);
  std::uint32_t id = 1;
  for (std::size_t at = types; at + sizeof(btf_type) <= types_end; ++id) {
    btf_type type{};
    std::memcpy(&type, bytes.data() + at, sizeof(type));
    at += sizeof(type);
    const unsigned kind = BTF_INFO_KIND(type.info);
    const std::size_t count = BTF_INFO_VLEN(type.info), extra = extra_size(kind, count);
    if (at + extra > types_end) return fail(ErrorKind::failed, "the kernel's BTF is malformed");
    if (kind == BTF_KIND_STRUCT || kind == BTF_KIND_UNION) {
      Type& own = layouts.types_[id];
      own.name = type.name_off;
      own.size = type.size;
      own.alternatives = kind == BTF_KIND_UNION;
      own.members.resize(count);
      if (count != 0) std::memcpy(own.members.data(), bytes.data() + at, extra);
      if (BTF_INFO_KFLAG(type.info))
        for (auto& member : own.members) member.bits = BTF_MEMBER_BIT_OFFSET(member.bits);
    }
    at += extra;
  }
  return layouts;
}

std::string_view Layouts::text(std::uint32_t offset) const {
  return offset < strings_.size() ? std::string_view(strings_.c_str() + offset) : std::string_view();
}

const Layouts::Type* Layouts::find(std::string_view name) const {
  for (const auto& [id, type] : types_)
    if (text(type.name) == name) return &type;
  return nullptr;
}

bool Layouts::find_member(const Type& type, std::string_view name, std::size_t& offset, int depth) const {
  for (const auto& member : type.members) {
    const std::size_t here = offset + member.bits / 8;
    if (text(member.name) == name) {
      offset = here;
      return true;
    }
    const auto inner = types_.find(member.type);
    if (member.name != 0 || inner == types_.end() || depth > 8) continue;
    std::size_t deeper = here;
    if (find_member(inner->second, name, deeper, depth + 1)) {
      offset = deeper;
      return true;
    }
  }
  return false;
}

Result<std::size_t> Layouts::offset(std::string_view structure, std::string_view member) const {
  const Type* type = find(structure);
  std::size_t offset = 0;
  if (type == nullptr || !find_member(*type, member, offset, 0))
    return fail(ErrorKind::failed, "this kernel has no {}.{}", structure, member);
  return offset;
}

Result<std::size_t> Layouts::size(std::string_view structure) const {
  const Type* type = find(structure);
  if (type == nullptr) return fail(ErrorKind::failed, "this kernel has no struct {}", structure);
  return type->size;
}

void Layouts::add_extents(const Type& type, std::size_t begin, std::size_t end, bool alternatives,
                          std::vector<Extent>& all) const {
  for (std::size_t i = 0; i < type.members.size(); ++i) {
    const auto& member = type.members[i];
    std::size_t next = end;
    for (const auto& other : type.members)
      if (!alternatives && begin + other.bits > begin + member.bits) next = std::min(next, begin + other.bits);
    const auto inner = types_.find(member.type);
    if (member.name == 0 && inner != types_.end())
      add_extents(inner->second, begin + member.bits, next, inner->second.alternatives, all);
    else
      all.push_back({text(member.name), begin + member.bits, next});
  }
}

Result<std::vector<Layouts::Extent>> Layouts::extents(std::string_view structure) const {
  const Type* type = find(structure);
  if (type == nullptr) return fail(ErrorKind::failed, "this kernel has no struct {}", structure);
  std::vector<Extent> all;
  add_extents(*type, 0, std::size_t{type->size} * 8, type->alternatives, all);
  return all;
}

namespace {

bpf_insn load(std::uint8_t to, std::uint8_t from, std::int16_t offset) {
  return {.code = BPF_LDX | BPF_MEM | BPF_DW, .dst_reg = to, .src_reg = from, .off = offset, .imm = 0};
}

bpf_insn simple(unsigned code, std::uint8_t to, std::uint8_t from, std::int16_t offset, std::int32_t value) {
  return {.code = static_cast<std::uint8_t>(code), .dst_reg = to, .src_reg = from, .off = offset, .imm = value};
}

Result<Fd> load_program(std::span<const bpf_insn> code) {
  bpf_attr attributes{};
  attributes.prog_type = BPF_PROG_TYPE_RAW_TRACEPOINT;
  attributes.insn_cnt = static_cast<std::uint32_t>(code.size());
  attributes.insns = pointer(code.data());
  // The helper is for programs with a licence of this kind only.
  attributes.license = pointer("Dual MIT/GPL");
  Fd program(call_bpf(BPF_PROG_LOAD, attributes));
  if (!program) return fail_errno("load a BPF program that reads the kernel's memory");
  return program;
}

}  // namespace

Result<MemoryReader> MemoryReader::open() {
  MemoryReader reader;
  reader.buffer_.resize(chunk);
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_ARRAY;
  attributes.key_size = sizeof(std::uint32_t);
  attributes.value_size = chunk;
  attributes.max_entries = 1;
  reader.map_.reset(call_bpf(BPF_MAP_CREATE, attributes));
  if (!reader.map_) return fail_errno("create a BPF map");
  const std::array<bpf_insn, 13> code{
      load(3, 1, 0),  // address
      load(2, 1, 8),  // size
      simple(BPF_LD | BPF_DW | BPF_IMM, 6, BPF_PSEUDO_MAP_VALUE, 0, reader.map_.get()),
      bpf_insn{},
      simple(BPF_JMP | BPF_JEQ | BPF_K, 3, 0, 4, 0),
      simple(BPF_ALU64 | BPF_AND | BPF_K, 2, 0, 0, chunk - 1),
      simple(BPF_ALU64 | BPF_MOV | BPF_X, 1, 6, 0, 0),
      simple(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel),
      simple(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
      // No address: which task this is.
      simple(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_get_current_task),
      simple(BPF_STX | BPF_MEM | BPF_DW, 6, 0, 0, 0),
      simple(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0),
      simple(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
  };
  reader.program_ = TRY(load_program(code));
  return reader;
}

Result<void> MemoryReader::run(std::uint64_t address, std::size_t size) {
  std::array<std::uint64_t, 2> context{address, size};
  bpf_attr attributes{};
  attributes.test.prog_fd = static_cast<std::uint32_t>(program_.get());
  attributes.test.ctx_in = pointer(context.data());
  attributes.test.ctx_size_in = sizeof(context);
  if (call_bpf(BPF_PROG_TEST_RUN, attributes) != 0) return fail_errno("run a BPF program");
  if (attributes.test.retval != 0)
    return fail(ErrorKind::failed, "the kernel's memory at {:#x} can't be read", address);
  const std::uint32_t key = 0;
  attributes = {};
  attributes.map_fd = static_cast<std::uint32_t>(map_.get());
  attributes.key = pointer(&key);
  attributes.value = pointer(buffer_.data());
  if (call_bpf(BPF_MAP_LOOKUP_ELEM, attributes) != 0) return fail_errno("read a BPF map");
  return {};
}

Result<void> MemoryReader::read(std::uint64_t address, void* to, std::size_t size) {
  auto* bytes = static_cast<std::uint8_t*>(to);
  if (address == 0 && size != 0) return fail(ErrorKind::failed, "a pointer of the kernel's is null");
  while (size != 0) {
    const std::size_t part = std::min(size, chunk / 2);
    TRY(run(address, part));
    std::memcpy(bytes, buffer_.data(), part);
    address += part;
    bytes += part;
    size -= part;
  }
  return {};
}

Result<std::uint64_t> MemoryReader::current_task() {
  TRY(run(0, 0));
  std::uint64_t task = 0;
  std::memcpy(&task, buffer_.data(), sizeof(task));
  return task;
}

void Unmap::operator()(std::uint8_t* memory) const {
  ::munmap(memory, size);
}

Result<BulkReader> BulkReader::open(std::span<const std::size_t> path, std::size_t size) {
  constexpr std::size_t begins = most * sizeof(std::uint64_t);
  BulkReader reader(size);
  bpf_attr attributes{};
  attributes.map_type = BPF_MAP_TYPE_ARRAY;
  attributes.map_flags = BPF_F_MMAPABLE;
  attributes.key_size = sizeof(std::uint32_t);
  attributes.value_size = static_cast<std::uint32_t>(begins + most * size);
  attributes.max_entries = 1;
  reader.map_.reset(call_bpf(BPF_MAP_CREATE, attributes));
  if (!reader.map_) return fail_errno("create a BPF map");
  const std::size_t length = attributes.value_size;
  void* memory = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, reader.map_.get(), 0);
  if (memory == MAP_FAILED) return fail_errno("map a BPF map");
  reader.memory_ = std::unique_ptr<std::uint8_t[], Unmap>(static_cast<std::uint8_t*>(memory), Unmap{length});

  // r6: the map's memory, r7: how many, r8: which one.
  std::vector<bpf_insn> code{
      load(7, 1, 0),
      simple(BPF_LD | BPF_DW | BPF_IMM, 6, BPF_PSEUDO_MAP_VALUE, 0, reader.map_.get()),
      bpf_insn{},
      simple(BPF_ALU64 | BPF_MOV | BPF_K, 8, 0, 0, 0),
  };
  const auto add = [&](const bpf_insn& instruction) { code.push_back(instruction); };
  const std::size_t loop = code.size();
  std::vector<std::size_t> to_end, to_failed;
  const auto begin_of = [&](std::uint8_t to) {
    add(simple(BPF_ALU64 | BPF_MOV | BPF_X, 1, 8, 0, 0));
    add(simple(BPF_ALU64 | BPF_LSH | BPF_K, 1, 0, 0, 3));
    add(simple(BPF_ALU64 | BPF_MOV | BPF_X, to, 6, 0, 0));
    add(simple(BPF_ALU64 | BPF_ADD | BPF_X, to, 1, 0, 0));
  };
  to_end.push_back(code.size());
  add(simple(BPF_JMP | BPF_JEQ | BPF_K, 8, 0, 0, most));
  to_end.push_back(code.size());
  add(simple(BPF_JMP | BPF_JGE | BPF_X, 8, 7, 0, 0));
  begin_of(2);
  add(load(3, 2, 0));
  for (const std::size_t offset : path) {
    constexpr std::int32_t slot = -8;
    add(simple(BPF_ALU64 | BPF_ADD | BPF_K, 3, 0, 0, static_cast<std::int32_t>(offset)));
    add(simple(BPF_ALU64 | BPF_MOV | BPF_X, 1, 10, 0, 0));
    add(simple(BPF_ALU64 | BPF_ADD | BPF_K, 1, 0, 0, slot));
    add(simple(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0, sizeof(std::uint64_t)));
    add(simple(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel));
    to_failed.push_back(code.size());
    add(simple(BPF_JMP | BPF_JNE | BPF_K, 0, 0, 0, 0));
    add(load(3, 10, slot));
  }
  add(simple(BPF_ALU64 | BPF_MOV | BPF_X, 2, 8, 0, 0));
  add(simple(BPF_ALU64 | BPF_MUL | BPF_K, 2, 0, 0, static_cast<std::int32_t>(size)));
  add(simple(BPF_ALU64 | BPF_MOV | BPF_X, 1, 6, 0, 0));
  add(simple(BPF_ALU64 | BPF_ADD | BPF_X, 1, 2, 0, 0));
  add(simple(BPF_ALU64 | BPF_ADD | BPF_K, 1, 0, 0, begins));
  add(simple(BPF_ALU64 | BPF_MOV | BPF_K, 2, 0, 0, static_cast<std::int32_t>(size)));
  add(simple(BPF_JMP | BPF_CALL, 0, 0, 0, BPF_FUNC_probe_read_kernel));
  const std::size_t to_next = code.size();
  add(simple(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 0, 0));
  const std::size_t failed = code.size();
  begin_of(2);
  add(simple(BPF_ST | BPF_MEM | BPF_DW, 2, 0, 0, 0));
  const std::size_t next = code.size();
  add(simple(BPF_ALU64 | BPF_ADD | BPF_K, 8, 0, 0, 1));
  add(simple(BPF_JMP | BPF_JA, 0, 0, static_cast<std::int16_t>(loop) - static_cast<std::int16_t>(code.size()) - 1, 0));
  const std::size_t end = code.size();
  add(simple(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0));
  add(simple(BPF_JMP | BPF_EXIT, 0, 0, 0, 0));
  const auto jump = [&](std::size_t from, std::size_t to) {
    code[from].off = static_cast<std::int16_t>(to - from - 1);
  };
  for (const auto from : to_end) jump(from, end);
  for (const auto from : to_failed) jump(from, failed);
  jump(to_next, next);
  reader.program_ = TRY(load_program(code));
  return reader;
}

Result<void> BulkReader::read(std::span<const std::uint64_t> begins,
                              const std::function<void(std::size_t, BytesView)>& take) {
  if (begins.size() > most) return fail(ErrorKind::invalid, "{} objects are too many at once", begins.size());
  std::memcpy(memory_.get(), begins.data(), begins.size_bytes());
  std::array<std::uint64_t, 1> context{begins.size()};
  bpf_attr attributes{};
  attributes.test.prog_fd = static_cast<std::uint32_t>(program_.get());
  attributes.test.ctx_in = pointer(context.data());
  attributes.test.ctx_size_in = sizeof(context);
  if (call_bpf(BPF_PROG_TEST_RUN, attributes) != 0) return fail_errno("run a BPF program");
  for (std::size_t i = 0; i < begins.size(); ++i) {
    std::uint64_t begin = 0;
    std::memcpy(&begin, memory_.get() + i * sizeof(begin), sizeof(begin));
    const std::uint8_t* object = memory_.get() + most * sizeof(begin) + i * size_;
    take(i, begin == 0 ? BytesView{} : BytesView{object, size_});
  }
  return {};
}

}  // namespace godwit::kernel
