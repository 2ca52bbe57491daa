#include "node/tasks.hpp"

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>

#include "base/log.hpp"

namespace godwit::node {

void Tasks::run(Fd fd, const Work& work) {
  const std::lock_guard lock(mutex_);
  collect();
  if (finished_) return;
  make_room();
  if (connections_.size() >= most_) {
    log::warn("more than {} connections at a time: one was turned away", most_);
    return;
  }
  auto connection = std::make_shared<Connection>(*this);
  connection->handle_ = Fd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  connection->stream = Stream(std::move(fd));
  try {
    connection->thread_ = std::thread([this, connection, work] { serve(*connection, work); });
    connections_.push_back(connection);
  } catch (const std::exception& problem) {
    log::error("a connection was turned away: {}", problem.what());
  }
}

void Tasks::serve(Connection& connection, const Work& work) {
  try {
    work(connection);
  } catch (const std::exception& problem) {
    // A bug of ours, or no memory: it costs this connection, not the daemon.
    log::error("a request failed: {}", problem.what());
  }
  connection.stream.reset();
  const std::lock_guard lock(mutex_);
  connection.handle_.reset();
  connection.over_ = true;
}

bool Tasks::charge(Connection& connection, const std::string& whose) {
  const std::lock_guard lock(mutex_);
  const auto theirs =
      std::ranges::count_if(connections_, [&](const auto& other) { return !other->over_ && other->whose_ == whose; });
  if (static_cast<std::size_t>(theirs) >= most_ / 4) return false;
  connection.whose_ = whose;
  return true;
}

void Tasks::make_room() {
  std::size_t strangers = 0;
  std::shared_ptr<Connection> oldest;
  for (const auto& connection : connections_) {
    if (connection->trusted_ || connection->broken_) continue;
    if (!oldest) oldest = connection;
    strangers++;
  }
  if (strangers < strangers_) return;
  ::shutdown(oldest->handle_.get(), SHUT_RDWR);
  oldest->broken_ = true;
}

void Tasks::collect() {
  std::erase_if(connections_, [](const std::shared_ptr<Connection>& connection) {
    if (!connection->over_) return false;
    connection->thread_.join();
    return true;
  });
}

void Tasks::finish() {
  std::list<std::shared_ptr<Connection>> rest;
  {
    const std::lock_guard lock(mutex_);
    finished_ = true;
    for (const auto& connection : connections_)
      if (connection->handle_) ::shutdown(connection->handle_.get(), SHUT_RDWR);
    rest.swap(connections_);
  }
  for (const auto& connection : rest)
    if (connection->thread_.joinable()) connection->thread_.join();
}

}  // namespace godwit::node
