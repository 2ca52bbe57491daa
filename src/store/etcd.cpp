#include "store/etcd.hpp"

#include <condition_variable>
#include <map>
#include <thread>

#include "base/caught.hpp"
#include "base/log.hpp"
#include "store/etcd_gateway.hpp"

namespace godwit::store {
namespace {

constexpr int page = 250;  ///< keys in one answer
constexpr std::chrono::seconds warm_interval{3};
constexpr int warm = 2;  ///< connections that are kept in use: a commit finds one free

/// The end of all keys that begin with this one, which ends with '/'.
std::string after(std::string folder) {
  folder.back() = '/' + 1;
  return folder;
}

Json put_op(const std::string& key, const std::string& value, std::uint64_t lease = 0) {
  Json put{{"key", to_base64(key)}, {"value", to_base64(value)}};
  if (lease != 0) put["lease"] = std::to_string(lease);
  return {{"request_put", put}};
}
Json range_op(const std::string& key) {
  return {{"request_range", {{"key", to_base64(key)}}}};
}
Json delete_op(const std::string& key) {
  return {{"request_delete_range", {{"key", to_base64(key)}}}};
}
Json absent(const std::string& key) {
  return {{"key", to_base64(key)}, {"target", "CREATE"}, {"result", "EQUAL"}, {"create_revision", "0"}};
}
Json holds(const std::string& key, const std::string& value) {
  return {{"key", to_base64(key)}, {"target", "VALUE"}, {"result", "EQUAL"}, {"value", to_base64(value)}};
}

/// A record as it stands in etcd: always the same text for the same record, because it is compared as such.
std::string write_record(const Record& record) {
  return Json{{"pod", record.pod},         {"id", record.id},     {"owner", record.owner}, {"epoch", record.epoch},
              {"address", record.address}, {"home", record.home}, {"user", record.user}}
      .dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<Record> read_record(const std::string& text) {
  const Json json = Json::parse(text, nullptr, false);
  try {
    return Record{json.at("pod"),     json.at("id"),   json.at("owner"), json.at("epoch"),
                  json.at("address"), json.at("home"), json.at("user")};
  } catch (const Json::exception& problem) {
    return fail(ErrorKind::failed, "store: a record in etcd is malformed: {}", problem.what());
  }
}

struct KeyValue {
  std::string key, value;
};

Result<std::vector<KeyValue>> values_in(const Json& range) {
  std::vector<KeyValue> all;
  const auto found = range.find("kvs");
  if (found == range.end()) return all;
  const auto text = [](const Json& json, const char* name) {
    const auto at = json.find(name);
    return at != json.end() && at->is_string() ? from_base64(at->get<std::string>()) : Result<std::string>("");
  };
  for (const Json& item : *found) all.push_back({TRY(text(item, "key")), TRY(text(item, "value"))});
  return all;
}

/// What a transaction has done.
struct Outcome {
  bool succeeded = false;
  bool unsure = false;
  std::vector<std::vector<KeyValue>> ranges;  ///< of its operations, in their order; empty for those that aren't
};

class EtcdStore final : public Store {
 public:
  explicit EtcdStore(std::unique_ptr<EtcdGateway> gateway)
      : gateway_(std::move(gateway)),
        warmer_([this] { keep_going("the connections to etcd", [this] { keep_warm(); }); }) {}
  ~EtcdStore() override {
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
    }
    wake_.notify_all();
    warmer_.join();
  }

  Result<void> create(const Record& record) override {
    TRY(check(record));
    const std::string text = write_record(record);
    Json compare = Json::array({absent(pod_key(record.pod))});
    Json success = Json::array({put_op(pod_key(record.pod), text)});
    Json failure = Json::array({range_op(pod_key(record.pod))});
    if (!record.address.empty()) {
      compare.push_back(absent(address_key(record.address)));
      success.push_back(put_op(address_key(record.address), record.pod));
      failure.push_back(range_op(address_key(record.address)));
    }
    const Outcome outcome = TRY(transact(std::move(compare), std::move(success), std::move(failure)));
    if (outcome.succeeded) return {};
    if (!outcome.ranges.at(0).empty()) {
      const Record taken = TRY(read_record(outcome.ranges[0][0].value));
      // The first try may have done it before its answer was lost.
      if (outcome.unsure && taken.id == record.id) return {};
      return std::unexpected(name_taken(taken));
    }
    Record taken{.pod = "?", .owner = "?", .address = record.address};
    if (outcome.ranges.size() > 1 && !outcome.ranges[1].empty())
      if (auto other = TRY(get(outcome.ranges[1][0].value))) taken = std::move(*other);
    return std::unexpected(address_taken(taken));
  }

  Result<std::optional<Record>> get(const std::string& pod) override {
    const auto answer = TRY(gateway_->call("/v3/kv/range", {{"key", to_base64(pod_key(pod))}}));
    const auto found = TRY(values_in(answer.json));
    if (found.empty()) return std::nullopt;
    return TRY(read_record(found[0].value));
  }

  Result<std::vector<Record>> list() override {
    std::vector<Record> records;
    for (const auto& [key, value] : TRY(all_below(pod_key("")))) records.push_back(TRY(read_record(value)));
    return records;
  }

  Result<bool> move(const Record& expected, const std::string& new_owner) override {
    if (new_owner.empty() || new_owner.size() > text_limit)
      return fail(ErrorKind::invalid, "store: '{}' can't own a pod", new_owner.substr(0, 100));
    return swap(expected, [&](const Record& before) {
      Record moved = before;
      moved.owner = new_owner;
      moved.epoch++;
      return std::pair(Json::array({put_op(pod_key(before.pod), write_record(moved))}), std::optional(moved));
    });
  }

  Result<bool> remove(const Record& expected) override {
    return swap(expected, [&](const Record& before) {
      Json operations = Json::array({delete_op(pod_key(before.pod))});
      if (!before.address.empty()) operations.push_back(delete_op(address_key(before.address)));
      return std::pair(std::move(operations), std::optional<Record>());
    });
  }

  Result<std::uint64_t> changed(std::uint64_t since, std::chrono::milliseconds limit) override {
    const Json all{{"key", to_base64(pod_key(""))}, {"range_end", to_base64(after(pod_key("")))}};
    if (since == 0) {
      Json count = all;
      count["count_only"] = true;
      return revision_of(TRY(gateway_->call("/v3/kv/range", count)).json);
    }
    Json request = all;
    request["start_revision"] = std::to_string(since + 1);
    std::uint64_t state = since;
    const auto news = [&](const Json& message) {
      const Json result = message.value("result", Json::object());
      for (const Json& event : result.value("events", Json::array()))
        state = std::max(state, number_in(event.value("kv", Json::object()), "mod_revision"));
      // What is since then has been compacted, or etcd gives it up for another reason: begin again from now.
      if (result.value("canceled", false)) state = std::max(since + 1, revision_of(result));
      return state != since;
    };
    TRY(gateway_->watch({{"create_request", std::move(request)}}, limit, news));
    return state;
  }

  Result<void> put(const Note& note, const Keep& keep) override {
    TRY(check(note));
    Json operations = Json::array({put_op(note_key(note.kind, note.key), note.value)});
    const std::string mark = mark_key(note.kind, note.key);
    if (keep.lease.count() > 0) {
      operations.push_back(put_op(mark, "", TRY(lease_of(mark, keep.lease))));
      operations.push_back(put_op(leased_key(note.kind, note.key), ""));
    }
    const auto done = transact(Json::array(), std::move(operations), Json::array());
    if (!done) {
      // The lease may have ended meanwhile: the next time it is a new one.
      const std::lock_guard lock(mutex_);
      leases_.erase(mark);
      return std::unexpected(done.error());
    }
    return keep.most == 0 ? Result<void>() : trim(note.kind, keep.most);
  }

  Result<std::vector<Note>> notes(const std::string& kind, const std::string& key) override {
    const auto under = [&](const std::string& folder) -> Result<std::vector<KeyValue>> {
      if (key.empty()) return all_below(folder);
      const auto answer = TRY(gateway_->call("/v3/kv/range", {{"key", to_base64(folder + key)}}));
      return values_in(answer.json);
    };
    std::map<std::string, bool> leased;  // true: and it has been renewed
    const std::string marks = mark_key(kind, ""), leases = leased_key(kind, "");
    for (const auto& found : TRY(under(leases))) leased[found.key.substr(leases.size())] = false;
    if (!leased.empty())
      for (const auto& found : TRY(under(marks))) leased[found.key.substr(marks.size())] = true;
    std::vector<Note> all;
    const std::string folder = note_key(kind, "");
    for (auto& found : TRY(under(folder))) {
      const std::string name = found.key.substr(folder.size());
      const auto lease = leased.find(name);
      all.push_back({kind, name, std::move(found.value), lease != leased.end() && !lease->second});
    }
    return all;
  }

  Result<void> erase(const std::string& kind, const std::string& key) override {
    TRY(transact(
        Json::array(),
        Json::array({delete_op(note_key(kind, key)), delete_op(mark_key(kind, key)), delete_op(leased_key(kind, key))}),
        Json::array()));
    const std::lock_guard lock(mutex_);
    leases_.erase(mark_key(kind, key));
    return {};
  }

 private:
  [[nodiscard]] std::string pod_key(const std::string& pod) const { return gateway_->prefix() + "/pods/" + pod; }
  [[nodiscard]] std::string address_key(const std::string& address) const {
    return gateway_->prefix() + "/addresses/" + address;
  }
  [[nodiscard]] std::string note_key(const std::string& kind, const std::string& key) const {
    return fmt::format("{}/notes/{}/{}", gateway_->prefix(), kind, key);
  }
  /// Under the lease, and gone with it.
  [[nodiscard]] std::string mark_key(const std::string& kind, const std::string& key) const {
    return fmt::format("{}/alive/{}/{}", gateway_->prefix(), kind, key);
  }
  /// Says for good that the note has a lease.
  [[nodiscard]] std::string leased_key(const std::string& kind, const std::string& key) const {
    return fmt::format("{}/leased/{}/{}", gateway_->prefix(), kind, key);
  }

  static std::uint64_t revision_of(const Json& answer) {
    return number_in(answer.value("header", Json::object()), "revision");
  }

  Result<Outcome> transact(Json compare, Json success, Json failure) {
    const std::size_t operations[] = {failure.size(), success.size()};
    const auto answer = TRY(gateway_->call(
        "/v3/kv/txn",
        {{"compare", std::move(compare)}, {"success", std::move(success)}, {"failure", std::move(failure)}}));
    // A Json of another type than expected throws.
    return caught([&]() -> Result<Outcome> {
      Outcome outcome{answer.json.value("succeeded", false), answer.unsure, {}};
      for (const Json& response : answer.json.value("responses", Json::array())) {
        const auto range = response.find("response_range");
        outcome.ranges.push_back(range == response.end() ? std::vector<KeyValue>() : TRY(values_in(*range)));
      }
      if (outcome.ranges.size() != operations[outcome.succeeded ? 1 : 0])
        return fail(ErrorKind::failed, "store: etcd answers {} of {} operations", outcome.ranges.size(),
                    operations[outcome.succeeded ? 1 : 0]);
      return outcome;
    });
  }

  /// Carries out what `change` makes of the record, if that is still `expected`: the operations, and the record after
  /// them (none: it is removed). The record as a whole is compared, so that one round trip does it.
  template <typename Change>
  Result<bool> swap(const Record& expected, const Change& change) {
    Record before = expected;
    bool unsure = false;
    for (;;) {
      const auto [operations, wanted] = change(before);
      const std::string key = pod_key(expected.pod);
      const Outcome outcome =
          TRY(transact(Json::array({holds(key, write_record(before))}), operations, Json::array({range_op(key)})));
      if (outcome.succeeded) return true;
      unsure = unsure || outcome.unsure;
      if (outcome.ranges.at(0).empty()) return unsure && !wanted;
      Record now = TRY(read_record(outcome.ranges[0][0].value));
      if (now.id != expected.id) return unsure && !wanted;
      // Ours by a try whose answer was lost: the epoch lets no other have done it.
      if (unsure && wanted && now.owner == wanted->owner && now.epoch == wanted->epoch) return true;
      if (now.owner != expected.owner || now.epoch != expected.epoch) return false;
      if (write_record(now) == write_record(before))
        return fail(ErrorKind::failed, "store: etcd doesn't see record {} as it was written", expected.pod);
      // What was expected says less than the record: the rest of it is known now.
      before = std::move(now);
    }
  }

  /// The lease of a note, alive; a new one where there is none.
  Result<std::uint64_t> lease_of(const std::string& mark, std::chrono::seconds time) {
    std::uint64_t lease = 0;
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = leases_.find(mark); found != leases_.end()) lease = found->second;
    }
    if (lease != 0) {
      const auto renewed = TRY(gateway_->call("/v3/lease/keepalive", {{"ID", std::to_string(lease)}}));
      if (number_in(renewed.json.value("result", Json::object()), "TTL") > 0) return lease;
    }
    const auto granted = TRY(gateway_->call("/v3/lease/grant", {{"TTL", std::to_string(time.count())}}));
    lease = number_in(granted.json, "ID");
    if (lease == 0) return fail(ErrorKind::failed, "store: etcd gave no lease");
    const std::lock_guard lock(mutex_);
    leases_[mark] = lease;
    return lease;
  }

  Result<void> trim(const std::string& kind, std::uint64_t most) {
    const std::string folder = note_key(kind, "");
    const Json all{{"key", to_base64(folder)}, {"range_end", to_base64(after(folder))}};
    Json count = all;
    count["count_only"] = true;
    const auto counted = TRY(gateway_->call("/v3/kv/range", count));
    const std::uint64_t there = number_in(counted.json, "count");
    if (there <= most) return {};
    Json oldest = all;
    oldest["keys_only"] = true;
    oldest["limit"] = std::to_string(there - most);
    const auto found = TRY(values_in(TRY(gateway_->call("/v3/kv/range", oldest)).json));
    if (found.empty()) return {};
    Json range = all;
    range["range_end"] = to_base64(found.back().key + '\0');
    TRY(gateway_->call("/v3/kv/deleterange", range));
    return {};
  }

  /// In pages, all of them as of the first one's time.
  Result<std::vector<KeyValue>> all_below(const std::string& folder) {
    std::vector<KeyValue> all;
    std::string from = folder;
    std::uint64_t revision = 0;
    for (;;) {
      Json request{{"key", to_base64(from)}, {"range_end", to_base64(after(folder))}, {"limit", std::to_string(page)}};
      if (revision != 0) request["revision"] = std::to_string(revision);
      const auto answer = TRY(gateway_->call("/v3/kv/range", request));
      if (revision == 0) revision = revision_of(answer.json);
      auto found = TRY(values_in(answer.json));
      std::ranges::move(found, std::back_inserter(all));
      if (!answer.json.value("more", false) || found.empty()) return all;
      from = all.back().key + '\0';
    }
  }

  /// Connections that a commit finds open, and a question now and then that finds a broken one before a commit does.
  void keep_warm() {
    bool reachable = true;
    for (;;) {
      std::vector<std::jthread> together;
      for (int i = 1; i < warm; i++) together.emplace_back([this] { (void)get("-"); });
      const auto answer = get("-");
      together.clear();
      if (answer.has_value() != reachable) {
        reachable = answer.has_value();
        if (reachable)
          log::info("store: etcd answers again");
        else
          log::warn("{}", answer.error().message());
      }
      std::unique_lock lock(mutex_);
      if (wake_.wait_for(lock, warm_interval, [this] { return ending_; })) return;
    }
  }

  const std::unique_ptr<EtcdGateway> gateway_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool ending_ = false;
  std::map<std::string, std::uint64_t> leases_;  ///< by mark
  std::thread warmer_;                           // the last: it uses all of it
};

}  // namespace

Result<std::unique_ptr<Store>> open_etcd(EtcdPlace place) {
  return std::make_unique<EtcdStore>(TRY(EtcdGateway::open(std::move(place))));
}

Result<std::unique_ptr<Store>> open_etcd(const std::string& url) {
  return open_etcd(TRY(EtcdPlace::parse(url)));
}

}  // namespace godwit::store
