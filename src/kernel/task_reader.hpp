#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fd.hpp"
#include "base/ids.hpp"
#include "base/result.hpp"

/// What the kernel knows of a thread and tells only to the thread itself: read in its task_struct, by a BPF program
/// that copies a list of places in one run, with the layout that the running kernel publishes. Without it a system call
/// would have to be made in each thread, which costs some 50 µs.
namespace godwit::kernel {

/// Ids as the initial user namespace has them.
struct TaskCredentials {
  std::array<std::uint32_t, 4> uids{}, gids{};  ///< real, effective, saved, filesystem
  std::vector<std::uint32_t> groups;
  std::uint64_t effective = 0, permitted = 0, inheritable = 0, ambient = 0, bounding = 0;
  std::uint32_t securebits = 0;
};

struct TaskFacts {
  std::string name;
  std::uint64_t robust_list = 0, clear_tid = 0;
  std::uint64_t stack_pointer = 0, stack_size = 0;  ///< alternate signal stack
  std::uint32_t stack_flags = 0;                    ///< as they were set
  std::uint64_t rseq = 0;                           ///< restartable sequences: 0 when not registered
  std::uint32_t rseq_size = 0, rseq_signature = 0;
  std::uint64_t timer_slack = 0;  ///< ns
  std::uint32_t personality = 0;
  std::int32_t death_signal = 0;
  bool no_new_privileges = false;
  bool signals = false;  ///< some are queued for this very thread
  TaskCredentials credentials;
};

/// Reads threads that were made known to it. What is said of a thread that runs may be torn, or even another's if it
/// ends meanwhile; of one that is stopped it is exact.
class TaskReader {
 public:
  /// `failed` where the kernel can't be read (no BTF, another user namespace than the initial one).
  static Result<TaskReader> open();

  /// Finds the threads' task_structs: some 10 µs each. Those known already cost nothing; those that aren't in the list
  /// are forgotten. Holds a pidfd of each, so that a number that is given to another thread is not mistaken.
  Result<void> know(std::span<const HostPid> threads);

  /// One for each; nothing for a thread that isn't known or has ended. Some 2 µs a thread.
  Result<std::vector<std::optional<TaskFacts>>> read(std::span<const HostPid> threads);

 private:
  struct Known {
    Fd pidfd;
    std::uint64_t pid = 0;  ///< struct pid, which lives as long as the pidfd
  };
  std::map<pid_t, Known> known_;
};

}  // namespace godwit::kernel
