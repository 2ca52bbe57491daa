#include "migrate/destination_descriptors.hpp"

#include <future>
#include <new>

#include "pod_fixture.hpp"
#include "socket_fixture.hpp"

namespace godwit::migrate {
namespace {

using DestinationDescriptorsTest = pod::PodTest;

TEST_F(DestinationDescriptorsTest, NobodyWaitsForWhatHasThrown) {
  auto pod = run(create(shell("sleep 1000")));
  ASSERT_TRUE(pod);
  // In a process of its own, which is ended if one of them waits for ever.
  objects::socket_testing::isolated([&] {
    const PodPid process{7};
    DestinationDescriptors descriptors(*pod, {});
    descriptors.know({{process.value, HostPid{::getpid()}}});
    auto asked = std::async(std::launch::async, [&] {
      return descriptors.as_process(process, [](objects::Stub&) { return Result<void>{}; });
    });
    std::atomic<bool> answered{false};
    auto build = std::async(std::launch::async, [&] {
      const auto outcome = asked.get();
      EXPECT_TRUE(!outcome && outcome.error().kind == ErrorKind::failed);
      answered = true;
      descriptors.when_built([]() -> Result<void> { throw std::bad_alloc(); });
      return descriptors.build({}, {});
    });
    EXPECT_TRUE(descriptors.serve([] { return false; }, [](PodPid) -> std::optional<Hand> { throw std::bad_alloc(); }));
    EXPECT_TRUE(answered);
    EXPECT_FALSE(build.get());
  });
  EXPECT_TRUE(pod->destroy());
}

}  // namespace
}  // namespace godwit::migrate
