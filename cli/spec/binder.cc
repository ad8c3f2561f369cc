#include "cli/spec/binder.h"

#include <google/protobuf/message.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "cli/spec/schema.h"
#include "common/check.h"

namespace retort::cli {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using Kind = SpecValue::Kind;

std::string Child(absl::string_view path, absl::string_view name) {
  return absl::StrCat(path, path.empty() ? "" : ".", name);
}

// The message and field that a key names, the messages on the way made.
struct Target {
  Message* message = nullptr;
  const FieldDescriptor* field = nullptr;
};

Target Resolve(const KeyNode& node, Message* parent) {
  const std::string field_path = node.key->field.empty() ? node.name : std::string(node.key->field);
  Target target{parent};
  for (absl::string_view part : absl::StrSplit(field_path, '.')) {
    if (target.field != nullptr) {
      target.message = target.message->GetReflection()->MutableMessage(target.message, target.field);
    }
    target.field = target.message->GetDescriptor()->FindFieldByName(std::string(part));
    RETORT_CHECK(target.field != nullptr);
  }
  return target;
}

class Binder {
 public:
  Binder(Diagnostics* diagnostics, Origins* origins) : diagnostics_(diagnostics), origins_(origins) {}

  void BindMap(const KeyNode& node, const SpecValue& value, const std::string& path, Message* message) {
    for (const SpecEntry& entry : value.entries) {
      const std::string child_path = Child(path, entry.key);
      const KeyNode* child = node.Find(entry.key);
      if (child == nullptr) {
        diagnostics_->Add(entry.key_position, child_path, absl::StrCat("unknown key; ", SuggestKey(entry.key, node)));
      } else if (child->key->presence == Presence::kNotSupported) {
        diagnostics_->Add(entry.key_position, child_path, "not supported in this version");
      }
    }
    for (const auto& child : node.children) {
      if (child->key->presence == Presence::kNotSupported) continue;
      const SpecEntry* entry = value.Find(child->name);
      const std::string child_path = Child(path, child->name);
      if (entry != nullptr && entry->value.kind != Kind::kNull) {
        const bool container = entry->value.kind != Kind::kScalar;
        origins_->Record(child_path, container ? entry->key_position : entry->value.position);
        Bind(*child, entry->value, child_path, message);
      } else if (child->key->presence == Presence::kRequired) {
        diagnostics_->Add(entry != nullptr ? entry->key_position : origins_->Of(path), child_path,
                          absl::StrCat("missing; wants ", DescribeWanted(*child->key)));
      } else {
        BindDefault(*child, child_path, message);
      }
    }
  }

 private:
  void BindDefault(const KeyNode& node, const std::string& path, Message* message) {
    if (node.key->type == KeyType::kMap) {
      BindMap(node, SpecValue{.kind = Kind::kMap}, path, Below(node, message));
      return;
    }
    if (node.key->fallback.empty()) return;
    Diagnostics none;
    const SpecValue value = ParseSpecYaml(node.key->fallback, "default", false, &none);
    Diagnostics* const outer = std::exchange(diagnostics_, &none);
    Bind(node, value, path, message);
    diagnostics_ = outer;
    RETORT_CHECK(none.empty());
  }

  // The message that a map's keys go to.
  static Message* Below(const KeyNode& node, Message* parent) {
    if (node.key->field == ".") return parent;
    const Target target = Resolve(node, parent);
    return target.message->GetReflection()->MutableMessage(target.message, target.field);
  }

  void Bind(const KeyNode& node, const SpecValue& value, const std::string& path, Message* message) {
    const Key& key = *node.key;
    switch (key.type) {
      case KeyType::kMap:
      case KeyType::kOptionalMap:
        // What stands in place of a map is not repeated: it may be a secret (teacher.api_key).
        if (value.kind == Kind::kScalar) {
          return diagnostics_->Add(value.position, path, absl::StrCat("got a single value, wants ", WantedMap(node)));
        }
        if (value.kind != Kind::kMap) return WrongType(key, value, path);
        return BindMap(node, value, path, Below(node, message));
      case KeyType::kMapList:
        return BindList(node, value, path, message);
      case KeyType::kStringList:
        return BindStrings(node, value, path, message);
      case KeyType::kNamesOrPattern:
        return BindNamesOrPattern(node, value, path, message);
      case KeyType::kIntList:
        return BindIntegers(node, value, path, message);
      case KeyType::kIntMap:
      case KeyType::kRealMap:
        return BindNumberMap(node, value, path, message);
      default:
        if (value.kind != Kind::kScalar) return WrongType(key, value, path);
        return BindScalar(node, value, path, message);
    }
  }

  void BindList(const KeyNode& node, const SpecValue& value, const std::string& path, Message* message) {
    if (value.kind != Kind::kList) return WrongType(*node.key, value, path);
    if (value.items.empty()) diagnostics_->Add(value.position, path, "the list is empty");
    const Target target = Resolve(node, message);
    for (size_t i = 0; i < value.items.size(); ++i) {
      const std::string item_path = Child(path, absl::StrCat(i));
      Message* item = target.message->GetReflection()->AddMessage(target.message, target.field);
      origins_->Record(item_path, value.items[i].position);
      if (value.items[i].kind != Kind::kMap) {
        diagnostics_->Add(value.items[i].position, item_path,
                          absl::StrCat("got ", Describe(value.items[i]), ", wants a map"));
        continue;
      }
      BindMap(node, value.items[i], item_path, item);
    }
  }

  void BindStrings(const KeyNode& node, const SpecValue& value, const std::string& path, Message* message) {
    std::vector<SpecValue> items;
    if (value.kind == Kind::kScalar) {
      items = {value};
    } else if (value.kind == Kind::kList) {
      items = value.items;
    } else {
      return WrongType(*node.key, value, path);
    }
    if (items.empty()) diagnostics_->Add(value.position, path, "the list is empty");
    const Target target = Resolve(node, message);
    for (size_t i = 0; i < items.size(); ++i) {
      const std::string item_path = value.kind == Kind::kList ? Child(path, absl::StrCat(i)) : path;
      if (!IsString(items[i])) {
        diagnostics_->Add(items[i].position, item_path, absl::StrCat("got ", Describe(items[i]), ", wants a string"));
        continue;
      }
      target.message->GetReflection()->AddString(target.message, target.field, items[i].scalar);
    }
  }

  // A string with anything but a name's characters is a pattern.
  void BindNamesOrPattern(const KeyNode& node, const SpecValue& value, const std::string& path, Message* message) {
    const bool pattern =
        value.kind == Kind::kScalar && IsString(value) &&
        std::any_of(value.scalar.begin(), value.scalar.end(), [](char c) {
          return !absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '-' && c != '.';
        });
    if (!pattern) return BindStrings(node, value, path, message);
    const auto* field = message->GetDescriptor()->FindFieldByName(node.name + "_pattern");
    RETORT_CHECK(field != nullptr);
    message->GetReflection()->SetString(message, field, value.scalar);
  }

  static bool ReadWhole(const Key& key, const SpecValue& value, int64_t* whole) {
    return value.kind == Kind::kScalar && !value.quoted && LooksLikeNumber(value.scalar) &&
           value.scalar.find_first_of(".eE") == std::string::npos && absl::SimpleAtoi(value.scalar, whole) &&
           key.range.Contains(static_cast<double>(*whole));
  }

  void BindIntegers(const KeyNode& node, const SpecValue& value, const std::string& path, Message* message) {
    if (value.kind == Kind::kMap) return WrongType(*node.key, value, path);
    const std::vector<SpecValue> items = value.kind == Kind::kList ? value.items : std::vector<SpecValue>{value};
    if (items.empty()) diagnostics_->Add(value.position, path, "the list is empty");
    const Target target = Resolve(node, message);
    for (size_t i = 0; i < items.size(); ++i) {
      int64_t whole = 0;
      if (!ReadWhole(*node.key, items[i], &whole)) {
        const std::string item_path = value.kind == Kind::kList ? Child(path, absl::StrCat(i)) : path;
        diagnostics_->Add(items[i].position, item_path,
                          absl::StrCat("got ", Describe(items[i]), ", wants ", DescribeWanted(*node.key)));
        continue;
      }
      target.message->GetReflection()->AddInt32(target.message, target.field, static_cast<int32_t>(whole));
    }
  }

  // Into messages {pattern, value}.
  void BindNumberMap(const KeyNode& node, const SpecValue& value, const std::string& path, Message* message) {
    if (value.kind != Kind::kMap) return WrongType(*node.key, value, path);
    const Target target = Resolve(node, message);
    for (const SpecEntry& entry : value.entries) {
      double real = 0;
      int64_t whole = 0;
      bool good = false;
      if (node.key->type == KeyType::kIntMap) {
        good = ReadWhole(*node.key, entry.value, &whole);
        real = static_cast<double>(whole);
      } else {
        good = entry.value.kind == Kind::kScalar && !entry.value.quoted && LooksLikeNumber(entry.value.scalar) &&
               absl::SimpleAtod(entry.value.scalar, &real) && std::isfinite(real) && node.key->range.Contains(real);
      }
      if (!good) {
        diagnostics_->Add(entry.value.position, Child(path, entry.key),
                          absl::StrCat("got ", Describe(entry.value), ", wants ", DescribeWanted(*node.key)));
        continue;
      }
      Message* item = target.message->GetReflection()->AddMessage(target.message, target.field);
      const auto* descriptor = item->GetDescriptor();
      item->GetReflection()->SetString(item, descriptor->FindFieldByName("pattern"), entry.key);
      item->GetReflection()->SetDouble(item, descriptor->FindFieldByName("value"), real);
    }
  }

  static bool IsString(const SpecValue& value) {
    bool boolean = false;
    return value.kind == Kind::kScalar &&
           (value.quoted || (!LooksLikeNumber(value.scalar) && !ParseYamlBool(value.scalar, &boolean)));
  }

  void BindScalar(const KeyNode& node, const SpecValue& value, const std::string& path, Message* message) {
    const Key& key = *node.key;
    if (key.type == KeyType::kChoice || key.type == KeyType::kWord) return BindChoice(node, value, path, message);
    SpecValue checked = value;
    int64_t whole = 0;
    uint64_t seed = 0;
    double real = 0;
    bool boolean = false;
    switch (key.type) {
      case KeyType::kString:
      case KeyType::kPath:
        if (!IsString(value)) {
          const std::string hint = value.kind == Kind::kScalar ? " (put it in quotes)" : "";
          return diagnostics_->Add(value.position, path,
                                   absl::StrCat("got ", Describe(value), ", wants ", DescribeWanted(key), hint));
        }
        if (value.scalar.find('\0') != std::string::npos) return Impossible(key, value, path);
        if (key.type == KeyType::kPath && value.scalar.empty()) {
          return diagnostics_->Add(value.position, path, "the path is empty");
        }
        break;
      case KeyType::kInt:
        if (value.quoted || !LooksLikeNumber(value.scalar)) return WrongType(key, value, path);
        if (value.scalar.find_first_of(".eE") != std::string::npos) return WrongType(key, value, path);
        if (!absl::SimpleAtoi(value.scalar, &whole) || !key.range.Contains(static_cast<double>(whole))) {
          return Impossible(key, value, path);
        }
        break;
      case KeyType::kUint64:
        if (value.quoted || !LooksLikeNumber(value.scalar)) return WrongType(key, value, path);
        if (value.scalar.find_first_of(".eE") != std::string::npos) return WrongType(key, value, path);
        if (!absl::SimpleAtoi(value.scalar, &seed)) return Impossible(key, value, path);
        break;
      case KeyType::kReal:
        if (value.quoted || !LooksLikeNumber(value.scalar)) return WrongType(key, value, path);
        if (!absl::SimpleAtod(value.scalar, &real) || !std::isfinite(real) || !key.range.Contains(real)) {
          return Impossible(key, value, path);
        }
        break;
      case KeyType::kBool:
        if (value.quoted || !ParseYamlBool(value.scalar, &boolean)) return WrongType(key, value, path);
        checked.scalar = boolean ? "true" : "false";
        break;
      default:
        break;
    }
    if (!key.only.empty() && checked.scalar != key.only) {
      return diagnostics_->Add(
          value.position, path,
          absl::StrCat(checked.scalar, " is not supported in this version, only ", key.only, " is"));
    }
    if (key.field == "-") return;
    const Target target = Resolve(node, message);
    const auto* reflection = target.message->GetReflection();
    switch (target.field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING:
        return reflection->SetString(target.message, target.field, value.scalar);
      case FieldDescriptor::CPPTYPE_INT32:
        return reflection->SetInt32(target.message, target.field, static_cast<int32_t>(whole));
      case FieldDescriptor::CPPTYPE_UINT64:
        return reflection->SetUInt64(target.message, target.field, seed);
      case FieldDescriptor::CPPTYPE_DOUBLE:
        return reflection->SetDouble(target.message, target.field, real);
      case FieldDescriptor::CPPTYPE_BOOL:
        return reflection->SetBool(target.message, target.field, boolean);
      default:
        RETORT_CHECK(false);
    }
  }

  void BindChoice(const KeyNode& node, const SpecValue& value, const std::string& path, Message* message) {
    const Key& key = *node.key;
    std::vector<std::string> supported;
    bool known = false;
    bool built = false;
    // "merged: false" says none.
    bool boolean = true;
    std::string text = value.scalar;
    if (!value.quoted && ParseYamlBool(text, &boolean)) {
      if (key.type == KeyType::kWord) {
        text = boolean ? "true" : "false";
      } else if (!boolean) {
        text = "none";
      }
    }
    for (absl::string_view choice : absl::StrSplit(key.choices, '|')) {
      const bool refused = absl::ConsumePrefix(&choice, "!");
      if (!refused) supported.push_back(std::string(choice));
      int64_t number = 0;
      const bool numbered = key.type == KeyType::kWord && absl::ConsumeSuffix(&choice, "*") &&
                            absl::StartsWith(text, choice) && absl::SimpleAtoi(text.substr(choice.size()), &number) &&
                            number >= 0;
      if (choice != text && !numbered) continue;
      known = true;
      built = !refused;
    }
    if (!known) {
      const std::string nearest = NearestWord(text, supported);
      return diagnostics_->Add(value.position, path,
                               absl::StrCat("got ", Describe(value), ", wants ", DescribeWanted(key),
                                            nearest.empty() ? "" : absl::StrCat("; did you mean \"", nearest, "\"?")));
    }
    if (!built) {
      return diagnostics_->Add(
          value.position, path,
          absl::StrCat("\"", text, "\" is not supported in this version; supported: ", absl::StrJoin(supported, ", ")));
    }
    if (key.field == "-") return;
    const Target target = Resolve(node, message);
    const auto* reflection = target.message->GetReflection();
    if (target.field->cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
      return reflection->SetString(target.message, target.field, text == "none" ? "" : text);
    }
    reflection->SetEnumValue(target.message, target.field, EnumNumber(*target.field, text));
  }

  // TEACHER_BACKEND_NATIVE for "native". "none" without a value of its own is the unspecified one.
  static int EnumNumber(const FieldDescriptor& field, absl::string_view text) {
    const auto* type = field.enum_type();
    for (int i = 0; i < type->value_count(); ++i) {
      if (absl::EndsWith(type->value(i)->name(), absl::StrCat("_", absl::AsciiStrToUpper(text))) &&
          type->value(i)->name().size() == EnumPrefix(*type).size() + text.size()) {
        return type->value(i)->number();
      }
    }
    RETORT_CHECK(text == "none");
    return 0;
  }

  // "TEACHER_BACKEND_", from TEACHER_BACKEND_UNSPECIFIED.
  static std::string EnumPrefix(const google::protobuf::EnumDescriptor& type) {
    const std::string zero = type.FindValueByNumber(0)->name();
    return zero.substr(0, zero.size() - std::string("UNSPECIFIED").size());
  }

  // "a map with env".
  static std::string WantedMap(const KeyNode& node) {
    std::vector<std::string> names;
    for (const auto& child : node.children) {
      if (child->key->presence != Presence::kNotSupported) names.push_back(child->name);
    }
    return absl::StrCat("a map with ", absl::StrJoin(names, ", "));
  }

  void WrongType(const Key& key, const SpecValue& value, const std::string& path) {
    diagnostics_->Add(value.position, path, absl::StrCat("got ", Describe(value), ", wants ", DescribeWanted(key)));
  }

  void Impossible(const Key& key, const SpecValue& value, const std::string& path) {
    diagnostics_->Add(value.position, path,
                      absl::StrCat(value.scalar, " is out of range, wants ", DescribeWanted(key)));
  }

  Diagnostics* diagnostics_;
  Origins* const origins_;
};

}  // namespace

void Origins::Record(absl::string_view path, Position position) { positions_[std::string(path)] = std::move(position); }

Position Origins::Of(absl::string_view path) const {
  while (true) {
    if (const auto it = positions_.find(std::string(path)); it != positions_.end()) return it->second;
    if (path.empty()) return {};
    const size_t dot = path.rfind('.');
    path = dot == absl::string_view::npos ? absl::string_view() : path.substr(0, dot);
  }
}

BoundSpec BindJobSpec(const SpecValue& root, Diagnostics* diagnostics) {
  BoundSpec bound;
  bound.origins.Record("", root.position);
  if (root.kind != Kind::kMap) {
    if (diagnostics->empty()) {
      diagnostics->Add(root.position, "",
                       absl::StrCat("got ", Describe(root), ", wants a map of keys such as name, teacher, student"));
    }
    return bound;
  }
  Binder(diagnostics, &bound.origins).BindMap(JobSpecRoot(), root, "", &bound.spec);
  return bound;
}

}  // namespace retort::cli
