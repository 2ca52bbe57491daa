#include "node/doubts.hpp"

#include "base/log.hpp"
#include "pod/directory.hpp"

namespace godwit::node {

Doubts::Doubt::Doubt(Doubts& doubts, View view, std::string directory)
    : doubts_(doubts), view_(std::move(view)), directory_(std::move(directory)) {}

Doubts::Doubt::~Doubt() {
  const std::lock_guard lock(doubts_.mutex_);
  doubts_.waiting_.remove(this);
}

std::optional<control::Claim::Event> Doubts::Doubt::wait(control::Time pause) {
  std::unique_lock lock(doubts_.mutex_);
  if (!listed_) {
    log::warn("pod {} is in doubt: the store doesn't say whether it is here or on {}; it stays frozen", view_.pod,
              view_.peer);
    view_.since = std::chrono::system_clock::now();
    doubts_.waiting_.push_back(this);
    listed_ = true;
  }
  doubts_.changed_.wait_for(lock, pause, [this] { return word_ || doubts_.stopping_; });
  if (const auto written = word_ ? pod::write_word(directory_, *word_) : Result<void>{}; !written) {
    log::error("pod {}: what the operator says can't be written down, and isn't done: {}", view_.pod,
               written.error().message());
    word_.reset();
  }
  if (word_) return control::Claim::Resolved{*word_};
  if (doubts_.stopping_) return std::nullopt;
  return control::Claim::Tick{};
}

std::shared_ptr<Doubts::Doubt> Doubts::doubt(const std::string& pod, const std::string& directory,
                                             const std::string& peer, bool arriving) {
  return std::shared_ptr<Doubt>(
      new Doubt(*this, {.pod = pod, .peer = peer, .arriving = arriving, .since = {}}, directory));
}

std::vector<Doubts::View> Doubts::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<View> views;
  for (const Doubt* doubt : waiting_) views.push_back(doubt->view_);
  return views;
}

Result<void> Doubts::resolve(const std::string& pod, bool here) {
  const std::lock_guard lock(mutex_);
  for (Doubt* doubt : waiting_) {
    if (doubt->view_.pod != pod) continue;
    log::warn("pod {}: an operator says that it is {}", pod, here ? "here" : "on " + doubt->view_.peer);
    doubt->word_ = here;
    changed_.notify_all();
    return {};
  }
  return fail(ErrorKind::not_found, "pod {} is not in doubt on this node", pod);
}

void Doubts::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

}  // namespace godwit::node
