#pragma once

#include <array>
#include <cstring>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/bytes.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"
#include "kernel/procfs.hpp"
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
  struct Record;
  /// Room for `size` bytes in the image, or nothing (then `overflowed_`): its offset.
  std::size_t take(std::size_t size, std::size_t alignment);
  /// A record at the end of the chain, or behind `after`.
  std::size_t append(const Record&, std::optional<std::size_t> after = {});
  [[nodiscard]] Record record(std::size_t offset) const;
  void put(std::size_t offset, const Record&);

  RemoteAddress area_;
  std::size_t capacity_;
  bool overflowed_ = false;
  Bytes image_;  ///< what stands in the target's area: records and data, in the order they were added
  std::vector<std::size_t> calls_;  ///< offset of each call's record
  std::vector<std::pair<Call, std::string>> musts_;
  std::size_t last_ = 0;  ///< offset of the chain's last record
};

/// The only code of ours that ever runs inside a user's process: a loop of some thirty instructions that makes the
/// system calls of a Batch and then stops. It stands in pages of its own, from `install` to `remove`.
///
/// While a batch runs, the thread's signals are blocked and its registers are borrowed; `run` puts both back exactly as
/// they were (syscall-restart state included), so the user's program can't tell. Nor can it when we die in the middle:
/// without a tracer the gadget ends in an rt_sigreturn to where the thread was.
class Gadget {
 public:
  /// None: for members that are filled later.
  Gadget() = default;
  explicit operator bool() const { return base_ != 0; }

  /// Maps the gadget (code + `area_size` data bytes) through `thread`, which must be stopped. The mapping is made at
  /// `at`, or in the middle of the widest gap of `thread`'s maps, far from a heap or a stack that grows.
  static Result<Gadget> install(Tracee& thread, std::size_t area_size = 256 * KiB,
                                std::optional<RemoteAddress> at = {});
  /// Where a gadget of this area would be well placed among these mappings (of two processes, say).
  static Result<RemoteAddress> place(const std::vector<Mapping>& mappings, std::size_t area_size = 256 * KiB);
  /// The gadget that a daemon which has died has left in this process, known by its code and its size. None: nullopt.
  static Result<std::optional<Gadget>> find(HostPid process, std::size_t area_size = 256 * KiB);
  /// Bytes of all its pages, with an area of that size.
  static std::size_t full_size(std::size_t area_size = 256 * KiB);
  /// The gadget that a forked child inherited from the process it was forked from.
  [[nodiscard]] Gadget inherited() const;

  /// So many batches can run at once, in as many threads: each has a slot of its own.
  static constexpr std::size_t slots = 16;

  [[nodiscard]] RemoteAddress area(std::size_t slot = 0) const;
  [[nodiscard]] RemoteAddress begin() const;  ///< first byte of our mappings
  [[nodiscard]] std::size_t size() const;     ///< bytes of our mappings: to be left out of captured maps
  [[nodiscard]] RemoteAddress syscall_instruction() const;
  /// An empty batch for a slot's area: `area_size` bytes in the first one, 16 KiB in the others.
  [[nodiscard]] Batch batch(std::size_t slot = 0) const;

  /// Runs the batch in `thread` (any stopped thread of the process).
  Result<void> run(Tracee& thread, Batch& batch);
  /// One system call.
  Result<long> call(Tracee& thread, long number, std::array<std::uint64_t, 6> arguments = {});

  /// A clone3 (or fork) inside `thread`, whose new thread or process is caught before its first instruction.
  /// `arguments` is a struct clone_args with set_tid etc. The child comes back stopped and traced, standing in the
  /// gadget; its registers are set later.
  Result<Tracee> clone(Tracee& thread, BytesView clone_args, BytesView set_tid);

  /// Unmaps the gadget, last of all. The thread never returns to user mode in between, so nothing is needed to stand
  /// on; only our own death within these 20 us would kill the process.
  Result<void> remove(Tracee& thread);

 private:
  friend class Relay;
  /// A thread that runs a batch, and how it was before.
  struct Loan {
    Tracee* thread = nullptr;
    Registers own{};
    std::uint64_t mask = 0;
    bool group_stopped = false;
    Result<void> outcome;
  };

  Gadget(RemoteAddress base, std::size_t area_size) : base_(base), area_size_(area_size) {}
  Result<void> run(Tracee& thread, Batch& batch, std::vector<Tracee>* born);
  /// The thread runs when this returns without an error; with one it is as it was. Every loan is ended by `finish`.
  Result<Loan> start(Tracee& thread, const Batch& batch);
  Result<void> finish(Loan& loan, Batch& batch, std::vector<Tracee>* born);
  Result<void> borrow(Tracee& thread, const Batch& batch, const Registers& own, std::uint64_t mask);
  static Result<void> to_the_end(Tracee& thread, RemoteAddress end, std::vector<Tracee>* born);
  [[nodiscard]] std::size_t slot_of(RemoteAddress area) const;
  [[nodiscard]] RemoteAddress frame(std::size_t slot) const;

  RemoteAddress base_ = 0;
  std::size_t area_size_ = 0;
  std::uint32_t prepared_ = 0;  ///< slots whose area for extended registers is filled in, as bits
};

/// Batches in many threads of one process: while one thread runs its batch, the next one's is made ready. A thread that
/// is asked alone costs some 25 us, most of which are spent waiting for it.
///
///   Relay relay(gadget);
///   for (auto& thread : threads) {
///     auto batch = TRY(relay.batch());
///     …
///     TRY(relay.begin(thread, std::move(batch), [&](const Batch& done) -> Result<void> { … }));
///   }
///   TRY(relay.finish());
///
/// Nothing else may use the gadget until `finish`. The first error is what `begin` or `finish` answers; whatever runs
/// is waited for and put back all the same, at the latest by the destructor.
class Relay {
 public:
  using Done = std::function<Result<void>(const Batch&)>;
  explicit Relay(Gadget& gadget) : gadget_(gadget) {}
  Relay(const Relay&) = delete;
  Relay& operator=(const Relay&) = delete;
  ~Relay() { (void)finish(); }

  /// An empty batch for the next slot; waits for the thread that has it, if one has.
  Result<Batch> batch();
  /// The thread must stay where it is until `finish`. `done` is called when its batch has ended well.
  Result<void> begin(Tracee& thread, Batch batch, Done done = {});
  Result<void> finish();

 private:
  struct Leg {
    Gadget::Loan loan;
    Batch batch;
    Done done;
  };
  Result<void> end_oldest();

  Gadget& gadget_;
  std::deque<Leg> running_;
  std::size_t next_ = 0;
};

}  // namespace godwit::kernel
