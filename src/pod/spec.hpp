#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "image/codec.hpp"
#include "pod/user.hpp"

namespace godwit::pod {

/// Who a pod is on the network. Moves with it, so that neighbours' caches stay right.
struct Network {
  std::string mac;                     ///< "02:…"
  std::vector<std::string> addresses;  ///< CIDR, IPv4 and IPv6: "10.66.0.21/16", "fd66::21/64"
  std::string gateway4, gateway6;      ///< default routes; may be empty
  MSGPACK_DEFINE_MAP(mac, addresses, gateway4, gateway6)
};

/// Somebody on the pod's link, as the pod's caches know them.
struct Neighbour {
  std::string address;  ///< without the length of a prefix
  std::string mac;
  bool permanent = false;
  MSGPACK_DEFINE_MAP(address, mac, permanent)
};

/// A program to be started in a pod.
struct Program {
  std::vector<std::string> arguments;
  std::vector<std::string> environment;  ///< NAME=value
  std::string directory = "/";
  bool terminal = false;  ///< a controlling terminal instead of three pipes
  bool input = false;     ///< a pipe as stdin instead of /dev/null (meaningless with `terminal`)
  MSGPACK_DEFINE_MAP(arguments, environment, directory, terminal, input)
};

/// What the user asked for and what stays the same wherever the pod is.
struct Spec {
  std::string name;
  std::string id;    ///< unique for ever, also after the name is used again
  std::string home;  ///< node where it was created
  std::string hostname;
  Program program;
  Network network;
  std::uint64_t memory_limit = 0;   ///< bytes; 0: none
  double cpu_limit = 0;             ///< processors; 0: none
  std::vector<std::string> labels;  ///< that a node must have to run it: "secure", "zone=x"
  User user;                        ///< whose it is, and as whom its programs are started
  std::uint64_t capabilities = 0;   ///< none of its processes ever gets others; nobody's but root's pods have any
  MSGPACK_DEFINE_MAP(name, id, home, hostname, program, network, memory_limit, cpu_limit, labels, user, capabilities)
};

/// The pod's clocks at one instant, as it sees them (nanoseconds): the offsets of its time namespace follow from them.
struct Clocks {
  std::int64_t monotonic = 0;
  std::int64_t boottime = 0;
  MSGPACK_DEFINE_MAP(monotonic, boottime)
};

}  // namespace godwit::pod
