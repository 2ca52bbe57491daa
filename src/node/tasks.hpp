#pragma once

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "node/io.hpp"

namespace godwit::node {

/// Threads that serve one connection each, and are all over before this object is.
class Tasks {
 public:
  /// One connection in the hands of its thread.
  class Connection {
   public:
    Stream stream;  ///< as it was accepted
    /// The other side has proved who it is: from here on it isn't broken off in favour of newcomers.
    void trust() { trusted_ = true; }
    /// Counts it among those of `whose`. False when they have a quarter of all that there may be already: no peer and
    /// no user keeps the others out.
    [[nodiscard]] bool charge(const std::string& whose) { return tasks_.charge(*this, whose); }

    explicit Connection(Tasks& tasks) : tasks_(tasks) {}

   private:
    friend class Tasks;
    Tasks& tasks_;
    std::string whose_;
    std::atomic<bool> trusted_ = false;
    bool broken_ = false;  ///< broken off by us; its thread is about to notice
    bool over_ = false;
    Fd handle_;  ///< our own duplicate, to break it off by: the thread may give the stream away
    std::thread thread_;
  };
  using Work = std::function<void(Connection&)>;

  /// At most `strangers` connections that are not trusted yet, and `most` in all.
  Tasks(std::size_t strangers, std::size_t most) : strangers_(strangers), most_(most) {}
  ~Tasks() { finish(); }

  /// Runs `work` with the connection on a thread of its own. When there are too many strangers, the oldest is broken
  /// off: someone who opens connections and says nothing can't keep others out.
  void run(Fd connection, const Work& work);
  /// Breaks all connections off and waits for the threads. Nothing runs from here on.
  void finish();

 private:
  void serve(Connection&, const Work&);
  bool charge(Connection&, const std::string& whose);
  void collect();
  void make_room();

  const std::size_t strangers_, most_;
  std::mutex mutex_;
  std::list<std::shared_ptr<Connection>> connections_;
  bool finished_ = false;
};

}  // namespace godwit::node
