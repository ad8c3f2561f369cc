#include "cli/spec/document.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace retort::cli {
namespace {

using Kind = SpecValue::Kind;

// One path lies at or above the other when it is the other's prefix on a part boundary.
bool IsAtOrAbove(absl::string_view above, absl::string_view below) {
  return above.empty() || above == below ||
         (absl::StartsWith(below, above) && below.size() > above.size() && below[above.size()] == '.');
}

bool IsNullText(absl::string_view text) {
  return text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL";
}

class Converter {
 public:
  Converter(std::string source, bool line_positions, Diagnostics* diagnostics)
      : source_(std::move(source)), line_positions_(line_positions), diagnostics_(diagnostics) {}

  Position At(const YAML::Mark& mark) const {
    if (!line_positions_ || mark.is_null()) return Position{source_};
    return Position{source_, mark.line + 1, mark.column + 1};
  }

  SpecValue Convert(const YAML::Node& node, absl::string_view path) {
    SpecValue value;
    value.position = At(node.Mark());
    if (++nodes_ > kMaxSpecNodes) {
      if (nodes_ == kMaxSpecNodes + 1) {
        diagnostics_->Add(value.position, "",
                          absl::StrCat("holds over ", kMaxSpecNodes, " values; is an alias repeated?"));
      }
      return value;
    }
    switch (node.Type()) {
      case YAML::NodeType::Undefined:
      case YAML::NodeType::Null:
        return value;
      case YAML::NodeType::Scalar:
        value.scalar = node.Scalar();
        value.quoted = node.Tag() == "!" || node.Tag() == "tag:yaml.org,2002:str";
        value.kind = !value.quoted && IsNullText(value.scalar) ? Kind::kNull : Kind::kScalar;
        return value;
      case YAML::NodeType::Sequence:
        value.kind = Kind::kList;
        for (const YAML::Node& item : node) {
          value.items.push_back(Convert(item, absl::StrCat(path, path.empty() ? "" : ".", value.items.size())));
        }
        return value;
      case YAML::NodeType::Map:
        value.kind = Kind::kMap;
        for (const auto& pair : node) AddEntry(pair.first, pair.second, path, &value);
        return value;
    }
    return value;
  }

 private:
  void AddEntry(const YAML::Node& key, const YAML::Node& child, absl::string_view path, SpecValue* map) {
    const Position position = At(key.Mark());
    if (!key.IsScalar()) {
      diagnostics_->Add(position, path, "a key must be a plain word");
      return;
    }
    const std::string child_path = absl::StrCat(path, path.empty() ? "" : ".", key.Scalar());
    if (const SpecEntry* first = map->Find(key.Scalar()); first != nullptr) {
      std::string where;
      if (first->key_position.line > 0) where = absl::StrCat(" (first on line ", first->key_position.line, ")");
      diagnostics_->Add(position, child_path, absl::StrCat("the key is given twice", where));
      return;
    }
    SpecEntry entry{key.Scalar(), position, Convert(child, child_path)};
    // Nothing stands where a null was left out; the key is the place to look at.
    if (entry.value.kind == Kind::kNull) entry.value.position = position;
    map->entries.push_back(std::move(entry));
  }

  const std::string source_;
  const bool line_positions_;
  Diagnostics* const diagnostics_;
  int nodes_ = 0;
};

}  // namespace

std::string Position::ToString() const {
  if (line <= 0) return source;
  return absl::StrCat(source, ":", line, ":", column);
}

std::string Diagnostic::ToString() const {
  return absl::StrCat(position.ToString(), ": ", path, path.empty() ? "" : ": ", message);
}

void Diagnostics::Add(Position position, absl::string_view path, absl::string_view message) {
  list_.push_back({std::move(position), std::string(path), std::string(message)});
}

bool Diagnostics::Touches(absl::string_view path) const {
  return std::any_of(list_.begin(), list_.end(), [&](const Diagnostic& known) {
    return IsAtOrAbove(known.path, path) || IsAtOrAbove(path, known.path);
  });
}

std::vector<Diagnostic> Diagnostics::Sorted() const {
  std::vector<Diagnostic> sorted = list_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const Diagnostic& a, const Diagnostic& b) {
    const bool a_is_argument = a.position.line == 0;
    const bool b_is_argument = b.position.line == 0;
    if (a_is_argument != b_is_argument) return b_is_argument;
    return std::pair(a.position.line, a.position.column) < std::pair(b.position.line, b.position.column);
  });
  return sorted;
}

std::string Diagnostics::ToString() const {
  std::string text;
  for (const Diagnostic& diagnostic : Sorted()) absl::StrAppend(&text, diagnostic.ToString(), "\n");
  return text;
}

SpecEntry* SpecValue::Find(absl::string_view key) {
  for (SpecEntry& entry : entries) {
    if (entry.key == key) return &entry;
  }
  return nullptr;
}

const SpecEntry* SpecValue::Find(absl::string_view key) const { return const_cast<SpecValue*>(this)->Find(key); }

SpecValue ParseSpecYaml(absl::string_view text, const std::string& source, bool line_positions,
                        Diagnostics* diagnostics) {
  Converter converter(source, line_positions, diagnostics);
  if (text.size() > static_cast<size_t>(kMaxSpecBytes)) {
    diagnostics->Add(Position{source}, "", absl::StrCat("is over ", kMaxSpecBytes, " bytes"));
    return {};
  }
  try {
    const std::vector<YAML::Node> documents = YAML::LoadAll(std::string(text));
    if (documents.size() > 1) {
      diagnostics->Add(converter.At(documents[1].Mark()), "",
                       "holds a second YAML document; a job file is one document");
    }
    return documents.empty() ? SpecValue{.position = Position{source}} : converter.Convert(documents[0], "");
  } catch (const YAML::Exception& error) {
    diagnostics->Add(converter.At(error.mark), "", absl::StrCat("not valid YAML: ", error.msg));
    return {};
  }
}

std::string Describe(const SpecValue& value) {
  bool boolean = false;
  switch (value.kind) {
    case Kind::kNull:
      return "nothing";
    case Kind::kList:
      return "a list";
    case Kind::kMap:
      return "a map";
    case Kind::kScalar:
      if (!value.quoted && LooksLikeNumber(value.scalar)) return absl::StrCat("the number ", value.scalar);
      if (!value.quoted && ParseYamlBool(value.scalar, &boolean)) return value.scalar;
      if (value.scalar.size() > 60) return absl::StrCat("the string \"", value.scalar.substr(0, 57), "...\"");
      return absl::StrCat("the string \"", value.scalar, "\"");
  }
  return "nothing";
}

bool LooksLikeNumber(absl::string_view text) {
  size_t i = 0;
  const auto digits = [&] {
    const size_t start = i;
    while (i < text.size() && absl::ascii_isdigit(static_cast<unsigned char>(text[i]))) ++i;
    return i > start;
  };
  if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
  bool any = digits();
  if (i < text.size() && text[i] == '.') {
    ++i;
    any = digits() || any;
  }
  if (!any) return false;
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '-' || text[i] == '+')) ++i;
    if (!digits()) return false;
  }
  return i == text.size();
}

bool ParseYamlBool(absl::string_view text, bool* value) {
  if (text == "true" || text == "True" || text == "TRUE") {
    *value = true;
    return true;
  }
  if (text == "false" || text == "False" || text == "FALSE") {
    *value = false;
    return true;
  }
  return false;
}

}  // namespace retort::cli
