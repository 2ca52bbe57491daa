#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "socket_fixture.hpp"

namespace godwit::objects::socket_testing {
namespace {

TEST(Netlink, PortGroupsAndOptionsStay) {
  isolated([] {
    const int fd = ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
    const sockaddr_nl address{.nl_family = AF_NETLINK, .nl_pad = 0, .nl_pid = 4242, .nl_groups = RTMGRP_LINK};
    ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    set_int(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, RTNLGRP_IPV4_IFADDR);
    set_int(fd, SOL_NETLINK, NETLINK_EXT_ACK, 1);
    expect_ok(move_all({fd}));
    sockaddr_nl after{};
    socklen_t length = sizeof(after);
    ASSERT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&after), &length), 0);
    EXPECT_EQ(after.nl_pid, 4242u);
    EXPECT_EQ(after.nl_groups, static_cast<unsigned>(RTMGRP_LINK | RTMGRP_IPV4_IFADDR));
    EXPECT_EQ(get_int(fd, SOL_NETLINK, NETLINK_EXT_ACK), 1);
    EXPECT_EQ(get_int(fd, SOL_NETLINK, NETLINK_CAP_ACK), 0);
    EXPECT_TRUE(::fcntl(fd, F_GETFL) & O_NONBLOCK);
    Net::run("ip link set lo up");
    EXPECT_FALSE(read_some(fd).empty());
  });
}

TEST(Netlink, UnreadMessagesAreBusy) {
  isolated([] {
    const int fd = ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    const sockaddr_nl address{.nl_family = AF_NETLINK, .nl_pad = 0, .nl_pid = 0, .nl_groups = RTMGRP_LINK};
    ASSERT_EQ(::bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    Net::run("ip link set lo up");
    EXPECT_TRUE(wait_for(fd, POLLIN) & POLLIN);
    auto images = capture_all({fd});
    ASSERT_FALSE(images);
    EXPECT_EQ(images.error().kind, ErrorKind::busy);
    const int generic = ::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
    images = capture_all({generic});
    ASSERT_FALSE(images);
    EXPECT_EQ(images.error().kind, ErrorKind::refused);
  });
}

}  // namespace
}  // namespace godwit::objects::socket_testing
