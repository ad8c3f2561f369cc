// Regular expressions over module names, as Python's re matches them.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace retort {

// Immutable; copies share it.
class ModulePattern {
 public:
  // Errors: kInvalidArgument (not a regular expression).
  static absl::StatusOr<ModulePattern> Compile(const std::string& pattern);
  // Whether the whole of `name` matches.
  bool Matches(const std::string& name) const;

 private:
  struct Engine;
  std::shared_ptr<const Engine> engine_;
};

// The same for a pattern that is used once; one that is none matches nothing.
bool MatchesPattern(const std::string& pattern, const std::string& name);

}  // namespace retort
