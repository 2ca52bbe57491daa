#pragma once

#include <atomic>
#include <filesystem>

#include "store/store.hpp"

namespace godwit {

/// A real store of its own in a directory that goes with it, which is away when the test says so.
class FickleStore final : public store::Store {
 public:
  FickleStore() {
    char pattern[] = "/tmp/godwit-fickle-XXXXXX";
    directory_ = ::mkdtemp(pattern);
    store_ = std::move(*store::open_sqlite(directory_ + "/pods.db"));
  }
  ~FickleStore() override {
    store_.reset();
    std::filesystem::remove_all(directory_);
  }

  std::atomic<bool> away = false;
  std::atomic<int> calls = 0;

  Result<void> create(const store::Record& record) override {
    TRY(ask());
    return store_->create(record);
  }
  Result<std::optional<store::Record>> get(const std::string& pod) override {
    TRY(ask());
    return store_->get(pod);
  }
  Result<std::vector<store::Record>> list() override {
    TRY(ask());
    return store_->list();
  }
  Result<bool> move(const store::Record& expected, const std::string& owner) override {
    TRY(ask());
    return store_->move(expected, owner);
  }
  Result<bool> remove(const store::Record& expected) override {
    TRY(ask());
    return store_->remove(expected);
  }
  Result<std::uint64_t> changed(std::uint64_t since, std::chrono::milliseconds limit) override {
    TRY(ask());
    return store_->changed(since, limit);
  }
  Result<void> put(const store::Note& note, const store::Keep& keep = {}) override {
    TRY(ask());
    return store_->put(note, keep);
  }
  Result<std::vector<store::Note>> notes(const std::string& kind, const std::string& key = {}) override {
    TRY(ask());
    return store_->notes(kind, key);
  }
  Result<void> erase(const std::string& kind, const std::string& key) override {
    TRY(ask());
    return store_->erase(kind, key);
  }

 private:
  Result<void> ask() {
    calls++;
    if (away) return fail(ErrorKind::unreachable, "store: away");
    return {};
  }

  std::string directory_;
  std::unique_ptr<store::Store> store_;
};

}  // namespace godwit
