#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/spec/local_checks.h"
#include "common/json.h"
#include "common/status.h"

namespace retort::cli {
namespace {

constexpr int64_t kMaxHeaderBytes = int64_t{100} << 20;

absl::StatusOr<TensorInfo> ParseTensor(const std::string& name, const nlohmann::json& entry, int64_t data_bytes) {
  TensorInfo tensor{.name = name};
  const auto bad = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("damaged: tensor \"", name, "\" ", what));
  };
  const auto dtype = entry.find("dtype");
  const auto shape = entry.find("shape");
  const auto offsets = entry.find("data_offsets");
  if (dtype == entry.end() || !dtype->is_string()) return bad("has no dtype");
  if (shape == entry.end() || !shape->is_array()) return bad("has no shape");
  if (offsets == entry.end() || !offsets->is_array() || offsets->size() != 2 || !(*offsets)[0].is_number_unsigned() ||
      !(*offsets)[1].is_number_unsigned()) {
    return bad("has no data_offsets");
  }
  tensor.dtype = dtype->get<std::string>();
  for (const nlohmann::json& size : *shape) {
    if (!size.is_number_unsigned()) return bad("has a negative size");
    tensor.shape.push_back(size.get<int64_t>());
  }
  const uint64_t begin = (*offsets)[0].get<uint64_t>();
  const uint64_t end = (*offsets)[1].get<uint64_t>();
  if (begin > end || end > static_cast<uint64_t>(data_bytes)) return bad("lies outside the file; is the file whole?");
  tensor.bytes = static_cast<int64_t>(end - begin);
  tensor.offset = static_cast<int64_t>(begin);
  return tensor;
}

}  // namespace

absl::StatusOr<std::vector<TensorInfo>> ReadSafetensorsHeader(const std::string& path) {
  std::error_code error;
  const int64_t file_bytes = static_cast<int64_t>(std::filesystem::file_size(path, error));
  if (error) return ErrnoStatus(absl::StrCat("open ", path), error.value());
  std::ifstream file(path, std::ios::binary);
  unsigned char length[8] = {};
  if (!file.read(reinterpret_cast<char*>(length), sizeof length)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": damaged: shorter than a safetensors header"));
  }
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | length[i];
  if (header_bytes > static_cast<uint64_t>(kMaxHeaderBytes) || static_cast<int64_t>(header_bytes) + 8 > file_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": damaged: its header says ", header_bytes, " bytes, the file has ", file_bytes));
  }
  std::string text(header_bytes, '\0');
  if (!file.read(text.data(), static_cast<std::streamsize>(header_bytes))) {
    return absl::InternalError(absl::StrCat("read ", path, ": failed in the header"));
  }
  auto header = ParseJson(text, path);
  if (!header.ok() || !header->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": damaged: its header is not a JSON object"));
  }
  std::vector<TensorInfo> tensors;
  for (const auto& [name, entry] : header->items()) {
    if (name == "__metadata__") continue;
    auto tensor = ParseTensor(name, entry, file_bytes - 8 - static_cast<int64_t>(header_bytes));
    if (!tensor.ok()) return WithContext(tensor.status(), path);
    tensor->file = path;
    tensor->offset += 8 + static_cast<int64_t>(header_bytes);
    tensors.push_back(*std::move(tensor));
  }
  return tensors;
}

absl::StatusOr<std::vector<TensorInfo>> ReadModelTensors(const std::string& folder) {
  std::error_code error;
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (absl::EndsWith(entry.path().filename().string(), ".safetensors")) files.push_back(entry.path().string());
  }
  if (error) return ErrnoStatus(absl::StrCat("open ", folder), error.value());
  if (files.empty()) return absl::NotFoundError(absl::StrCat(folder, " has no *.safetensors file"));
  std::sort(files.begin(), files.end());
  std::vector<TensorInfo> tensors;
  for (const std::string& file : files) {
    ASSIGN_OR_RETURN(std::vector<TensorInfo> part, ReadSafetensorsHeader(file));
    tensors.insert(tensors.end(), std::make_move_iterator(part.begin()), std::make_move_iterator(part.end()));
  }
  return tensors;
}

}  // namespace retort::cli
