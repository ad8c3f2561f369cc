// A YAML document as a plain tree that remembers where each part was written, and the list of what is wrong with it.
#pragma once

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace retort::cli {

// Where something was written: a file with line and column, or an argument (line 0).
struct Position {
  std::string source;  // "job.yaml", or "--set student.lora.r=8"
  int line = 0;        // from 1
  int column = 0;      // from 1

  // "job.yaml:14:5", or the source alone.
  std::string ToString() const;
};

// One complaint: `position: path: message`; the path is empty where the whole document is meant.
struct Diagnostic {
  Position position;
  std::string path;
  std::string message;

  std::string ToString() const;
};

// Everything that is wrong with a job file, so that one run of `validate` tells all of it. Not thread-safe.
class Diagnostics {
 public:
  void Add(Position position, absl::string_view path, absl::string_view message);
  // Whether something is already wrong with the key at `path`, above it or below it; what follows from that need not be
  // said.
  bool Touches(absl::string_view path) const;
  bool empty() const { return list_.empty(); }
  // Files by line and column, then arguments in their order.
  std::vector<Diagnostic> Sorted() const;
  // One line each.
  std::string ToString() const;

 private:
  std::vector<Diagnostic> list_;
};

struct SpecEntry;

struct SpecValue {
  enum class Kind { kNull, kScalar, kList, kMap };

  Kind kind = Kind::kNull;
  Position position;
  std::string scalar;              // kScalar: the text
  bool quoted = false;             // kScalar: in quotes or a block, so a string whatever it looks like
  std::vector<SpecValue> items;    // kList
  std::vector<SpecEntry> entries;  // kMap, in the order written; keys are unique

  SpecEntry* Find(absl::string_view key);
  const SpecEntry* Find(absl::string_view key) const;
};

struct SpecEntry {
  std::string key;
  Position key_position;
  SpecValue value;
};

// Largest job file, and the most nodes it may hold once aliases are followed.
inline constexpr int kMaxSpecBytes = 4 << 20;
inline constexpr int kMaxSpecNodes = 200'000;

// Parses one YAML document. Syntax errors (the first one), duplicate keys, keys that are no scalars, a second document
// and an empty one go to `diagnostics`; the tree holds what could be read. `line_positions` false gives every node the
// bare source as position.
SpecValue ParseSpecYaml(absl::string_view text, const std::string& source, bool line_positions,
                        Diagnostics* diagnostics);

// What `value` is, for messages: `the string "x"`, `the number 3`, `true`, `nothing`, `a list`, `a map`.
std::string Describe(const SpecValue& value);

// Whether a plain scalar reads as a number ("16", "2.0e-4"); no hex, infinities or NaN.
bool LooksLikeNumber(absl::string_view text);
// true, false and their YAML spellings True, TRUE, ...; nothing else ("yes" and "no" are strings, as in YAML 1.2).
bool ParseYamlBool(absl::string_view text, bool* value);

}  // namespace retort::cli
