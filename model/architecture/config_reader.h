// Reads one JSON object of a model's configuration.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace retort {

// Null counts as absent. The first problem is kept, later reads return their fallback: ask for status() once at the end
// (or before a value is used where a wrong one would do harm). Lives no longer than the object.
class ConfigReader {
 public:
  // `where` is put before each key in errors: "config.json: ".
  ConfigReader(const nlohmann::json& object, std::string where) : object_(object), where_(std::move(where)) {}

  // nullptr when absent.
  const nlohmann::json* Find(const char* key) const;
  // Whether the key is there and null.
  bool IsNull(const char* key) const;
  // Without a fallback the key must be there.
  int64_t Integer(const char* key, std::optional<int64_t> fallback, int64_t lowest, int64_t highest);
  // Finite and above zero.
  double Positive(const char* key, double fallback);
  double Number(const char* key, double fallback);
  bool Boolean(const char* key, bool fallback);
  std::string String(const char* key, const std::string& fallback);
  // Positive numbers; absent: empty.
  std::vector<double> Positives(const char* key);
  // A token id, or a list of them. Those past the vocabulary are left out: configs cut down from a large model keep its
  // ids, and no such token ever comes.
  std::vector<int32_t> TokenIds(const char* key, int64_t vocab_size);
  // Only `allowed` (or nothing at all) is supported.
  void Only(const char* key, const nlohmann::json& allowed);
  void Unsupported(const char* key, const nlohmann::json& value);
  void Fail(const char* key, const std::string& why);
  // Another reader's problem, kept as this one's if it is the first.
  void Adopt(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }

  const nlohmann::json& object() const { return object_; }
  const std::string& where() const { return where_; }
  const absl::Status& status() const { return status_; }

 private:
  const nlohmann::json& object_;
  const std::string where_;
  absl::Status status_;
};

}  // namespace retort
