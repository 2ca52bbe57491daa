#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <thread>

#include "base/caught.hpp"
#include "base/fault.hpp"
#include "base/log.hpp"
#include "migrate/departure.hpp"
#include "migrate/limits.hpp"
#include "migrate/remainder.hpp"
#include "pod/log_segments.hpp"

namespace godwit::migrate {

namespace {

constexpr std::size_t log_piece = 256 * KiB;

Result<void> until_commit(Departure& departure, const Options& options) {
  TRY(departure.negotiate());
  if (options.dry_run) return {};
  fault::reach("source.negotiated");
  TRY(departure.prepare());
  fault::reach("source.prepared");
  // The destination has namespaces, a root and a silent network port for the pod, and its clocks stand right.
  TRY(departure.copy_while_running());
  // Stubs with the right numbers and layouts stand there; what could be copied while the pod runs has been.
  fault::reach("source.copied");

  TRY(departure.freeze());
  fault::reach("source.frozen");
  // No thread of the pod runs and no packet reaches it. Nothing has been consumed: everything from here can be undone.
  TRY(departure.send_last_files());
  TRY(departure.send_objects());
  TRY(departure.send_last_pages());
  TRY(departure.send_state());
  fault::reach("source.state");
  // The last system call of ours inside the pod has been made; registers and masks are as the program left them.
  TRY(departure.pin());
  // The freezer holds the pod here and there: neither daemon's death starts it. The destination is complete and silent.
  fault::reach("source.pinned");
  return departure.commit();
}

}  // namespace

Result<Report> send(pod::Pod& pod, const Options& options, const Connect& connect, const SourceSite& site,
                    Report& report) {
  Departure departure(pod, options, connect, site, report);
  auto outcome = caught([&] { return until_commit(departure, options); });
  if (!outcome) {
    if (report.fate == control::Fate::here)
      departure.give_up(outcome.error());
    else
      departure.let_lie(outcome.error());
    return std::unexpected(outcome.error());
  }
  if (options.dry_run) return report;
  // The destination owns the pod. Whatever goes wrong from here, it never runs here again.
  const auto handed = caught([&]() -> Result<void> {
    TRY(departure.hand_over());
    // It runs there.
    return departure.release();
  });
  if (!handed) {
    departure.let_lie(handed.error());
    return std::unexpected(handed.error());
  }
  // Nothing of it is left here.
  return report;
}

Result<void> Departure::hand_over() {
  const auto drain = [&](std::vector<Bytes>& frames) {
    for (auto frame = pod_.gate().next_held(); frame && !frame->empty() && frames.size() < 4096;
         frame = pod_.gate().next_held())
      frames.push_back(std::move(*frame));
  };
  report_.owing = owes();
  if (owes()) begin_pushing();
  wire::Go go{.frames = {}, .by_word = by_word_};
  drain(go.frames);
  report_.moved = true;
  TRY(control_->send(wire::Type::go, go));
  fault::reach("source.said-go");
  auto message = TRY(expect(wire::Type::running, std::chrono::seconds(30)));
  const auto running = TRY(image::unpack<wire::Running>(message.payload));
  TRY(check(running));
  freeze_watch_.lap("restart");
  be_patient(patience);
  // The dying are not to keep others off their processors.
  let_down();
  report_.freeze_us =
      static_cast<std::uint64_t>(std::max<std::int64_t>(0, running.at - clock_difference_ - stopped_at_)) / 1000;
  for (const auto& span : running.spans) report_.freeze.push_back({"destination: " + span.name, span.us});
  report_.freeze.insert(report_.freeze.begin(), freeze_watch_.spans().begin(), freeze_watch_.spans().end());
  total_.lap("freeze");
  tell("restart");
  return {};
}

Result<void> Departure::forward_frames(std::chrono::milliseconds quiet, std::chrono::milliseconds most) {
  const auto end = std::chrono::steady_clock::now() + most;
  while (std::chrono::steady_clock::now() < end) {
    pollfd wait{pod_.gate().held_fd(), POLLIN, 0};
    if (::poll(&wait, 1, static_cast<int>(quiet.count())) <= 0) return {};
    wire::Frames late;
    for (auto frame = pod_.gate().next_held(); frame && !frame->empty() && late.frames.size() < 256;
         frame = pod_.gate().next_held())
      if (!pod::Gate::for_a_group(*frame)) late.frames.push_back(std::move(*frame));
    if (late.frames.empty()) continue;
    TRY(control_->send(wire::Type::frames, late));
  }
  return {};
}

/// What the log has grown by since the last call. Only its newest segment grows.
Result<void> Departure::send_logs() {
  const std::string newest = logged_.empty() ? "" : logged_.rbegin()->first;
  Bytes buffer(log_piece);
  for (const auto& name : TRY(pod::log_segments(pod_.log_directory()))) {
    if (name < newest) continue;
    const std::string path = pod_.log_directory() + "/" + name;
    const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!file) return fail_errno("open {}", path);
    for (auto& sent = logged_[name];;) {
      const ssize_t got = ::pread(file.get(), buffer.data(), buffer.size(), static_cast<off_t>(sent));
      if (got < 0) return fail_errno("read {}", path);
      if (got == 0) break;
      TRY(control_->send(wire::Type::log, wire::Log{name, sent, Bytes(buffer.begin(), buffer.begin() + got)}));
      sent += static_cast<std::uint64_t>(got);
    }
  }
  return {};
}

void Departure::begin_answering() {
  answering_ = std::jthread([this] {
    // It ends with the connection: ours when all is there, or broken. Then the destination asks elsewhere.
    (void)caught([this] {
      return answer_pages(reference_, [this](SpaceId space, std::span<const Range> ranges, std::uint8_t* to) {
        fault::reach("source.answering");
        return read(space, ranges, to);
      });
    });
  });
}

/// Sends all that is owed. What isn't there of memory that is owed as a whole is zeros, by the kernel's own hand, as
/// soon as the destination has been told that this was all.
Result<Round> Departure::push() {
  const Stopwatch watch;
  std::vector<Piece> pieces = owed_;
  for (const auto& piece : owed_unseen_)
    for (const auto& [host, leaving] : processes_)
      if (leaving.memory && leaving.memory->space() == piece.space) TRY(leaving.memory->present(piece.range, pieces));
  std::uint64_t pages = 0;
  for (const auto& piece : pieces) pages += piece.range.size() / page_size;
  const Sent sent = TRY(pages_->send(pieces));
  if (sent.pages + sent.zero_pages < pages)
    return fail(ErrorKind::failed, "{} pages of {} can't be read", pages - sent.pages - sent.zero_pages, report_.pod);
  TRY(pages_->end_round(round_ + 2));
  return Round{sent.pages, sent.zero_pages, sent.bytes, watch.total_us()};
}

void Departure::begin_pushing() {
  const auto work = [this] {
    // Begun in the freeze, it would inherit its priority, and keep off the processors who answers faults.
    kernel::work_in_background(HostPid{::gettid()});
    pushed_ = caught([this] { return push(); });
  };
  try {
    pushing_ = std::jthread(work);
  } catch (const std::system_error& none) {
    // What isn't pushed is asked for.
    pushed_ = fail(ErrorKind::failed, "no thread for it: {}", none.what());
  }
}

void Departure::end_answering() {
  if (!answering_.joinable()) return;
  ::shutdown(reference_.fd(), SHUT_RDWR);
  answering_.join();
}

/// The copy here is not the pod any more. It stays as it is, in the freezer, untraced, its network shut: whoever has
/// called this knows what for.
void Departure::let_lie(const Error& why) {
  if (sending_.joinable()) sending_.join();
  if (pushing_.joinable()) pushing_.join();
  end_answering();
  descriptors_.reset();
  in_hand_.clear();
  let_down();
  thaw_all(frozen_);
  (void)pod_.gate().set(pod::Gate::State::shut);
  report_.error = why.message();
}

Departure::~Departure() {
  end_answering();
}

Result<void> Departure::finish_serving() {
  tell("drain");
  if (pushing_.joinable()) pushing_.join();
  if (!pushed_) return std::unexpected(std::move(pushed_).error().within("push pages"));
  report_.rounds.push_back(*pushed_);
  report_.bytes_sent += pushed_->bytes;
  auto drained = expect(wire::Type::drained, std::chrono::minutes(30));
  end_answering();
  if (!drained) return std::unexpected(std::move(drained).error());
  total_.lap("drain");
  return {};
}

Result<void> Departure::release() {
  descriptors_.reset();
  in_hand_.clear();
  // The freezer holds them from here on; they never run again.
  thaw_all(frozen_);
  TRY(forward_frames(std::chrono::milliseconds(20), std::chrono::milliseconds(100)));
  if (owes()) {
    report_.residuals.push_back(
        {"pages", "the destination fetches them on reference", "when the last one has arrived"});
    fault::reach("source.owing");
    TRY(finish_serving());
    report_.owing = false;
    report_.residuals.clear();
  }
  TRY(forward_frames(std::chrono::milliseconds(0), std::chrono::milliseconds(100)));
  (void)pod_.gate().set(pod::Gate::State::shut);
  TRY(control_->send(wire::Type::bye, BytesView{}));
  report_.total_us = total_.total_us();
  report_.phases = total_.spans();
  processes_.clear();
  fault::reach("source.released");
  // It is the destination's, whole: what can't be taken down here is for the next daemon, and no reason to say that it
  // didn't go well.
  if (const auto destroyed = pod_.destroy(); !destroyed) {
    log::error("pod {} has moved, and something of it stays here: {}", report_.pod, destroyed.error().message());
    report_.residuals.push_back({"processes", destroyed.error().message(), "when this node's daemon is started again"});
  }
  tell("done");
  return {};
}

}  // namespace godwit::migrate
