#include "cli/report.hpp"

#include <algorithm>

namespace godwit::cli {
namespace {

void print_spans(const Json& report, const char* name, const char* title) {
  const Json spans = report.value(name, Json::array());
  if (spans.empty()) return;
  fmt::print("{}\n", title);
  for (const Json& span : spans) {
    const std::string cause = text_of(span, "name");
    fmt::print("  {:<28} {:>12}\n", cause == "commit" ? "commit (the store)" : cause,
               human_time(number_of(span, "us")));
  }
}

}  // namespace

void print_report(const Json& report) {
  fmt::print(
      "{} moved from {} to {} by {}{}\n", text_of(report, "pod"), text_of(report, "source"),
      text_of(report, "destination"), text_of(report, "strategy"),
      text_of(report, "asked") != text_of(report, "strategy") ? " (asked: " + text_of(report, "asked") + ")" : "");
  fmt::print("  frozen  {}\n  total   {}\n  sent    {}\n", human_time(number_of(report, "freeze_us")),
             human_time(number_of(report, "total_us")), human_bytes(number_of(report, "bytes_sent")));
  const Json pauses = report.value("pauses_us", Json::array());
  std::string list;
  for (const Json& pause : pauses)
    list += (list.empty() ? "" : ", ") + human_time(pause.is_number_unsigned() ? pause.get<std::uint64_t>() : 0);
  if (!list.empty()) fmt::print("  earlier stops of a thread: {}\n", list);
  print_spans(report, "phases", "phases");
  print_spans(report, "freeze", "the freeze, by cause");
  const Json rounds = report.value("rounds", Json::array());
  if (!rounds.empty()) {
    fmt::print("rounds\n");
    std::size_t number = 0;
    for (const Json& round : rounds)
      fmt::print("  {:>3}  {:>10} pages  {:>10} zero  {:>12}  {:>12}\n", ++number, number_of(round, "pages"),
                 number_of(round, "zero_pages"), human_bytes(number_of(round, "bytes")),
                 human_time(number_of(round, "us")));
  }
  const Json residuals = report.value("residuals", Json::array());
  if (residuals.empty()) fmt::print("nothing is owed by {}\n", text_of(report, "source"));
  for (const Json& residual : residuals)
    fmt::print("owed by {}: {} ({}), until {}\n", text_of(report, "source"), text_of(residual, "kind"),
               text_of(residual, "reason"), text_of(residual, "ends"));
}

namespace {

/// "moved"; "interrupted, on b": by it alone nobody could tell where the pod is.
std::string outcome_text(const Json& move) {
  const std::string outcome = text_of(move, "outcome"), node = text_of(move, "node");
  return outcome == "interrupted" && !node.empty() ? fmt::format("{}, on {}", outcome, node) : outcome;
}

/// The report of a move that is over, whatever came of it.
void print_past(const Json& report) {
  fmt::print("{}  began {}\n", text_of(report, "id"),
             local_time(static_cast<std::int64_t>(number_of(report, "began_ms"))));
  if (text_of(report, "outcome") == "moved" && !report.contains("cut")) return print_report(report);
  fmt::print("{} from {} to {} by {}: {}\n", text_of(report, "pod"), text_of(report, "source"),
             text_of(report, "destination"), text_of(report, "strategy"), outcome_text(report));
  if (const std::string error = text_of(report, "error"); !error.empty()) fmt::print("  {}\n", error);
  for (const Json& refusal : report.value("refusals", Json::array()))
    fmt::print("  {}\n", refusal.is_string() ? refusal.get<std::string>() : refusal.dump());
  if (const std::string cut = text_of(report, "cut"); !cut.empty()) fmt::print("({})\n", cut);
  print_spans(report, "phases", "phases");
  print_spans(report, "freeze", "the freeze, by cause");
}

}  // namespace

int history(const Common& common, const HistoryOptions& options) {
  const Client client(common);
  if (!options.show.empty()) {
    const auto report = client.request("GET", "/v1/history/" + node::http::encode(options.show));
    if (!report) return complain(common, report.error());
    if (common.json)
      print_json(*report);
    else
      print_past(*report);
    return exit_code::ok;
  }
  std::string target = fmt::format("/v1/history?limit={}", options.limit);
  if (!options.pod.empty()) target += "&pod=" + node::http::encode(options.pod);
  const auto answer = client.request("GET", target);
  if (!answer) return complain(common, answer.error());
  const Json moves = answer->value("moves", Json::array());
  if (common.json) {
    print_json(moves);
    return exit_code::ok;
  }
  std::vector<std::vector<std::string>> rows{
      {"WHEN", "POD", "FROM", "TO", "STRATEGY", "FROZEN", "TOTAL", "OUTCOME", "ID"}};
  for (const Json& move : moves) {
    const bool moved = text_of(move, "outcome") == "moved";
    const auto time = [&](const char* name) { return moved ? human_time(number_of(move, name)) : "-"; };
    rows.push_back({local_time(static_cast<std::int64_t>(number_of(move, "began_ms"))), text_of(move, "pod"),
                    text_of(move, "source"), text_of(move, "destination"), text_of(move, "strategy"), time("freeze_us"),
                    time("total_us"), outcome_text(move), text_of(move, "id")});
  }
  print_table(rows);
  return exit_code::ok;
}

}  // namespace godwit::cli
