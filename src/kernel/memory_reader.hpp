#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/bytes.hpp"
#include "base/fd.hpp"
#include "base/result.hpp"

namespace godwit::kernel {

/// The layout of the running kernel's structs.
class Layouts {
 public:
  static Result<Layouts> read();
  /// Bytes from the struct's begin; members of anonymous structs and unions within it count as its own.
  Result<std::size_t> offset(std::string_view structure, std::string_view member) const;
  Result<std::size_t> size(std::string_view structure) const;

 private:
  struct Member {
    std::uint32_t name, type, bits;
  };
  struct Type {
    std::uint32_t name = 0, size = 0;
    std::vector<Member> members;
  };
  [[nodiscard]] std::string_view text(std::uint32_t) const;
  [[nodiscard]] const Type* find(std::string_view) const;
  [[nodiscard]] bool find_member(const Type&, std::string_view member, std::size_t& offset, int depth) const;

  std::string strings_;
  std::unordered_map<std::uint32_t, Type> types_;  ///< structs and unions by id
};

/// Reads the kernel's memory; an address that isn't mapped is an error and harms nobody.
class MemoryReader {
 public:
  static Result<MemoryReader> open();
  Result<void> read(std::uint64_t address, void* to, std::size_t size);
  template <typename T>
  Result<T> get(std::uint64_t address) {
    T value{};
    TRY(read(address, &value, sizeof(value)));
    return value;
  }
  /// task_struct of the calling thread.
  Result<std::uint64_t> current_task();

 private:
  Result<void> run(std::uint64_t address, std::size_t size);
  Fd map_, program_;
  std::vector<std::uint8_t> buffer_;
};

}  // namespace godwit::kernel
