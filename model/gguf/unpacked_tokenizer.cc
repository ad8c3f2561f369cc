#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/file.h"
#include "common/id.h"
#include "common/status.h"
#include "model/gguf/config.h"
#include "model/gguf/vocab.h"

namespace retort::gguf {

namespace fs = std::filesystem;

absl::StatusOr<UnpackedTokenizer> UnpackedTokenizer::Create(const std::string& path) {
  ASSIGN_OR_RETURN(const auto file, File::Open(path));
  ASSIGN_OR_RETURN(auto files, TokenizerFilesFromGguf(*file));
  if (files.empty()) return absl::NotFoundError(absl::StrCat("no tokenizer in ", path));
  ASSIGN_OR_RETURN(const nlohmann::json config, ConfigFromGguf(*file));
  files["config.json"] = nlohmann::json{{"model_type", config["model_type"]}}.dump();
  std::error_code error;
  const fs::path temporary = fs::temp_directory_path(error);
  if (error) return ErrnoStatus("find a folder for temporary files", error.value());
  UnpackedTokenizer unpacked;
  unpacked.folder_ = (temporary / absl::StrCat("retort.tokenizer.", RandomHex(16))).string();
  RETURN_IF_ERROR(MakeFolders(unpacked.folder_, 0700));
  for (const auto& [name, contents] : files) {
    RETURN_IF_ERROR(WriteFileAtomically(unpacked.folder_ + "/" + name, contents));
  }
  return unpacked;
}

UnpackedTokenizer::~UnpackedTokenizer() {
  std::error_code error;
  if (!folder_.empty()) fs::remove_all(folder_, error);
}

}  // namespace retort::gguf
