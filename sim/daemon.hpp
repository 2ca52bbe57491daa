#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>

#include "sim/messages.hpp"
#include "sim/starter.hpp"
#include "sim/store_end.hpp"
#include "sim/wire.hpp"

namespace godwit::sim {

class World;
class Machine;
class Departure;
class Arrival;
class Custody;
class Serving;
class Fetching;
class Ending;
struct Copy;

/// One godwitd: all that is forgotten when it dies. It carries out what control/ decides, as node/ and migrate/ do.
class Daemon {
 public:
  Daemon(World&, Machine&);
  ~Daemon();

  /// Makes the claims again that an earlier daemon had written down.
  void adopt();
  void receive(const Message&);

  // What users want.
  bool move(int pod, std::vector<std::string> candidates, bool postcopy, std::optional<control::Time> deadline);
  void cancel(int pod);
  void end_pod(int pod);

  [[nodiscard]] int index() const;
  World& world() { return world_; }
  Machine& machine() { return machine_; }
  Starter& starter() { return starter_; }
  StoreEnd& store() { return store_; }

  void send(Message);
  std::unique_ptr<Wire> connect(int peer);

  void serve(Copy&, std::unique_ptr<Wire>);
  void fetch(Copy&, std::unique_ptr<Wire>);
  Custody& keep(Copy&, std::function<void(control::Fate)> settled);
  void drop_custody(std::uint64_t copy);
  /// Nobody wants the pod any more.
  void forget(int pod);
  // They are forgotten when the event that ends them is over.
  void over(Departure&);
  void over(Arrival&);
  void over(Custody&);
  void over(Serving&);
  void over(Fetching&);
  void later(std::function<void()>);

  /// Of what must be over in the end, something that isn't. Empty: all is.
  [[nodiscard]] std::string unfinished() const;

  std::map<std::uint64_t, Wire*> wires;

 private:
  void opened(const Message&);
  void asked_whether_needed(const Message&, const Needed&);

  World& world_;
  Machine& machine_;
  StoreEnd store_;
  Starter starter_;
  std::map<std::uint64_t, std::unique_ptr<Departure>> departures_;  // by copy
  std::map<std::uint64_t, std::unique_ptr<Arrival>> arrivals_;
  std::map<std::uint64_t, std::unique_ptr<Custody>> custodies_;
  std::map<std::uint64_t, std::unique_ptr<Serving>> servings_;
  std::map<std::uint64_t, std::unique_ptr<Fetching>> fetchings_;
  std::map<int, std::unique_ptr<Ending>> endings_;  // by pod
  std::set<std::uint64_t> opened_;                  ///< connections that others have opened
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);
};

/// Something that a daemon does for a while.
class Actor {
 public:
  explicit Actor(Daemon& daemon) : daemon_(daemon) {}
  Actor(const Actor&) = delete;
  Actor& operator=(const Actor&) = delete;

  /// After a time of this node's clock, unless this is gone by then.
  void later(control::Time, std::function<void()>);
  [[nodiscard]] std::weak_ptr<int> alive() const { return alive_; }
  Daemon& daemon() { return daemon_; }

 protected:
  ~Actor() = default;
  World& world();
  Machine& machine();

  Daemon& daemon_;

 private:
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);
};

}  // namespace godwit::sim
