#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/fault.hpp"
#include "base/fd.hpp"
#include "mutation.hpp"
#include "order.hpp"
#include "migrate/page_stream.hpp"
#include "migrate/wire.hpp"

/// The test daemon's lies. What was told is written to lie.told beside the file /run/godwit/lie, a line for each lie.
/// That file isn't there, or holds one of two things.
///
/// "SEED NUMBER SIDE": while move NUMBER is under way, of which this daemon is SIDE (source or destination), something
/// that it says to the other one isn't what it should be. Seed and number decide which message that is, and what
/// becomes of it.
///
/// "MESSAGE PATH = VALUE", in any number of lines: wherever such a message has something at the path, it is VALUE. All
/// lines for a message are obeyed in their order. MESSAGE is "ask", "answer", or a type of the control connection by
/// its name. PATH is made of steps, each with a dot before it: a key, the number of an element, or {KEY=TEXT}, the
/// first element whose KEY is TEXT. What the last step names is added if it isn't there: a key, or the element behind
/// the last one. VALUE is a number, true, false, "gone" (it is taken away), or else a text.
namespace godwit::fault {
namespace {

using Type = migrate::wire::Type;

const std::string file_name = "/run/godwit/lie";

/// What a frame is: a type of the control connection, or one of these.
enum Other : int { role = 100, data, zero, end, word, asking, answering, greeting };

struct Choice {
  Flow flow;
  int what;
  int weight;
  int most = 1;  ///< as many of them are told apart
};

constexpr Choice message(Type type, int weight, int most = 1) {
  return {Flow::control, static_cast<int>(type), weight, most};
}

constexpr std::array source_says{message(Type::hello, 7),
                                 message(Type::clock, 2, 8),
                                 message(Type::prepare, 5),
                                 message(Type::files, 8, 6),
                                 message(Type::round, 12, 2),
                                 message(Type::objects_ahead, 10, 2),
                                 message(Type::freezing, 9),
                                 message(Type::objects_kept, 6),
                                 message(Type::objects, 11),
                                 message(Type::last, 11),
                                 message(Type::state, 16),
                                 message(Type::log, 3, 2),
                                 message(Type::execution, 3),
                                 message(Type::streams_end, 2),
                                 message(Type::go, 3),
                                 message(Type::bye, 1),
                                 Choice{Flow::records, role, 2, 3},
                                 Choice{Flow::records, data, 7, 6},
                                 Choice{Flow::records, zero, 2, 2},
                                 Choice{Flow::records, end, 3, 6},
                                 Choice{Flow::frame, asking, 4},
                                 Choice{Flow::frame, greeting, 2, 4}};
constexpr std::array destination_says{message(Type::welcome, 5),          message(Type::clock, 6, 8),
                                      message(Type::ready, 8, 4),         message(Type::done, 5, 2),
                                      message(Type::rebuilt, 9),          message(Type::running, 9),
                                      message(Type::drained, 2),          message(Type::abort, 2),
                                      Choice{Flow::records, data, 8, 4},  Choice{Flow::frame, answering, 8},
                                      Choice{Flow::frame, greeting, 2, 2}};

/// One lie that is to be told.
struct Lie {
  Flow flow;
  int what;
  int ordinal;
};

/// -1: nothing that lies are told about.
int what_is(Flow flow, const Bytes& frame) {
  if (flow == Flow::control) return frame[4];
  if (flow == Flow::records) {
    if (frame.size() < sizeof(migrate::PageHeader)) return role;
    migrate::PageHeader header;
    std::memcpy(&header, frame.data(), sizeof header);
    constexpr std::array kinds{data, zero, end, end, word};
    return header.kind < kinds.size() ? kinds[header.kind] : static_cast<int>(word);
  }
  const auto value = parse(BytesView(frame).subspan(4), true);
  if (!value) return -1;
  if (has_key(*value, "ask")) return asking;
  if (has_key(*value, "yes") && has_key(*value, "reason")) return answering;
  return has_key(*value, "nonce") || has_key(*value, "mac") ? static_cast<int>(greeting) : -1;
}

/// The types of the control connection, from 1.
constexpr std::array<std::string_view, 26> types{
    "hello", "welcome", "refused",  "clock",       "prepare", "ready",         "files",        "round",    "done",
    "last",  "state",   "objects",  "rebuilt",     "go",      "running",       "frames",       "log",      "drained",
    "bye",   "abort",   "freezing", "streams_end", "probe",   "objects_ahead", "objects_kept", "execution"};
static_assert(types.size() == static_cast<std::size_t>(Type::execution));

/// As lines of the file's second form have it.
std::string_view name_of(int what) {
  if (what == asking) return "ask";
  if (what == answering) return "answer";
  return what >= 1 && what <= static_cast<int>(types.size()) ? types[static_cast<std::size_t>(what) - 1] : "";
}

class Liar {
 public:
  std::optional<Bytes> frame(Flow flow, int socket, std::span<const iovec> parts) {
    std::ifstream file(file_name);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    const std::scoped_lock lock(mutex_);
    if (text.empty()) {
      armed_.clear();
      held_.clear();
      return {};
    }
    if (text != armed_) arm(text);
    Bytes whole;
    for (const auto& part : parts) {
      const auto* begin = static_cast<const std::uint8_t*>(part.iov_base);
      whole.insert(whole.end(), begin, begin + part.iov_len);
    }
    const int what = what_is(flow, whole);
    if (what < 0) return {};
    if (!orders_.empty()) return obeyed(what, flow == Flow::control ? 5 : 4, flow != Flow::control, std::move(whole));
    const int ordinal = said_[{flow, what}]++;
    const auto lie = std::ranges::find_if(
        lies_, [&](const Lie& one) { return one.flow == flow && one.what == what && one.ordinal == ordinal; });
    const auto held = held_.find(socket);
    if (lie == lies_.end() && held == held_.end()) return {};
    if (lie != lies_.end()) {
      const std::string done = tell(flow, what, socket, whole);
      note(fmt::format("{} {} #{}: {}", flow == Flow::control ? "message" : "record", what, ordinal, done));
    }
    if (held != held_.end()) {
      whole.insert(whole.end(), held->second.begin(), held->second.end());
      held_.erase(held);
    }
    return whole;
  }

 private:
  static void note(const std::string& told) { std::ofstream(file_name + ".told", std::ios::app) << told << "\n"; }

  void arm(const std::string& text) {
    armed_ = text;
    said_.clear();
    held_.clear();
    lies_.clear();
    orders_.clear();
    if (!is_number(text.substr(0, 1))) return take_orders(text);
    std::uint64_t seed = 0, number = 0;
    char side[16] = "";
    if (std::sscanf(text.c_str(), "%lu %lu %15s", &seed, &number, side) != 3) return;
    chance_ = Chance(seed, number);
    do plan(std::string_view(side) == "source" ? std::span<const Choice>(source_says) : destination_says);
    while (chance_.one_in(4) && lies_.size() < 4);
  }

  void take_orders(const std::string& text) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      const auto space = line.find(" ."), equals = line.find(" = ");
      if (space >= equals || equals == std::string::npos) {
        note("not understood: " + line);
        continue;
      }
      orders_.push_back({line.substr(0, space), line.substr(space + 1, equals - space - 1), line.substr(equals + 3)});
    }
  }

  std::optional<Bytes> obeyed(int what, std::size_t head, bool big_endian, Bytes frame) {
    const auto name = name_of(what);
    if (frame.size() < head || std::ranges::find(orders_, name, &Order::message) == orders_.end()) return {};
    auto value = parse(BytesView(frame).subspan(head), false);
    bool any = false;
    for (const auto& order : orders_) {
      if (!value || order.message != name || !obey(*value, order)) continue;
      note(fmt::format("{} {} = {}", order.message, order.path, order.value));
      any = true;
    }
    if (!any) return {};
    const Bytes payload = bytes_of(*value);
    frame.resize(head);
    frame.insert(frame.end(), payload.begin(), payload.end());
    set_length(frame, static_cast<std::uint32_t>(payload.size()), big_endian);
    return frame;
  }

  void plan(std::span<const Choice> choices) {
    int all = 0;
    for (const auto& choice : choices) all += choice.weight;
    int left = static_cast<int>(chance_.below(static_cast<std::size_t>(all)));
    for (const auto& choice : choices) {
      if ((left -= choice.weight) >= 0) continue;
      lies_.push_back(
          {choice.flow, choice.what, static_cast<int>(chance_.below(static_cast<std::size_t>(choice.most)))});
      return;
    }
  }

  /// Ends a connection on which both sides may be waiting for each other by now.
  static void wait_no_longer(int socket) {
    static constexpr std::chrono::seconds moment{2};
    std::thread([own = Fd(::fcntl(socket, F_DUPFD_CLOEXEC, 0))] {
      std::this_thread::sleep_for(moment);
      ::shutdown(own.get(), SHUT_RDWR);
    }).detach();
  }

  /// The other side waits now. Once in a while it has to find out by itself, where that doesn't take it ten minutes.
  void be_silent(int what, int socket) {
    const bool patient =
        what >= role || what == static_cast<int>(Type::done) || what == static_cast<int>(Type::drained);
    if (patient || !chance_.one_in(8)) wait_no_longer(socket);
  }

  std::string tell(Flow flow, int what, int socket, Bytes& frame) {
    switch (chance_.below(40)) {
      case 0:
      case 1: {
        const Bytes once = frame;
        frame.insert(frame.end(), once.begin(), once.end());
        return "twice";
      }
      case 2:
      case 3:
        // Behind the next one on this connection, if there is one.
        held_[socket] = std::move(frame);
        frame.clear();
        wait_no_longer(socket);
        return "later";
      case 4:
        frame.clear();
        be_silent(what, socket);
        return "not at all";
      case 5:
      case 6:
        frame.resize(chance_.below(frame.size()));
        ::shutdown(socket, SHUT_RD);
        return fmt::format("{} bytes, and the end", frame.size());
      default:
        break;
    }
    if (flow == Flow::records) return change_records(frame, chance_);
    const bool message = flow == Flow::control;
    const std::string done = change_frame(frame, message ? 5 : 4, !message, chance_);
    std::uint32_t length = 0;
    std::memcpy(&length, frame.data(), sizeof length);
    if (message && frame.size() < 5 + std::size_t{length}) be_silent(what, socket);
    return done;
  }

  std::mutex mutex_;
  std::string armed_;
  Chance chance_;
  std::vector<Lie> lies_;
  std::vector<Order> orders_;
  std::map<std::pair<Flow, int>, int> said_;
  std::map<int, Bytes> held_;  ///< by socket: what comes behind the next frame
};

}  // namespace

std::optional<Bytes> altered(Flow flow, int socket, std::span<const iovec> parts) {
  static Liar liar;
  return liar.frame(flow, socket, parts);
}

}  // namespace godwit::fault
