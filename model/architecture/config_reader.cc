#include "model/architecture/config_reader.h"

#include <spdlog/spdlog.h>

#include <cmath>

#include "absl/strings/str_cat.h"

namespace retort {
namespace {

using nlohmann::json;

std::string Shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > 100) text = absl::StrCat(text.substr(0, 100), "...");
  return text;
}

// Unsigned values above INT64_MAX would wrap.
bool IsInt64(const json& value) {
  return value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX});
}

}  // namespace

const json* ConfigReader::Find(const char* key) const {
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

bool ConfigReader::IsNull(const char* key) const {
  const auto it = object_.find(key);
  return it != object_.end() && it->is_null();
}

int64_t ConfigReader::Integer(const char* key, std::optional<int64_t> fallback, int64_t lowest, int64_t highest) {
  const json* value = Find(key);
  if (value == nullptr) {
    if (!fallback) Fail(key, "is missing");
    return fallback.value_or(lowest);
  }
  if (!IsInt64(*value)) {
    Fail(key, absl::StrCat("is ", Shown(*value), ", not a whole number in range"));
    return lowest;
  }
  const int64_t number = value->get<int64_t>();
  if (number < lowest || number > highest) {
    Fail(key, absl::StrCat("is ", number, "; it must lie in ", lowest, "..", highest));
    return lowest;
  }
  return number;
}

double ConfigReader::Number(const char* key, double fallback) {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!std::isfinite(number)) {
    Fail(key, absl::StrCat("is ", Shown(*value), ", not a number"));
    return fallback;
  }
  return number;
}

double ConfigReader::Positive(const char* key, double fallback) {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  const double number = value->is_number() ? value->get<double>() : std::nan("");
  if (!std::isfinite(number) || number <= 0.0) {
    Fail(key, absl::StrCat("is ", Shown(*value), ", not a number above zero"));
    return fallback;
  }
  return number;
}

std::vector<double> ConfigReader::Positives(const char* key) {
  std::vector<double> numbers;
  const json* value = Find(key);
  if (value == nullptr) return numbers;
  if (!value->is_array()) {
    Fail(key, absl::StrCat("is ", Shown(*value), ", not a list of numbers"));
    return numbers;
  }
  for (const json& item : *value) {
    const double number = item.is_number() ? item.get<double>() : std::nan("");
    if (!std::isfinite(number) || number <= 0.0) {
      Fail(key, absl::StrCat("holds ", Shown(item), ", which is no number above zero"));
      return {};
    }
    numbers.push_back(number);
  }
  return numbers;
}

bool ConfigReader::Boolean(const char* key, bool fallback) {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) {
    Fail(key, absl::StrCat("is ", Shown(*value), ", not true or false"));
    return fallback;
  }
  return value->get<bool>();
}

std::string ConfigReader::String(const char* key, const std::string& fallback) {
  const json* value = Find(key);
  if (value == nullptr) return fallback;
  if (!value->is_string()) {
    Fail(key, absl::StrCat("is ", Shown(*value), ", not a string"));
    return fallback;
  }
  return value->get<std::string>();
}

std::vector<int32_t> ConfigReader::TokenIds(const char* key, int64_t vocab_size) {
  std::vector<int32_t> ids;
  const json* value = Find(key);
  if (value == nullptr) return ids;
  const json list = value->is_array() ? *value : json::array({*value});
  for (const json& id : list) {
    if (!IsInt64(id)) {
      Fail(key, absl::StrCat("holds ", Shown(id), ", which is no token id"));
      return {};
    }
    if (const int64_t number = id.get<int64_t>(); number >= 0 && number < vocab_size) {
      ids.push_back(static_cast<int32_t>(number));
    } else if (number != -1) {  // some folders write -1 for "none"
      spdlog::warn("token_id_outside_the_vocabulary where=\"{}{}\" id={} vocab_size={}", where_, key, number,
                   vocab_size);
    }
  }
  return ids;
}

void ConfigReader::Only(const char* key, const json& allowed) {
  const json* value = Find(key);
  if (value != nullptr && *value != allowed) Unsupported(key, *value);
}

void ConfigReader::Unsupported(const char* key, const json& value) {
  if (status_.ok()) {
    status_ = absl::UnimplementedError(absl::StrCat(where_, key, ": ", Shown(value), " is not supported"));
  }
}

void ConfigReader::Fail(const char* key, const std::string& why) {
  if (status_.ok()) status_ = absl::InvalidArgumentError(absl::StrCat(where_, key, " ", why));
}

}  // namespace retort
