#include "model/module_pattern.h"

#include <re2/re2.h>

#include <optional>
#include <regex>

#include "absl/strings/str_cat.h"

namespace retort {
namespace {

// Longer ones are no patterns for module names; std::regex recurses by a pattern's length.
constexpr size_t kMaxPatternBytes = 4096;

}  // namespace

// RE2, in time linear in the name; what it lacks and Python has (looking ahead, back references) goes to std::regex.
struct ModulePattern::Engine {
  std::unique_ptr<RE2> linear;
  std::optional<std::regex> backtracking;
};

absl::StatusOr<ModulePattern> ModulePattern::Compile(const std::string& pattern) {
  if (pattern.size() > kMaxPatternBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a pattern of ", pattern.size(), " bytes; at most ", kMaxPatternBytes, " are supported"));
  }
  auto engine = std::make_shared<Engine>();
  RE2::Options options;
  options.set_log_errors(false);
  engine->linear = std::make_unique<RE2>(pattern, options);
  if (!engine->linear->ok()) {
    try {
      engine->backtracking.emplace(pattern);
    } catch (const std::regex_error&) {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", pattern, "\" is not a regular expression: ", engine->linear->error()));
    }
  }
  ModulePattern compiled;
  compiled.engine_ = std::move(engine);
  return compiled;
}

bool ModulePattern::Matches(const std::string& name) const {
  if (!engine_->backtracking.has_value()) return RE2::FullMatch(name, *engine_->linear);
  try {
    return std::regex_match(name, *engine_->backtracking);
  } catch (const std::regex_error&) {  // gave up
    return false;
  }
}

bool MatchesPattern(const std::string& pattern, const std::string& name) {
  const absl::StatusOr<ModulePattern> compiled = ModulePattern::Compile(pattern);
  return compiled.ok() && compiled->Matches(name);
}

}  // namespace retort
