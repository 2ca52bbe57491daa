// A client that forgives nothing: N connections that never reconnect, one request at a time on each, every answer
// compared byte by byte with what it must be, so that a lost, doubled or stale one is found. Says how long the longest
// were and when.
//
//   loadclient redis|memcached|http|echo --host H --port P [options]     (--help)
//
// Says "ready" on stderr when all connections stand and the keys are there. Ends after --seconds, at SIGTERM, or, with
// --until-eof, when its stdin ends and what was asked is answered; then prints one JSON object. Exit code 1 if anything
// was wrong.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <nlohmann/json.hpp>
#include <queue>
#include <random>
#include <string>
#include <vector>

namespace {

struct Options {
  std::string mode, host, body_sum, path = "/";
  std::size_t body_bytes = 0;
  std::uint16_t port = 0;
  int connections = 16;
  std::uint64_t fill_mib = 0, value_bytes = 1024;
  double rate = 0, seconds = 0, silence = 20, write_share = 0.4;
  bool until_eof = false, bins = false;
};

volatile sig_atomic_t told_to_end = 0;

[[noreturn]] void die(const std::string& why) {
  std::fprintf(stderr, "loadclient: %s\n", why.c_str());
  std::exit(2);
}

std::int64_t nanoseconds(clockid_t clock) {
  timespec now{};
  clock_gettime(clock, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

std::uint64_t mix(std::uint64_t x) {
  x ^= x >> 33;
  x *= 0xff51afd7ed558ccdULL;
  x ^= x >> 33;
  x *= 0xc4ceb9fe1a85ec53ULL;
  return x ^ (x >> 33);
}

/// What a key holds at a version: tells one key's value from another's, and one version from the next. Printable.
std::string value_of(std::uint64_t key, std::uint32_t version, std::size_t bytes) {
  std::string value(bytes, ' ');
  std::uint64_t state = mix(key * 0x9e3779b97f4a7c15ULL + version);
  for (std::size_t i = 0; i < bytes; i++) {
    if (i % 8 == 0) state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    value[i] = static_cast<char>('0' + ((state >> (8 + i % 8 * 6)) & 63));
  }
  return value;
}

/// What is asked and, to the byte, what must be answered.
struct Exchange {
  std::string request, answer;
  bool counts = false;  ///< the answer is one more than the last
};

/// The dialects of the key-value servers.
struct Dialect {
  Exchange (*set)(const std::string& key, const std::string& value);
  Exchange (*get)(const std::string& key, const std::string& value);
  Exchange (*increment)(const std::string& key, std::uint64_t becomes);
};

std::string resp(std::initializer_list<std::string> words) {
  std::string text = "*" + std::to_string(words.size()) + "\r\n";
  for (const auto& word : words) text += "$" + std::to_string(word.size()) + "\r\n" + word + "\r\n";
  return text;
}

const Dialect redis_dialect{
    [](const std::string& key, const std::string& value) -> Exchange {
      return {resp({"SET", key, value}), "+OK\r\n"};
    },
    [](const std::string& key, const std::string& value) -> Exchange {
      return {resp({"GET", key}), "$" + std::to_string(value.size()) + "\r\n" + value + "\r\n"};
    },
    [](const std::string& key, std::uint64_t becomes) -> Exchange {
      return {resp({"INCR", key}), ":" + std::to_string(becomes) + "\r\n", true};
    },
};

const Dialect memcached_dialect{
    [](const std::string& key, const std::string& value) -> Exchange {
      return {"set " + key + " 0 0 " + std::to_string(value.size()) + "\r\n" + value + "\r\n", "STORED\r\n"};
    },
    [](const std::string& key, const std::string& value) -> Exchange {
      return {"get " + key + "\r\n",
              "VALUE " + key + " 0 " + std::to_string(value.size()) + "\r\n" + value + "\r\nEND\r\n"};
    },
    [](const std::string& key, std::uint64_t becomes) -> Exchange {
      return {"incr " + key + " 1\r\n", std::to_string(becomes) + "\r\n", true};
    },
};

struct Connection {
  int fd = -1;
  int number = 0;
  bool busy = false;
  std::uint64_t counter = 0;  // INCRs answered, or lines echoed
  Exchange now;
  std::string received;
  std::size_t sent = 0;
  std::int64_t began = 0;  // CLOCK_MONOTONIC
};

struct Bin {
  std::uint32_t count = 0;
  std::uint32_t longest_us = 0;
};

struct Slow {
  std::int64_t at_us;  // CLOCK_REALTIME, start of the request
  std::uint32_t took_us;
  int connection;
};

class Load {
 public:
  explicit Load(Options options) : options_(std::move(options)), random_(4711) {
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    if (options_.mode == "redis") dialect_ = &redis_dialect;
    if (options_.mode == "memcached") dialect_ = &memcached_dialect;
    keys_ = std::max<std::uint64_t>(options_.fill_mib * 1024 * 1024 / options_.value_bytes,
                                    static_cast<std::uint64_t>(options_.connections) * 16);
  }

  int run() {
    if (dialect_ != nullptr) preload();
    connections_.resize(options_.connections);
    for (int i = 0; i < options_.connections; i++) open(connections_[i], i);
    started_realtime_ = nanoseconds(CLOCK_REALTIME);
    started_ = last_answer_ = nanoseconds(CLOCK_MONOTONIC);
    std::fprintf(stderr, "ready\n");
    for (auto& connection : connections_) schedule(connection, started_ + spread(connection.number));
    loop();
    return report();
  }

 private:
  int dial() {
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(options_.host.c_str(), std::to_string(options_.port).c_str(), &hints, &found) != 0)
      die("no such host: " + options_.host);
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, found->ai_addr, found->ai_addrlen) != 0)
      die("connect " + options_.host + ":" + std::to_string(options_.port) + ": " + std::strerror(errno));
    freeaddrinfo(found);
    const int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
  }

  std::string key(std::uint64_t number) const { return "key:" + std::to_string(number); }
  std::string counter(int number) const { return "counter:" + std::to_string(number); }

  static void all_out(int fd, const std::string& text) {
    for (std::size_t done = 0; done < text.size();) {
      const ssize_t now = send(fd, text.data() + done, text.size() - done, MSG_NOSIGNAL);
      if (now <= 0) die(std::string("filling: ") + std::strerror(errno));
      done += now;
    }
  }
  static void all_in(int fd, const std::string& expected) {
    std::string got(expected.size(), 0);
    for (std::size_t done = 0; done < got.size();) {
      const ssize_t now = recv(fd, got.data() + done, got.size() - done, 0);
      if (now <= 0) die("filling: the server closed the connection");
      done += now;
    }
    if (got != expected) die("filling: the server answers " + got.substr(0, 80));
  }

  /// All keys at version 0 and all counters at 0, many requests at a time.
  void preload() {
    versions_.assign(keys_, 0);
    const int fd = dial();
    std::string out, in;
    for (std::uint64_t i = 0; i < keys_ + options_.connections; i++) {
      const Exchange exchange = i < keys_ ? dialect_->set(key(i), value_of(i, 0, options_.value_bytes))
                                          : dialect_->set(counter(static_cast<int>(i - keys_)), "0");
      out += exchange.request;
      in += exchange.answer;
      if (i % 64 == 63 || i + 1 == keys_ + options_.connections) {
        all_out(fd, out);
        all_in(fd, in);
        out.clear();
        in.clear();
      }
    }
    close(fd);
  }

  void open(Connection& connection, int number) {
    connection.fd = dial();
    connection.number = number;
    fcntl(connection.fd, F_SETFL, fcntl(connection.fd, F_GETFL) | O_NONBLOCK);
    epoll_event event{};
    event.events = EPOLLIN | EPOLLRDHUP;
    event.data.u32 = number;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, connection.fd, &event);
  }

  /// Starts are spread evenly, so that something is under way at every moment.
  std::int64_t interval() const {
    return options_.rate <= 0 ? 0 : static_cast<std::int64_t>(1e9 * options_.connections / options_.rate);
  }
  std::int64_t spread(int number) const { return interval() * number / options_.connections; }
  void schedule(Connection& connection, std::int64_t when) { due_.emplace(when, connection.number); }

  void loop() {
    const std::int64_t end = options_.seconds > 0 ? started_ + static_cast<std::int64_t>(options_.seconds * 1e9)
                                                  : std::numeric_limits<std::int64_t>::max();
    if (options_.until_eof) {
      epoll_event event{};
      event.events = EPOLLIN | EPOLLRDHUP;
      event.data.u32 = UINT32_MAX;
      fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
      if (epoll_ctl(epoll_, EPOLL_CTL_ADD, 0, &event) != 0) die("--until-eof needs a pipe as stdin");
    }
    std::array<epoll_event, 256> events{};
    while (told_to_end == 0 && broken_ < options_.connections && (!ending_ || any_busy())) {
      std::int64_t now = nanoseconds(CLOCK_MONOTONIC);
      if (now >= end) break;
      while (!ending_ && !due_.empty() && due_.top().first <= now) {
        Connection& connection = connections_[due_.top().second];
        due_.pop();
        if (connection.fd >= 0) ask(connection);
        now = nanoseconds(CLOCK_MONOTONIC);
      }
      std::int64_t wait = std::min<std::int64_t>(100'000'000, end - now);
      if (!ending_ && !due_.empty()) wait = std::clamp<std::int64_t>(due_.top().first - now, 0, wait);
      const timespec limit{wait / 1'000'000'000, wait % 1'000'000'000};
      const int count = epoll_pwait2(epoll_, events.data(), events.size(), &limit, nullptr);
      for (int i = 0; i < count; i++) {
        if (events[i].data.u32 == UINT32_MAX) {
          char bytes[64];
          if (read(0, bytes, sizeof bytes) != 0) continue;
          ending_ = true;
          epoll_ctl(epoll_, EPOLL_CTL_DEL, 0, nullptr);
        } else {
          take(connections_[events[i].data.u32]);
        }
      }
      look_for_silence();
    }
  }

  [[nodiscard]] bool any_busy() const {
    return std::any_of(connections_.begin(), connections_.end(), [](const Connection& one) { return one.busy; });
  }

  void ask(Connection& connection) {
    connection.now = next(connection);
    connection.received.clear();
    connection.sent = 0;
    connection.busy = true;
    connection.began = nanoseconds(CLOCK_MONOTONIC);
    push(connection);
  }
  void push(Connection& connection) {
    while (connection.sent < connection.now.request.size()) {
      const ssize_t sent = send(connection.fd, connection.now.request.data() + connection.sent,
                                connection.now.request.size() - connection.sent, MSG_NOSIGNAL);
      if (sent < 0 && errno == EAGAIN) {  // a request is smaller than any socket's buffer
        pollfd entry{connection.fd, POLLOUT, 0};
        poll(&entry, 1, 100);
        continue;
      }
      if (sent < 0) return wrong(connection, std::string("send: ") + std::strerror(errno));
      connection.sent += sent;
    }
  }

  Exchange next(Connection& connection) {
    if (options_.mode == "http")
      return {"GET " + options_.path + " HTTP/1.1\r\nHost: " + options_.host + "\r\n\r\n", ""};
    if (options_.mode == "echo") {
      const std::string ask = std::to_string(connection.number) + " " + std::to_string(mix(connection.counter));
      return {ask + "\n", ask + " " + std::to_string(connection.counter + 1) + "\n", true};
    }
    const double dice = std::uniform_real_distribution<>(0, 1)(random_);
    if (dice < 0.2) return dialect_->increment(counter(connection.number), connection.counter + 1);
    // Each key belongs to one connection: it alone knows the version.
    const std::uint64_t own = keys_ / options_.connections;
    const std::uint64_t number =
        std::uniform_int_distribution<std::uint64_t>(0, own - 1)(random_) * options_.connections + connection.number;
    if (dice < 0.2 + options_.write_share)
      return dialect_->set(key(number), value_of(number, ++versions_[number], options_.value_bytes));
    return dialect_->get(key(number), value_of(number, versions_[number], options_.value_bytes));
  }

  void take(Connection& connection) {
    std::array<char, 65536> bytes;
    for (;;) {
      const ssize_t got = recv(connection.fd, bytes.data(), bytes.size(), 0);
      if (got < 0 && errno == EAGAIN) return;
      if (got < 0) return wrong(connection, std::string("recv: ") + std::strerror(errno));
      if (got == 0) return wrong(connection, "the server closed the connection");
      if (!connection.busy)
        return wrong(connection, "an answer to nothing: " + std::string(bytes.data(), std::min<ssize_t>(got, 80)));
      connection.received.append(bytes.data(), got);
      const int complete = options_.mode == "http" ? check_http(connection) : check_exact(connection);
      if (complete < 0) return;
      if (complete > 0) return answered(connection);
    }
  }
  /// 1: complete and right; 0: so far right; -1: wrong (and said).
  int check_exact(Connection& connection) {
    const std::string &is = connection.received, &should = connection.now.answer;
    if (is.size() <= should.size() && should.compare(0, is.size(), is) == 0) return is.size() == should.size() ? 1 : 0;
    wrong(connection,
          "asked " + head(connection.now.request) + ", answered " + head(is) + ", should be " + head(should));
    return -1;
  }
  int check_http(Connection& connection) {
    const std::string& is = connection.received;
    const std::size_t blank = is.find("\r\n\r\n");
    if (blank == std::string::npos) return is.size() > 16384 ? (wrong(connection, "endless header"), -1) : 0;
    std::string lower = is.substr(0, blank);
    std::transform(lower.begin(), lower.end(), lower.begin(), ::tolower);
    const std::size_t field = lower.find("\r\ncontent-length: ");
    if (is.rfind("HTTP/1.1 200 ", 0) != 0 || field == std::string::npos) {
      wrong(connection, "answered " + head(is));
      return -1;
    }
    const std::size_t length = std::strtoull(lower.c_str() + field + 18, nullptr, 10);
    if (is.size() < blank + 4 + length) return 0;
    const std::string body = is.substr(blank + 4);
    if (body.size() > length ||
        (options_.body_bytes > 0 && (length != options_.body_bytes || sum(body) != options_.body_sum))) {
      wrong(connection, "another body than expected: " + head(body));
      return -1;
    }
    return 1;
  }
  /// FNV-1a, as the caller reckons it.
  static std::string sum(const std::string& text) {
    std::uint64_t value = 0xcbf29ce484222325ULL;
    for (const unsigned char byte : text) value = (value ^ byte) * 0x100000001b3ULL;
    std::array<char, 17> hexadecimal{};
    std::snprintf(hexadecimal.data(), hexadecimal.size(), "%016lx", value);
    return hexadecimal.data();
  }
  static std::string head(const std::string& text) {
    std::string shown;
    for (const char c : text.substr(0, 80)) shown += c >= ' ' && c <= '~' ? c : '.';
    return "'" + shown + (text.size() > 80 ? "…'" : "'") + " (" + std::to_string(text.size()) + " bytes)";
  }

  void answered(Connection& connection) {
    const std::int64_t now = nanoseconds(CLOCK_MONOTONIC);
    const auto took_us = static_cast<std::uint32_t>((now - connection.began) / 1000);
    connection.busy = false;
    if (connection.now.counts) connection.counter++;
    requests_++;
    longest_quiet_ = std::max(longest_quiet_, now - last_answer_);
    last_answer_ = now;
    latencies_[std::min<std::uint32_t>(took_us, latencies_.size() - 1)]++;
    const auto bin = static_cast<std::size_t>((connection.began - started_) / 1'000'000);
    if (bin >= bins_.size()) bins_.resize(bin + 1000);
    bins_[bin].count++;
    bins_[bin].longest_us = std::max(bins_[bin].longest_us, took_us);
    if (took_us > slow_floor_) {
      slow_.push_back({(started_realtime_ + connection.began - started_) / 1000, took_us, connection.number});
      if (slow_.size() > 4000) {
        std::sort(slow_.begin(), slow_.end(), [](const Slow& a, const Slow& b) { return a.took_us > b.took_us; });
        slow_.resize(1000);
        slow_floor_ = slow_.back().took_us;
      }
    }
    schedule(connection, std::max(now, connection.began + interval()));
  }

  void wrong(Connection& connection, const std::string& what) {
    broken_++;
    if (errors_.size() < 20) {
      errors_.push_back("connection " + std::to_string(connection.number) + " after " +
                        std::to_string((nanoseconds(CLOCK_MONOTONIC) - started_) / 1'000'000) + " ms: " + what);
      std::fprintf(stderr, "%s\n", errors_.back().c_str());
    }
    close(connection.fd);
    connection.fd = -1;
    connection.busy = false;
  }

  void look_for_silence() {
    const std::int64_t now = nanoseconds(CLOCK_MONOTONIC);
    if (now - looked_ < 500'000'000) return;
    looked_ = now;
    for (auto& connection : connections_)
      if (connection.busy && now - connection.began > static_cast<std::int64_t>(options_.silence * 1e9))
        wrong(connection, "no answer for " + std::to_string((now - connection.began) / 1'000'000) + " ms");
  }

  std::uint32_t quantile(double share) const {
    std::uint64_t seen = 0;
    for (std::size_t us = 0; us < latencies_.size(); us++)
      if ((seen += latencies_[us]) > share * static_cast<double>(requests_)) return us;
    return 0;
  }

  int report() {
    const std::int64_t now = nanoseconds(CLOCK_MONOTONIC);
    std::uint64_t waiting = 0;
    for (const auto& connection : connections_)
      if (connection.busy) waiting = std::max<std::uint64_t>(waiting, (now - connection.began) / 1000);
    std::sort(slow_.begin(), slow_.end(), [](const Slow& a, const Slow& b) { return a.took_us > b.took_us; });
    nlohmann::json json = {
        {"mode", options_.mode},
        {"connections", options_.connections},
        {"requests", requests_},
        {"errors", broken_},
        {"messages", errors_},
        {"seconds", static_cast<double>(now - started_) / 1e9},
        {"started_us", started_realtime_ / 1000},
        {"p50_us", quantile(0.5)},
        {"p99_us", quantile(0.99)},
        {"longest_us", slow_.empty() ? quantile(1) : slow_[0].took_us},
        {"longest_quiet_us", longest_quiet_ / 1000},
        {"unanswered_us", waiting},
    };
    auto& slow = json["slowest"] = nlohmann::json::array();
    for (std::size_t i = 0; i < slow_.size() && i < 100; i++)
      slow.push_back({{"at_us", slow_[i].at_us}, {"took_us", slow_[i].took_us}, {"connection", slow_[i].connection}});
    if (options_.bins) {  // [milliseconds since started_us, requests begun in it, the longest of them in µs]
      auto& bins = json["bins"] = nlohmann::json::array();
      for (std::size_t i = 0; i < bins_.size(); i++)
        if (bins_[i].count > 0) bins.push_back({i, bins_[i].count, bins_[i].longest_us});
    }
    std::printf("%s\n", json.dump().c_str());
    return broken_ == 0 && requests_ > 0 ? 0 : 1;
  }

  Options options_;
  const Dialect* dialect_ = nullptr;
  std::mt19937_64 random_;
  int epoll_ = -1;
  std::uint64_t keys_ = 0;
  std::vector<std::uint32_t> versions_;
  std::vector<Connection> connections_;
  using Due = std::pair<std::int64_t, int>;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  std::int64_t started_ = 0, started_realtime_ = 0, last_answer_ = 0, longest_quiet_ = 0, looked_ = 0;
  std::uint64_t requests_ = 0;
  int broken_ = 0;
  bool ending_ = false;  ///< nothing more is asked
  std::vector<std::string> errors_;
  std::vector<std::uint64_t> latencies_ = std::vector<std::uint64_t>(2'000'000);
  std::vector<Bin> bins_;
  std::vector<Slow> slow_;
  std::uint32_t slow_floor_ = 0;
};

}  // namespace

int main(int count, char** arguments) {
  Options options;
  CLI::App app{"A strict client under load for redis, memcached, HTTP and a counting echo server"};
  app.add_option("mode", options.mode)->required()->check(CLI::IsMember({"redis", "memcached", "http", "echo"}));
  app.add_option("--host", options.host)->required();
  app.add_option("--port", options.port)->required();
  app.add_option("--connections", options.connections)->check(CLI::Range(1, 10000));
  app.add_option("--rate", options.rate, "requests per second over all connections; 0: as fast as answers come");
  app.add_option("--seconds", options.seconds, "0: until told");
  app.add_option("--silence", options.silence, "seconds without an answer that count as an error");
  app.add_option("--fill-mib", options.fill_mib, "size of the keys that are written first");
  app.add_option("--value-bytes", options.value_bytes)->check(CLI::Range(1, 60000));
  app.add_option("--write-share", options.write_share)->check(CLI::Range(0.0, 0.8));
  app.add_option("--path", options.path);
  app.add_option("--body-bytes", options.body_bytes, "size of what the server must answer");
  app.add_option("--body-sum", options.body_sum, "its FNV-1a, 64 bits, hexadecimal");
  app.add_flag("--until-eof", options.until_eof);
  app.add_flag("--bins", options.bins, "also print the longest request of each millisecond");
  CLI11_PARSE(app, count, arguments);
  struct sigaction action {};
  action.sa_handler = [](int) { told_to_end = 1; };
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  return Load(std::move(options)).run();
}
