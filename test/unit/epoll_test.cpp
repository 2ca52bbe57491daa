#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <set>

#include "object_fixture.hpp"

namespace godwit::objects::testing {
namespace {

/// A process in which the numbers stand for something else by now: registrations are made from outside. (Those that the
/// process can make itself are tested by whole moves.)
class Outside : public TestSource {
 public:
  std::optional<ObjectId> find(PodPid, int) const override { return std::nullopt; }
};

Fd make_event(unsigned count = 0) {
  return Fd{::eventfd(count, EFD_CLOEXEC | EFD_NONBLOCK)};
}
void watch(int epoll, int fd, std::uint32_t events, std::uint64_t data) {
  struct epoll_event event {};
  event.events = events;
  event.data.u64 = data;
  ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), 0);
}
std::set<std::uint64_t> ready(int epoll) {
  struct epoll_event events[16];
  const int count = ::epoll_wait(epoll, events, 16, 0);
  EXPECT_GE(count, 0);
  std::set<std::uint64_t> data;
  for (int i = 0; i < count; ++i) data.insert(events[i].data.u64);
  return data;
}
/// What fdinfo says of the registrations, without what an inode or instance number is.
std::multiset<std::string> registrations(int epoll) {
  std::multiset<std::string> lines;
  const std::string info = read_info(epoll).value();
  for (std::size_t at = info.find("tfd:"); at != std::string::npos; at = info.find("tfd:", at + 1))
    lines.insert(info.substr(at, info.find(" pos:", at) - at));
  return lines;
}
void attach_all(const std::vector<Image>& images, TestDestination& destination) {
  kernel::Batch batch(0, 0);
  for (const auto& image : images)
    for (const auto& holder : image.holders) {
      const auto attached = kind_named(image.kind)->attach(image.state, holder, batch, destination);
      ASSERT_TRUE(attached) << attached.error().message();
    }
}

TEST(Epoll, RegistrationsKeepNumberEventsAndData) {
  const Fd epoll{::epoll_create1(EPOLL_CLOEXEC)}, quiet = make_event(), loud = make_event(3);
  watch(epoll.get(), quiet.get(), EPOLLIN, 11);
  watch(epoll.get(), loud.get(), EPOLLIN | EPOLLET, 0xdeadbeefcafe);
  Outside source;
  source.add(epoll.get());
  source.add(quiet.get());
  source.add(loud.get());
  const auto images = capture_all(source);
  TestDestination destination;
  build_all(images, destination);
  attach_all(images, destination);
  EXPECT_EQ(registrations(destination.built(0)), registrations(epoll.get()));
  EXPECT_EQ(ready(destination.built(0)), std::set<std::uint64_t>{0xdeadbeefcafe});
  EXPECT_EQ(ready(destination.built(0)), std::set<std::uint64_t>{});  // the edge is over
  const std::uint64_t one = 1;
  ASSERT_EQ(::write(destination.built(1), &one, 8), 8);
  EXPECT_EQ(ready(destination.built(0)), std::set<std::uint64_t>{11});
}

TEST(Epoll, ClosedNumberOfALivingDescription) {
  const Fd epoll{::epoll_create1(EPOLL_CLOEXEC)};
  Fd first = make_event();
  watch(epoll.get(), first.get(), EPOLLIN, 1);
  const Fd elsewhere{::fcntl(first.get(), F_DUPFD_CLOEXEC, 100)};
  const int number = first.get();
  first.reset();
  // The number goes to another description, which is registered too: one number, two registrations.
  const Fd second = make_event();
  ASSERT_EQ(second.get(), number);
  watch(epoll.get(), second.get(), EPOLLIN, 2);
  Outside source;
  source.add(epoll.get());
  source.add(second.get());
  source.add(elsewhere.get());
  const auto images = capture_all(source);
  TestDestination destination;
  build_all(images, destination);
  attach_all(images, destination);
  EXPECT_EQ(registrations(destination.built(0)), registrations(epoll.get()));
  const std::uint64_t one = 1;
  ASSERT_EQ(::write(destination.built(2), &one, 8), 8);
  EXPECT_EQ(ready(destination.built(0)), std::set<std::uint64_t>{1});
}

TEST(Epoll, SameDescriptionUnderTwoNumbers) {
  const Fd epoll{::epoll_create1(EPOLL_CLOEXEC)}, event = make_event(1);
  const Fd twin{::fcntl(event.get(), F_DUPFD_CLOEXEC, 0)};
  watch(epoll.get(), event.get(), EPOLLIN, 1);
  watch(epoll.get(), twin.get(), EPOLLIN, 2);
  Outside source;
  source.add(epoll.get());
  source.add(event.get(), {twin.get()});
  const auto images = capture_all(source);
  TestDestination destination;
  build_all(images, destination);
  attach_all(images, destination);
  EXPECT_EQ(registrations(destination.built(0)), registrations(epoll.get()));
  EXPECT_EQ(ready(destination.built(0)), (std::set<std::uint64_t>{1, 2}));
}

TEST(Epoll, FiredOneShotStaysSilentUntilItIsArmed) {
  const Fd epoll{::epoll_create1(EPOLL_CLOEXEC)}, event = make_event(1), armed = make_event();
  watch(epoll.get(), event.get(), EPOLLIN | EPOLLONESHOT, 1);
  watch(epoll.get(), armed.get(), EPOLLIN | EPOLLONESHOT, 2);
  ASSERT_EQ(ready(epoll.get()), std::set<std::uint64_t>{1});
  Outside source;
  source.add(epoll.get());
  source.add(event.get());
  source.add(armed.get());
  const auto images = capture_all(source);
  TestDestination destination;
  build_all(images, destination);
  attach_all(images, destination);
  EXPECT_EQ(registrations(destination.built(0)), registrations(epoll.get()));
  EXPECT_EQ(ready(destination.built(0)), std::set<std::uint64_t>{});
}

TEST(Epoll, NestedInstances) {
  const Fd inner{::epoll_create1(EPOLL_CLOEXEC)}, outer{::epoll_create1(EPOLL_CLOEXEC)}, event = make_event(1);
  watch(inner.get(), event.get(), EPOLLIN, 1);
  watch(outer.get(), inner.get(), EPOLLIN, 2);
  Outside source;
  source.add(outer.get());
  source.add(inner.get());
  source.add(event.get());
  const auto images = capture_all(source);
  TestDestination destination;
  build_all(images, destination);
  attach_all(images, destination);
  EXPECT_EQ(ready(destination.built(0)), std::set<std::uint64_t>{2});
  EXPECT_EQ(ready(destination.built(1)), std::set<std::uint64_t>{1});
}

// While the pod runs, it may just have been closed; in the freeze it is certain.
TEST(Epoll, WatchedDescriptionThatNobodyHoldsIsRefusedLate) {
  const Fd epoll{::epoll_create1(EPOLL_CLOEXEC)}, event = make_event();
  watch(epoll.get(), event.get(), EPOLLIN, 1);
  Outside source;
  source.add(epoll.get());
  const auto refused = epoll_kind.capture(source.all[0], source);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::refused);
}

TEST(Epoll, HundredRegistrations) {
  const Fd epoll{::epoll_create1(EPOLL_CLOEXEC)};
  std::vector<Fd> events;
  Outside source;
  source.add(epoll.get());
  for (int i = 0; i < 100; ++i) {
    events.push_back(make_event());
    watch(epoll.get(), events.back().get(), EPOLLIN, static_cast<std::uint64_t>(i));
    source.add(events.back().get());
  }
  const auto images = capture_all(source);
  TestDestination destination;
  build_all(images, destination);
  attach_all(images, destination);
  EXPECT_EQ(registrations(destination.built(0)), registrations(epoll.get()));
}

}  // namespace
}  // namespace godwit::objects::testing
