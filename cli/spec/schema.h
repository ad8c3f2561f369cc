// The job file's keys: one declarative table. The parser, the nearest-key search and docs/job-spec.md are all derived
// from it.
#pragma once

#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace retort::cli {

enum class KeyType {
  kMap,          // filled with its defaults even when it is left out, as long as its parent is there
  kOptionalMap,  // absent unless written
  kMapList,      // list of maps; the keys of an element stand under "<path>[]"
  kString,
  kPath,  // a string that names a file or folder, relative to the job file's folder
  kInt,
  kUint64,
  kReal,
  kBool,
  kChoice,          // one of Key::choices
  kStringList,      // a list of strings; a single string is a list of one
  kNamesOrPattern,  // a list of names, or a string: a name, else a pattern, which goes to the field "<field>_pattern"
  kIntList,         // a list of whole numbers; a single one is a list of one
  kIntMap,          // pattern: whole number, in the order written
  kRealMap,         // pattern: number
  kWord,            // one of `choices`, where "*" at the end of one stands for a whole number; true and false are words
};

enum class Presence {
  kOptional,
  kRequired,      // its parent is incomplete without it
  kNotSupported,  // a known key that this version does not build: refused
};

// Bounds of a number, each inside unless marked open.
struct Range {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool min_open = false;
  bool max_open = false;

  bool Contains(double value) const;
  // "> 0", ">= 1", "in (0, 1]", "any number".
  std::string ToString() const;
};

// One row of the table.
struct Key {
  absl::string_view path;  // "student.lora.r"; "[]" stands for an element of a list
  KeyType type;
  // As YAML; empty: none, the key stays unset.
  absl::string_view fallback;
  absl::string_view doc;
  Presence presence = Presence::kOptional;
  Range range = {};
  // kChoice: separated by "|"; "!" marks what is known but not supported in this version.
  absl::string_view choices = {};
  // The only value that this version supports, of those that the type and range allow; empty: all.
  absl::string_view only = {};
  // Field of the parent's message; empty: the last part of the path; ".": the parent's message itself; "-": none. Dots
  // go deeper.
  absl::string_view field = {};
};

// All keys, parents before children, in the order of the documentation.
absl::Span<const Key> JobSpecKeys();

// The table as a tree. Nodes live for ever.
struct KeyNode {
  const Key* key = nullptr;                        // null at the root
  std::string name;                                // last part of the path
  std::vector<std::unique_ptr<KeyNode>> children;  // of a map, or of a list's element

  const KeyNode* Find(absl::string_view child) const;
};
const KeyNode& JobSpecRoot();

// What a message says when `unknown` stands among `siblings`: `did you mean "r"?`, or the valid keys when none is near.
// Looks at words that other tools use for the same thing, then at spelling, then for a key of that name elsewhere in
// the tree.
std::string SuggestKey(absl::string_view unknown, const KeyNode& siblings);

// The nearest of `candidates` by edit distance, or empty when none is near.
std::string NearestWord(absl::string_view word, absl::Span<const std::string> candidates);

// "a whole number >= 1", "true or false", "one of native, openai": what the key takes, for messages and documentation.
std::string DescribeWanted(const Key& key);

// docs/job-spec.md.
std::string JobSpecReference();

}  // namespace retort::cli
