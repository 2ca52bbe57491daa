#include "pod/directory.hpp"
#include "pod_fixture.hpp"

namespace godwit::pod {
namespace {

class TornDown : public PodTest {};

TEST_F(TornDown, WhatCantBeIsFoundByTheNextDaemonAndIsNobodys) {
  auto pod = run(create(shell("sleep 1000")));
  ASSERT_TRUE(pod);
  const std::string cgroup = site.cgroup + "/pods/p";
  ASSERT_EQ(mkdir((cgroup + "/other").c_str(), 0755), 0) << "its cgroup can't be removed now";
  EXPECT_FALSE(pod->destroy());
  const Directory directory(site.state_dir, site.run_dir, "p");
  const auto record = directory.read_record();
  ASSERT_TRUE(record && *record) << "nobody would know of the cgroup";
  EXPECT_FALSE(Directory::alive(**record));
  pod.reset();

  ASSERT_EQ(rmdir((cgroup + "/other").c_str()), 0);
  const auto adopted = Pod::adopt_all(site);
  ASSERT_TRUE(adopted) << adopted.error().message();
  EXPECT_TRUE(adopted->empty());
  EXPECT_FALSE(std::filesystem::exists(cgroup));
  EXPECT_FALSE(std::filesystem::exists(directory.path()));
  EXPECT_FALSE(std::filesystem::exists(site.state_dir + "/lost")) << "it was torn down, and not lost";
}

}  // namespace
}  // namespace godwit::pod
