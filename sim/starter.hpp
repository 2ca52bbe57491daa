#pragma once

#include <functional>
#include <map>
#include <memory>

#include "control/admission.hpp"
#include "control/negotiation.hpp"
#include "sim/messages.hpp"

namespace godwit::sim {

class Daemon;
class Search;

/// node/starter, without threads: control::Admission, and a control::Negotiation for each search.
class Starter {
 public:
  explicit Starter(Daemon&);
  ~Starter();

  using Outcome = std::variant<control::Negotiation::MoveOut, control::Negotiation::GiveUp>;
  using Done = std::function<void(const Outcome&)>;
  std::uint64_t search(control::Negotiation::Plan, Done);
  void cancel(std::uint64_t search);

  void asked(int peer, const AskRoom&);
  void answered(int peer, const AnswerRoom&);
  void withdrawn(int peer, const control::Withdrawal&);

  /// Reasons against taking it in now.
  std::vector<control::Refusal> decide(int peer, const Hello&);
  control::Admission& admission() { return admission_; }
  [[nodiscard]] control::Time now() const;
  [[nodiscard]] control::Room room() const;
  void set_draining(bool);
  [[nodiscard]] bool idle() const { return searches_.empty(); }

 private:
  friend class Search;
  void over(std::uint64_t search);
  void check();

  Daemon& daemon_;
  control::Admission admission_;
  std::map<std::uint64_t, std::unique_ptr<Search>> searches_;
};

}  // namespace godwit::sim
