#include "pod/init_execution.hpp"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>

namespace godwit::pod {

namespace {

constexpr std::size_t backlog_limit = 256 * KiB;  ///< with so much of its output waiting, the program waits

}  // namespace

Execution InitExecution::facts() const {
  Execution now = facts_;
  now.input_ended = streams_.input_ended();
  return now;
}

Execution InitExecution::summary() const {
  Execution now = facts();
  now.output.clear();
  return now;
}

void InitExecution::ended(int status) {
  streams_.drain();
  facts_.ended = true;
  facts_.status = status;
  send();
}

void InitExecution::restore(const Execution& told) {
  facts_.process = told.process;
  facts_.begin = told.begin;
  facts_.output = told.output;
  // One that was a zombie there may have been reaped here already.
  if (told.ended) {
    facts_.ended = true;
    facts_.status = told.status;
  }
  if (told.input_ended) streams_.end_input();
}

Result<void> InitExecution::attach(std::uint64_t from, Fd client) {
  if (from < facts_.begin || from > end())
    return fail(ErrorKind::invalid, "the output of {} is kept from {} to {}, not at {}", facts_.id, facts_.begin, end(),
                from);
  client_ = std::move(client);
  received_.clear();
  sent_ = from;
  exit_sent_ = 0;
  delivered(from);
  send();
  return {};
}

void InitExecution::send() {
  const auto put = [this](const std::uint8_t* data, std::size_t size) -> std::size_t {
    const ssize_t sent = ::send(client_.get(), data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) client_.reset();
    return static_cast<std::size_t>(std::max<ssize_t>(sent, 0));
  };
  while (client_ && sent_ < end()) {
    const std::size_t skip = sent_ - facts_.begin;
    const std::size_t sent = put(facts_.output.data() + skip, facts_.output.size() - skip);
    if (sent == 0) return;
    sent_ += sent;
  }
  if (!client_ || !facts_.ended) return;
  Bytes exit;
  append_frame(exit, FrameKind::exit, encode_status(facts_.status));
  if (exit_sent_ < exit.size()) exit_sent_ += put(exit.data() + exit_sent_, exit.size() - exit_sent_);
}

void InitExecution::delivered(std::uint64_t up_to) {
  if (up_to < facts_.begin || up_to > sent_) return;
  facts_.output.erase(facts_.output.begin(), facts_.output.begin() + static_cast<std::ptrdiff_t>(up_to - facts_.begin));
  facts_.begin = up_to;
}

void InitExecution::receive() {
  std::uint8_t bytes[4096];
  const ssize_t got = ::recv(client_.get(), bytes, sizeof bytes, MSG_DONTWAIT);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) return client_.reset();
  received_.insert(received_.end(), bytes, bytes + got);
  for (;;) {
    Frame frame;
    const auto taken = take_frame(received_, frame);
    if (!taken) return client_.reset();
    if (!*taken) return;
    if (const auto place = decode_delivered(frame)) delivered(*place);
  }
}

void InitExecution::watch(std::vector<Watch>& all) {
  if (!facts_.ended && facts_.output.size() < backlog_limit) streams_.watch(all);
  if (!client_) return;
  const bool sending = sent_ < end() || (facts_.ended && exit_sent_ == 0);
  all.push_back({client_.get(), static_cast<short>(POLLIN | (sending ? POLLOUT : 0)), [this](short ready) {
                   if (client_ && (ready & (POLLIN | POLLHUP | POLLERR)) != 0) receive();
                   if (client_ && (ready & POLLOUT) != 0) send();
                 }});
}

}  // namespace godwit::pod
