// Tokenizer folders made from the golden file (tests/model/make_tokenizer_golden.py).
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "common/id.h"
#include "common/json.h"

namespace retort {

inline const nlohmann::json& TokenizerGolden() {
  static const nlohmann::json& golden = *new nlohmann::json([] {
    const char* root = std::getenv("RETORT_SOURCE_DIR");
    return ReadJsonFile(std::string(root == nullptr ? "." : root) + "/tests/model/data/tokenizer_golden.json").value();
  }());
  return golden;
}

// A folder under the system's temporary one, gone with the object.
class TemporaryFolder {
 public:
  TemporaryFolder() : path_(std::filesystem::temp_directory_path() / ("retort_test." + RandomHex(12))) {
    std::filesystem::create_directories(path_);
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  std::string path() const { return path_.string(); }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  void Write(const std::string& name, const std::string& contents) const {
    std::ofstream(path_ / name, std::ios::binary) << contents;
  }

 private:
  const std::filesystem::path path_;
};

// Writes the golden tokenizer with `config` (tokenizer_config.json) into `folder`.
inline void WriteTokenizer(const TemporaryFolder& folder, const nlohmann::json& config) {
  folder.Write("tokenizer.json", TokenizerGolden()["tokenizer"].dump());
  folder.Write("tokenizer_config.json", config.dump());
}

}  // namespace retort
