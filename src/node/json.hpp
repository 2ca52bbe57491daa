#pragma once

#include <nlohmann/json.hpp>

#include "base/result.hpp"
#include "migrate/report.hpp"
#include "node/pods.hpp"

/// What the API says, as JSON. Used by the daemon, and by the command for what it has to read back.
namespace godwit::node {

using Json = nlohmann::json;

/// `invalid` instead of an exception.
Result<Json> parse_json(const std::string& text);
/// Invalid UTF-8 (a command's arguments may hold any bytes) is replaced, never thrown at.
std::string dump(const Json&);

const char* to_string(ErrorKind);
ErrorKind error_kind(const std::string& name);
/// {"error": {"kind", "message", "what", "hint", "code"}}
Json to_json(const Error&);
/// The error in an answer of the API; none when there is none.
std::optional<Error> error_in(const Json&);
int http_status(ErrorKind);

Json to_json(const migrate::Progress&);
Json to_json(const migrate::Report&);
/// One pod of `node`, as in `ps`.
Json to_json(const LocalPod&, const std::string& node);
/// A pod as only the store knows it.
Json to_json(const store::Record&, const std::string& state);

/// The body of POST /v1/pods, asked by `caller`, whose the pod is unless another user is named, and of POST …/exec.
/// `invalid` names the field.
Result<NewPod> new_pod_from(const Json&, const pod::User& caller);
Result<pod::Program> program_from(const Json&);

/// Fields of a JSON object with their types checked; `invalid` with the field's name otherwise.
Result<std::string> text_field(const Json&, const char* name, const std::string& otherwise = {});
Result<std::int64_t> number_field(const Json&, const char* name, std::int64_t otherwise = 0);
Result<bool> flag_field(const Json&, const char* name, bool otherwise = false);

}  // namespace godwit::node
