#include "migrate/limits.hpp"

#include <sys/sysinfo.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <ranges>
#include <set>

#include "base/names.hpp"
#include "pod/frames.hpp"

namespace godwit::migrate {
namespace {

constexpr std::uint64_t user_space = std::uint64_t{1} << 47;
constexpr std::uint64_t largest_file = std::uint64_t{1} << 56;
constexpr pid_t highest_pid = 1 << 22;      // PID_MAX_LIMIT
constexpr int highest_number = 1 << 30;     // of a descriptor: the limit of fs.nr_open
constexpr std::size_t longest_text = 4096;  // PATH_MAX, and longer than any name
constexpr std::size_t most_texts = 65536;
constexpr std::size_t most_reasons = 256;
constexpr std::size_t most_neighbours = 4096;
constexpr std::uint64_t most_output = std::uint64_t{1} << 62;  // of a program, in all
constexpr std::size_t most_unread = 10 * MiB;                  // what an init may keep, and drain of large pipes
constexpr std::size_t most_spans = 256, longest_span = 128;
constexpr std::uint64_t longest_us = std::uint64_t{1} << 50;
constexpr int all_protection = 7;
constexpr int last_signal = 64;

template <typename... Args>
std::unexpected<Error> wrong(fmt::format_string<Args...> format, Args&&... args) {
  return fail(ErrorKind::invalid, format, std::forward<Args>(args)...);
}

bool is_text(const std::string& text) {
  return text.size() < longest_text && text.find('\0') == std::string::npos;
}
bool are_texts(const std::vector<std::string>& texts) {
  return texts.size() <= most_texts && std::ranges::all_of(texts, is_text);
}

bool is_pid(PodPid pid) {
  return pid.value > 1 && pid.value <= highest_pid;
}
/// Or the init, or of another namespace.
bool is_any_pid(PodPid pid) {
  return pid.value >= 0 && pid.value <= highest_pid;
}

/// Nanoseconds since a machine was started: a hundred years at most.
bool is_time(std::int64_t time) {
  constexpr std::int64_t longest = 100LL * 366 * 24 * 3600 * 1'000'000'000;
  return time >= 0 && time < longest;
}

bool is_page(std::uint64_t address) {
  return address % page_size == 0;
}

Result<void> check(const Layout& layout) {
  std::uint64_t end = 0;
  for (const auto& area : layout) {
    if (area.begin < end || area.end <= area.begin || area.end > user_space || !is_page(area.begin) ||
        !is_page(area.end))
      return wrong("a mapping at {:#x}-{:#x} behind {:#x}", area.begin, area.end, end);
    end = area.end;
    if (area.backing > Backing::vdso || (area.protection & ~all_protection) != 0 || !is_page(area.offset) ||
        area.offset > largest_file || !is_text(area.path) || !is_text(area.flags))
      return wrong("a malformed mapping at {:#x}", area.begin);
  }
  return {};
}

/// What ends a process by a signal: others would leave it there for ever.
bool ends(int exit_code) {
  if (!WIFSIGNALED(exit_code)) return WIFEXITED(exit_code);
  constexpr std::array harmless{SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH};
  const int signal = WTERMSIG(exit_code);
  return signal <= last_signal && std::ranges::find(harmless, signal) == harmless.end();
}

Result<void> check(const wire::Process& process) {
  const auto number = process.pid.value;
  if (!is_pid(process.pid) || !is_any_pid(process.parent) || !is_any_pid(process.group) ||
      !is_any_pid(process.session) || !is_any_pid(process.forked_from))
    return wrong("process {} has impossible numbers", number);
  if (process.exit_signal < 0 || process.exit_signal > last_signal || (process.zombie && !ends(process.exit_code)))
    return wrong("process {} has impossible signals", number);
  if (!is_text(process.name)) return wrong("process {} has an impossible name", number);
  return check(process.layout);
}

Result<void> check(const std::vector<ObjectInfo>& objects) {
  std::uint64_t shared = 0;
  for (const auto& object : objects) {
    if (object.kind > ObjectInfo::Kind::deleted || object.size > largest_file || !is_text(object.name))
      return wrong("malformed shared memory {}", object.name.substr(0, longest_text));
    if (object.kind != ObjectInfo::Kind::anonymous) continue;
    if (object.size > most_shared - shared) return wrong("more than {} TiB of shared memory", most_shared >> 40);
    shared += object.size;
  }
  return {};
}

/// Of all these together, in bytes. They come in the order in which the source has found them.
Result<std::uint64_t> size_of(const std::vector<wire::Ranges>& all) {
  std::uint64_t size = 0;
  std::set<PodPid> processes;
  for (const auto& [process, edges] : all) {
    if (!processes.insert(process).second || edges.size() % 2 != 0)
      return wrong("malformed ranges of process {}", process.value);
    std::vector<Range> ranges;
    for (std::size_t i = 0; i < edges.size(); i += 2) ranges.push_back({edges[i], edges[i + 1]});
    std::ranges::sort(ranges, {}, &Range::begin);
    std::uint64_t before = 0;
    for (const auto& [begin, end] : ranges) {
      if (begin < before || end <= begin || end > user_space || !is_page(begin) || !is_page(end))
        return wrong("a range {:#x}-{:#x} of process {} behind {:#x}", begin, end, process.value, before);
      size += end - begin;
      before = end;
    }
  }
  return size;
}

std::uint64_t memory_of_machine() {
  struct sysinfo facts {};
  if (::sysinfo(&facts) != 0) return 0;
  return (std::uint64_t{facts.totalram} + facts.totalswap) * facts.mem_unit;
}

}  // namespace

Result<void> check(const wire::Hello& hello) {
  const auto& spec = hello.spec;
  const auto& program = spec.program;
  if (!valid_name(spec.name) || !valid_name(spec.id) || !valid_name(hello.from))
    return wrong("a pod without a proper name");
  for (const auto* text :
       {&hello.strategy, &spec.home, &spec.hostname, &spec.network.mac, &spec.network.gateway4, &spec.network.gateway6})
    if (!is_text(*text)) return wrong("{}: a text over the limit", spec.name);
  for (const auto* texts : {&spec.network.addresses, &spec.labels})
    if (!are_texts(*texts)) return wrong("{}: a list over the limit", spec.name);
  if (!control::plausible(hello.machine)) return wrong("{}: a machine beyond the limits", spec.name);
  if (program.arguments.size() > most_texts || program.environment.size() > most_texts)
    return wrong("{}: its program has too many arguments", spec.name);
  if (hello.files.size() > most_texts || !std::ranges::all_of(hello.files, is_text, &pod::ManifestEntry::path))
    return wrong("{}: too many files of the node's own", spec.name);
  if (!(spec.cpu_limit >= 0 && spec.cpu_limit < 1e6)) return wrong("{}: {} processors", spec.name, spec.cpu_limit);
  return {};
}

Result<void> check(const wire::Clock& clock) {
  if (!is_time(clock.monotonic) || !is_time(clock.boottime)) return wrong("an impossible time");
  return {};
}

Result<void> check(const wire::Prepare& prepare) {
  if (!is_time(prepare.clocks.monotonic) || !is_time(prepare.clocks.boottime) || !is_time(prepare.at))
    return wrong("an impossible time");
  if (prepare.executions.size() > pod::executions_limit) return wrong("too many programs beside the first");
  for (const auto& execution : prepare.executions) TRY(check(execution));
  return {};
}

Result<void> check(const pod::Execution& execution) {
  if (!pod::is_execution(execution.id)) return wrong("an execution without a proper name");
  if (execution.begin > most_output || execution.output.size() > most_unread)
    return wrong("execution {}: more output than there can be", execution.id);
  for (std::size_t at = 0; at < execution.output.size();) {
    const auto* header = execution.output.data() + at;
    const std::size_t left = execution.output.size() - at;
    const auto kind = static_cast<pod::FrameKind>(*header);
    const bool output =
        kind == pod::FrameKind::output || kind == pod::FrameKind::error || kind == pod::FrameKind::terminal;
    if (!output || left < pod::frame_header || pod::frame_length(header) > pod::frame_limit ||
        pod::frame_length(header) > left - pod::frame_header)
      return wrong("execution {}: malformed output", execution.id);
    at += pod::frame_header + pod::frame_length(header);
  }
  return {};
}

Result<void> check(const wire::Round& round) {
  std::set<PodPid> known{PodPid{1}}, threads;
  for (const auto& process : round.processes) {
    TRY(check(process));
    if (!known.contains(process.parent) || !known.insert(process.pid).second)
      return wrong("process {} is there twice, or before its parent {}", process.pid.value, process.parent.value);
    for (const auto thread : process.threads)
      if (!is_pid(thread) || !threads.insert(thread).second)
        return wrong("thread {} is there twice, or impossible", thread.value);
  }
  return check(round.objects);
}

Result<void> check(const wire::Last& last) {
  TRY(check(last.round));
  TRY(size_of(last.absent));
  if (TRY(size_of(last.owed)) > memory_of_machine()) return wrong("it is owed more pages than this machine has");
  return {};
}

Result<void> check(const wire::Freezing& freezing) {
  if (!is_pid(freezing.first)) return wrong("process {} can't be the first", freezing.first.value);
  if (freezing.neighbours.size() > most_neighbours) return wrong("{} neighbours", freezing.neighbours.size());
  return {};
}

Result<void> check(const wire::Running& running) {
  if (!is_time(running.at)) return wrong("an impossible time");
  return check(wire::Spans{running.spans});
}

Result<void> check(const wire::Spans& spans) {
  if (spans.spans.size() > most_spans) return wrong("{} spans of time", spans.spans.size());
  for (const auto& span : spans.spans)
    if (span.name.size() > longest_span || span.us > longest_us) return wrong("a malformed span of time");
  return {};
}

Result<void> check(const wire::State& state) {
  if (state.last_pid.value < 0 || state.last_pid.value > highest_pid)
    return wrong("the last number was {}", state.last_pid.value);
  std::set<PodPid> processes;
  for (const auto& image : state.processes) {
    if (!processes.insert(image.process.pid).second)
      return wrong("process {} comes with two states", image.process.pid.value);
    if (image.threads.empty()) return wrong("process {} comes without a thread", image.process.pid.value);
  }
  return {};
}

Result<void> check(const std::vector<objects::Holder>& holders) {
  for (const auto& holder : holders)
    if (holder.number < 0 || holder.number >= highest_number) return wrong("a descriptor {}", holder.number);
  return {};
}

std::string shown(const std::string& words) {
  std::string text = words.substr(0, longest_text);
  std::ranges::replace_if(
      text, [](unsigned char one) { return one < ' ' || one == 0x7f; }, ' ');
  return text;
}

std::vector<std::string> shown(const std::vector<std::string>& reasons) {
  std::vector<std::string> texts;
  for (const auto& reason : reasons | std::views::take(most_reasons)) texts.push_back(shown(reason));
  return texts;
}

}  // namespace godwit::migrate
