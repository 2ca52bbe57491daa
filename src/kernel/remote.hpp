#pragma once

#include <array>
#include <optional>
#include <vector>

#include "base/bytes.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"
#include "kernel/tracee.hpp"

namespace godwit::kernel {

/// System calls to be made inside another process in one ptrace stop, with the data that they read and write.
///
///   Batch batch;
///   auto where = batch.space(sizeof(struct itimerval));
///   auto call = batch.call(SYS_getitimer, {ITIMER_REAL, where});
///   TRY(gadget.run(thread, batch));
///   if (batch.result(call) == 0) use(batch.read<itimerval>(where));
///
/// Addresses handed out by `space` and `data` are real addresses in the target: a batch is made for one gadget's area.
class Batch {
 public:
  using Call = std::size_t;
  /// `area` is where the gadget's data area begins in the target (Gadget::area()).
  explicit Batch(RemoteAddress area, std::size_t capacity);

  /// Room for `size` bytes, zeroed, 16-byte aligned.
  RemoteAddress space(std::size_t size);
  /// Bytes that the calls read.
  RemoteAddress data(BytesView bytes);
  template <typename T>
  RemoteAddress value(const T& object) {
    return data({reinterpret_cast<const std::uint8_t*>(&object), sizeof(T)});
  }
  RemoteAddress text(std::string_view zero_terminated_copy);

  Call call(long number, std::array<std::uint64_t, 6> arguments = {});
  /// Like `call`, but a negative result makes `Gadget::run` fail with this text (and stop there).
  Call must(std::string what, long number, std::array<std::uint64_t, 6> arguments = {});
  /// The result of an earlier call becomes an argument of a later one (a descriptor just opened, say).
  void forward(Call from, Call to, unsigned argument);

  [[nodiscard]] bool empty() const;
  [[nodiscard]] std::size_t size() const;
  /// True when no more room is left for `calls` and `bytes`: run what there is and begin another.
  [[nodiscard]] bool full(std::size_t calls, std::size_t bytes) const;

  /// Raw result: negative errno on failure. Valid after `run`.
  [[nodiscard]] long result(Call) const;
  [[nodiscard]] BytesView bytes(RemoteAddress, std::size_t) const;
  template <typename T>
  [[nodiscard]] T read(RemoteAddress where) const {
    T object;
    std::memcpy(&object, bytes(where, sizeof(T)).data(), sizeof(T));
    return object;
  }

 private:
  friend class Gadget;
  struct Record;  // what the loop in the target reads: number, six arguments, result
  // private state is up to the implementation
};

/// The only code of ours that ever runs inside a user's process: a loop of some thirty instructions that makes the
/// system calls of a Batch and ends at an int3. It stands in pages of its own that are mapped for as long as this
/// object lives.
///
/// While a batch runs, the thread's signals are blocked and its registers are borrowed; `run` puts both back exactly as
/// they were (syscall-restart state included), so the user's program can't tell.
class Gadget {
 public:
  /// Maps the gadget (code + `area_size` data bytes) through `thread`, which must be stopped. The mapping is made at an
  /// address that is free in `thread`'s maps and, when `avoid` is given, not among those ranges either.
  static Result<Gadget> install(Tracee& thread, std::size_t area_size = 256 * KiB,
                                std::optional<RemoteAddress> at = {});
  /// The gadget that a forked child inherited from the process it was forked from.
  [[nodiscard]] Gadget inherited() const;

  [[nodiscard]] RemoteAddress area() const;
  [[nodiscard]] RemoteAddress begin() const;  ///< first byte of our mappings
  [[nodiscard]] std::size_t size() const;     ///< bytes of our mappings: to be left out of captured maps
  [[nodiscard]] Batch batch() const;          ///< an empty batch for this gadget's area

  /// Runs the batch in `thread` (any stopped thread of the process).
  Result<void> run(Tracee& thread, Batch& batch);
  /// One system call.
  Result<long> call(Tracee& thread, long number, std::array<std::uint64_t, 6> arguments = {});

  /// A clone3 (or fork) inside `thread`, whose new thread or process is caught before its first instruction.
  /// `arguments` is a struct clone_args with set_tid etc. The child comes back stopped and traced, standing in the
  /// gadget; its registers are set later.
  Result<Tracee> clone(Tracee& thread, BytesView clone_args, BytesView set_tid);

  /// Unmaps the gadget, last of all: through the vdso's syscall instruction and a single step.
  Result<void> remove(Tracee& thread);
};

}  // namespace godwit::kernel
