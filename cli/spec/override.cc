#include "cli/spec/override.h"

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "cli/spec/schema.h"

namespace retort::cli {
namespace {

using Kind = SpecValue::Kind;

bool IsIndex(absl::string_view part) {
  return !part.empty() && part.size() < 7 && part.find_first_not_of("0123456789") == absl::string_view::npos;
}

// Nothing stands there yet: a container of the kind that the next part asks for.
void Materialise(const Position& position, bool list, SpecValue* value) {
  if (value->kind != Kind::kNull) return;
  value->kind = list ? Kind::kList : Kind::kMap;
  value->position = position;
}

}  // namespace

void ApplyOverride(absl::string_view argument, SpecValue* root, Diagnostics* diagnostics) {
  const Position position{absl::StrCat("--set ", argument)};
  const size_t equals = argument.find('=');
  if (equals == absl::string_view::npos || equals == 0) {
    diagnostics->Add(position, "", "wants path.to.key=value, e.g. --set student.training.max_steps=100");
    return;
  }
  const std::string path(argument.substr(0, equals));
  const std::vector<std::string> parts = absl::StrSplit(path, '.');
  if (parts.size() > 16) {
    diagnostics->Add(position, path, "the path is too deep");
    return;
  }

  SpecValue* at = root;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string& part = parts[i];
    const std::string above = absl::StrJoin(parts.begin(), parts.begin() + i, ".");
    if (part.empty()) {
      diagnostics->Add(position, path, "the path has an empty part");
      return;
    }
    Materialise(position, IsIndex(part) && i > 0, at);
    if (at->kind == Kind::kList) {
      int index = 0;
      if (!IsIndex(part) || !absl::SimpleAtoi(part, &index)) {
        diagnostics->Add(position, path,
                         absl::StrCat(above, " is a list; \"", part, "\" must be an index, e.g. ", above, ".0"));
        return;
      }
      const int size = static_cast<int>(at->items.size());
      if (index > size) {
        const std::string has = size == 0 ? "is empty" : absl::StrCat("ends at ", above, ".", size - 1);
        diagnostics->Add(position, path, absl::StrCat("there is no ", above, ".", index, "; the list ", has));
        return;
      }
      if (index == size) at->items.push_back(SpecValue{.position = position});
      at = &at->items[index];
      continue;
    }
    if (at->kind != Kind::kMap) {
      diagnostics->Add(position, path, absl::StrCat(above, " is ", Describe(*at), ", it has no \"", part, "\""));
      return;
    }
    SpecEntry* entry = at->Find(part);
    if (entry == nullptr) {
      at->entries.push_back({part, position, SpecValue{.position = position}});
      entry = &at->entries.back();
    }
    at = &entry->value;
  }
  *at = ParseSpecYaml(argument.substr(equals + 1), position.source, /*line_positions=*/false, diagnostics);
  at->position = position;
}

}  // namespace retort::cli
