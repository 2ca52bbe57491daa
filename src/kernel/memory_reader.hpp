#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
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
  /// Where a struct's members lie, in bits from its begin; each reaches to where the next begins. Those of anonymous
  /// structs and unions within it are its own, and of a union all are as long as the union.
  struct Extent {
    std::string_view name;
    std::size_t begin, end;
  };
  Result<std::vector<Extent>> extents(std::string_view structure) const;

 private:
  struct Member {
    std::uint32_t name, type, bits;
  };
  struct Type {
    std::uint32_t name = 0, size = 0;
    bool alternatives = false;  ///< a union
    std::vector<Member> members;
  };
  void add_extents(const Type&, std::size_t begin, std::size_t end, bool alternatives, std::vector<Extent>&) const;
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

/// Deleter of what mmap has given.
struct Unmap {
  std::size_t size = 0;
  void operator()(std::uint8_t* memory) const;
};

/// Reads many objects of one kind at once: from where each begins it follows pointers, and copies what lies at the end.
class BulkReader {
 public:
  /// So many in one call.
  static constexpr std::size_t most = 64;
  /// `path`: where, in one object after the other, the pointer to the next one stands. `size`: bytes of the last one.
  static Result<BulkReader> open(std::span<const std::size_t> path, std::size_t size);
  /// `take(i, bytes)` for each of `begins` (at most `most`), without bytes where something can't be read.
  Result<void> read(std::span<const std::uint64_t> begins, const std::function<void(std::size_t, BytesView)>& take);

 private:
  explicit BulkReader(std::size_t size) : size_(size) {}
  std::size_t size_;
  Fd map_, program_;
  std::unique_ptr<std::uint8_t[], Unmap> memory_;  ///< shared with the program: begins, then objects
};

}  // namespace godwit::kernel
