// JSON from outside: bounded, and with errors that say where.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace retort {

// Parses one document. `source` names it in errors ("model/config.json"). Refuses what nests deeper than 64 levels and
// duplicate-free is not checked. Errors: kInvalidArgument with source, byte position and reason.
absl::StatusOr<nlohmann::json> ParseJson(absl::string_view text, absl::string_view source);

// Reads and parses a file of at most 256 MiB.
absl::StatusOr<nlohmann::json> ReadJsonFile(const std::string& path);

// kInvalidArgument where `json`, one valid document, holds an integer of more than 64 bits, which would be read as the
// nearest double: for rows, whose values chat templates may print.
absl::Status CheckIntegers(absl::string_view json);

// Calls `row` with each non-blank line of a JSONL file and its 1-based number; stops at the first error and puts
// "<path>:<line>: " before it. Rows over 64 MiB, and those that CheckIntegers fails
// on, are refused. A file that begins with "[" is one JSON list, whose
// elements are the rows; `line` is then where an element begins, and `text` the element in one line.
absl::Status ForEachJsonLine(
    const std::string& path,
    const std::function<absl::Status(int64_t line, absl::string_view text, const nlohmann::json& row)>& row);

}  // namespace retort
