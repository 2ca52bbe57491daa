#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.hpp"

namespace godwit {

/// A loopback port that nobody uses just now.
inline int free_port() {
  const Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof name;
  ::bind(fd.get(), reinterpret_cast<sockaddr*>(&name), size);
  ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&name), &size);
  return ntohs(name.sin_port);
}

/// An etcd of one member on loopback, in a directory that goes with it. Ends with this program.
class EtcdServer {
 public:
  static constexpr const char* binary = "/usr/bin/etcd";

  /// `more`: further arguments; `scheme`: "http" or "https".
  explicit EtcdServer(const std::vector<std::string>& more = {}, const std::string& scheme = "http")
      : tls_(scheme == "https") {
    char pattern[] = "/tmp/godwit-etcd-XXXXXX";
    directory_ = ::mkdtemp(pattern);
    port_ = free_port();
    const std::string url = fmt::format("{}://127.0.0.1:{}", scheme, port_);
    const std::string peers = fmt::format("http://127.0.0.1:{}", free_port());
    std::vector<std::string> words{binary,
                                   "--data-dir",
                                   directory_ + "/data",
                                   "--listen-client-urls",
                                   url,
                                   "--advertise-client-urls",
                                   url,
                                   "--listen-peer-urls",
                                   peers,
                                   "--initial-advertise-peer-urls",
                                   peers,
                                   "--initial-cluster",
                                   "default=" + peers};
    words.insert(words.end(), more.begin(), more.end());
    std::vector<char*> arguments;
    for (auto& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    const std::string log = directory_ + "/log";
    child_ = ::fork();
    if (child_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      const int fd = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      ::dup2(fd, 1);
      ::dup2(fd, 2);
      ::execv(binary, arguments.data());
      ::_exit(127);
    }
  }
  ~EtcdServer() {
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
    std::filesystem::remove_all(directory_);
  }
  EtcdServer(const EtcdServer&) = delete;

  [[nodiscard]] std::string address() const { return fmt::format("127.0.0.1:{}", port_); }

  /// Waits until it takes connections and, where it talks in plain text, says that it is well. False after 20 s.
  [[nodiscard]] bool wait() const {
    sockaddr_in name{};
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    name.sin_port = htons(static_cast<std::uint16_t>(port_));
    for (int tries = 0; tries < 400; tries++) {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      const Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&name), sizeof name) != 0) continue;
      if (tls_) return true;
      const std::string request = "GET /health HTTP/1.0\r\n\r\n";
      std::string answer(4096, '\0');
      (void)!::send(fd.get(), request.data(), request.size(), MSG_NOSIGNAL);
      const ssize_t got = ::recv(fd.get(), answer.data(), answer.size(), MSG_WAITALL);
      answer.resize(static_cast<std::size_t>(std::max<ssize_t>(0, got)));
      if (answer.find("\"true\"") != std::string::npos) return true;
    }
    return false;
  }
  /// One for all tests of this program; empty where there is no etcd.
  static std::string shared() {
    if (::access(binary, X_OK) != 0) return {};
    static const EtcdServer server;
    return server.wait() ? server.address() : std::string();
  }

 private:
  bool tls_;
  std::string directory_;
  int port_ = 0;
  pid_t child_ = -1;
};

}  // namespace godwit
