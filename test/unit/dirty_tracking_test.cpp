#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <atomic>
#include <thread>

#include "kernel/memory.hpp"
#include "kernel/pagemap.hpp"
#include "kernel/pidfd.hpp"
#include "kernel/remote.hpp"
#include "kernel/userfaultfd.hpp"

namespace godwit::kernel {
namespace {

constexpr std::size_t pages = 64;

template <typename T>
T must(Result<T> result) {
  if (!result) {
    ADD_FAILURE() << result.error().message();
    std::abort();
  }
  if constexpr (!std::is_void_v<T>) return std::move(*result);
}

/// A child with `pages` private pages at `memory()` that writes to page number `order` and answers in `done`.
class Writer {
 public:
  Writer() {
    control_ = static_cast<Control*>(
        ::mmap(nullptr, sizeof(Control), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    new (control_) Control;
    memory_ = static_cast<std::uint8_t*>(
        ::mmap(nullptr, pages * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (int done = 0;; ++done) {
      while (control_->order.load() == control_->done.load()) std::this_thread::yield();
      const int page = control_->page;
      control_->seen = memory_[static_cast<std::size_t>(page) * page_size];
      if (control_->write) memory_[static_cast<std::size_t>(page) * page_size] = static_cast<std::uint8_t>(page + 1);
      ++control_->done;
    }
  }
  ~Writer() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
    ::munmap(memory_, pages * page_size);
    ::munmap(control_, sizeof(Control));
  }
  void begin(int page, bool write) {
    control_->page = page;
    control_->write = write;
    ++control_->order;
  }
  int finish() {
    while (control_->order.load() != control_->done.load()) std::this_thread::yield();
    return control_->seen;
  }
  void touch(int page, bool write) {
    begin(page, write);
    finish();
  }
  [[nodiscard]] HostPid pid() const { return HostPid{pid_}; }
  [[nodiscard]] RemoteAddress memory() const { return reinterpret_cast<RemoteAddress>(memory_); }
  [[nodiscard]] RemoteAddress end() const { return memory() + pages * page_size; }

 private:
  struct Control {
    std::atomic<int> order{0}, done{0}, page{0}, seen{0};
    std::atomic<bool> write{false};
  };
  Control* control_;
  std::uint8_t* memory_;
  pid_t pid_;
};

/// A userfaultfd of the target, made in it and pulled out; none stays in its table.
Userfaultfd take_userfaultfd(HostPid target, std::uint64_t features) {
  Tracee thread = must(Tracee::seize(target));
  must(thread.interrupt());
  must(thread.wait_stop());
  Gadget gadget = must(Gadget::install(thread));
  Batch batch = gadget.batch();
  const auto made = batch.must("userfaultfd", SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK});
  must(gadget.run(thread, batch));
  const auto number = static_cast<int>(batch.result(made));
  const Fd pidfd = must(pidfd_open(target));
  Fd ours = must(pidfd_getfd(pidfd.get(), number));
  EXPECT_EQ(must(gadget.call(thread, SYS_close, {static_cast<std::uint64_t>(number)})), 0);
  must(gadget.remove(thread));
  must(thread.detach());
  return must(Userfaultfd::handshake(std::move(ours), features));
}

TEST(DirtyTracking, WrittenPagesAreReportedOnce) {
  Writer writer;
  for (int page = 0; page < 32; ++page) writer.touch(page, true);
  Userfaultfd faults = take_userfaultfd(writer.pid(), UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED);
  must(faults.register_range(writer.memory(), pages * page_size, UFFDIO_REGISTER_MODE_WP));
  const Pagemap pagemap = must(Pagemap::open(writer.pid()));
  PageQuery query;
  query.mask = page::written;
  query.any_of = page::present | page::swapped;
  query.returned = page::written | page::present;
  query.write_protect = true;
  query.check = true;
  std::vector<PageRange> found;
  must(pagemap.scan(writer.memory(), writer.end(), query, found));
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].begin, writer.memory());
  EXPECT_EQ(found[0].size(), 32 * page_size);
  found.clear();
  must(pagemap.scan(writer.memory(), writer.end(), query, found));
  EXPECT_TRUE(found.empty());
  writer.touch(3, true);
  writer.touch(4, true);
  writer.touch(9, false);
  writer.touch(40, true);
  must(pagemap.scan(writer.memory(), writer.end(), query, found));
  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0].begin, writer.memory() + 3 * page_size);
  EXPECT_EQ(found[0].size(), 2 * page_size);
  EXPECT_EQ(found[1].begin, writer.memory() + 40 * page_size);
  EXPECT_EQ(found[1].size(), page_size);
  const auto entries = must(pagemap.entries(writer.memory(), writer.end()));
  ASSERT_EQ(entries.size(), pages);
  EXPECT_TRUE(entries[3] & pagemap_present);
  EXPECT_FALSE(entries[50] & pagemap_present);
  std::uint8_t byte = 0;
  EXPECT_EQ(must(read_memory(writer.pid(), writer.memory() + 40 * page_size, &byte, 1)), 1U);
  EXPECT_EQ(byte, 41);
}

TEST(DirtyTracking, UnregisteredMappingIsDetected) {
  Writer writer;
  writer.touch(0, true);
  const Pagemap pagemap = must(Pagemap::open(writer.pid()));
  PageQuery query;
  query.mask = page::written;
  query.write_protect = true;
  query.check = true;
  std::vector<PageRange> found;
  const auto outcome = pagemap.scan(writer.memory(), writer.end(), query, found);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, EPERM);
}

TEST(DirtyTracking, ManySeparateRangesAreAllFound) {
  constexpr std::size_t count = 20'000;  // more than one call returns
  auto* where = static_cast<std::uint8_t*>(
      ::mmap(nullptr, count * page_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(where, MAP_FAILED);
  ::madvise(where, count * page_size, MADV_NOHUGEPAGE);
  for (std::size_t i = 0; i < count; i += 2) where[i * page_size] = 1;
  const Pagemap pagemap = must(Pagemap::open(HostPid{::getpid()}));
  PageQuery query;
  query.mask = query.returned = page::present;
  std::vector<PageRange> found;
  const auto begin = reinterpret_cast<RemoteAddress>(where);
  must(pagemap.scan(begin, begin + count * page_size, query, found));
  EXPECT_EQ(found.size(), count / 2);
  for (std::size_t i = 1; i < count; i += 2) where[i * page_size] = 1;
  found.clear();
  must(pagemap.scan(begin, begin + count * page_size, query, found));
  EXPECT_EQ(found.size(), 1U);
  ::munmap(where, count * page_size);
}

TEST(Userfaultfd, MissingPageIsReportedAndFilled) {
  Writer writer;
  Userfaultfd faults = take_userfaultfd(writer.pid(), 0);
  must(faults.register_range(writer.memory(), pages * page_size, UFFDIO_REGISTER_MODE_MISSING));
  uffd_msg message{};
  EXPECT_FALSE(must(faults.read(message)));
  writer.begin(5, false);
  while (!must(faults.read(message))) std::this_thread::yield();
  EXPECT_EQ(message.event, UFFD_EVENT_PAGEFAULT);
  EXPECT_EQ(message.arg.pagefault.address / page_size, writer.memory() / page_size + 5);
  const std::vector<std::uint8_t> content(4 * page_size, 0xab);
  // Two pages, the second of which exists already by the time of the third call.
  EXPECT_EQ(must(faults.copy(writer.memory() + 5 * page_size, content.data(), page_size, true)), page_size);
  EXPECT_EQ(writer.finish(), 0xab);
  EXPECT_EQ(must(faults.copy(writer.memory() + 3 * page_size, content.data(), 4 * page_size, true)), 2 * page_size);
  EXPECT_EQ(must(faults.copy(writer.memory() + 5 * page_size, content.data(), page_size, true)), 0U);
  EXPECT_EQ(must(faults.zero(writer.memory() + 10 * page_size, page_size, true)), page_size);
  writer.begin(10, false);
  EXPECT_EQ(writer.finish(), 0);
  must(faults.unregister_range(writer.memory(), pages * page_size));
  writer.touch(20, true);
}

TEST(Userfaultfd, DeadTargetIsGone) {
  std::optional<Userfaultfd> faults;
  RemoteAddress memory = 0;
  {
    Writer writer;
    memory = writer.memory();
    faults = take_userfaultfd(writer.pid(), 0);
    must(faults->register_range(writer.memory(), pages * page_size, UFFDIO_REGISTER_MODE_MISSING));
  }
  const std::vector<std::uint8_t> content(page_size);
  const auto outcome = faults->copy(memory, content.data(), page_size, true);
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().kind, ErrorKind::gone);
}

}  // namespace
}  // namespace godwit::kernel
