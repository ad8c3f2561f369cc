#include "model/safetensors_writer.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/status.h"
#include "model/safetensors.h"

namespace retort {

uint64_t SafetensorsEntry::bytes() const {
  uint64_t count = c10::elementSize(dtype);
  for (const int64_t size : shape) count *= static_cast<uint64_t>(size);
  return count;
}

absl::StatusOr<SafetensorsWriter> SafetensorsWriter::Create(const std::string& path,
                                                            std::vector<SafetensorsEntry> entries,
                                                            const std::map<std::string, std::string>& metadata) {
  // In the order in which the reference implementation writes them.
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::string text = header.dump();
  text.pop_back();
  uint64_t offset = 0;
  for (const SafetensorsEntry& entry : entries) {
    const char* dtype = SafetensorsDtypeName(entry.dtype);
    if (dtype == nullptr || entry.name == "__metadata__") {
      return absl::InvalidArgumentError(absl::StrCat("write ", path, ": tensor \"", entry.name,
                                                     "\": its name or dtype has no place in a safetensors file"));
    }
    nlohmann::ordered_json value = {
        {"dtype", dtype}, {"shape", entry.shape}, {"data_offsets", {offset, offset + entry.bytes()}}};
    // Put together by hand: an ordered object looks through all its keys for each that is added.
    absl::StrAppend(&text, text.size() > 1 ? "," : "", nlohmann::json(entry.name).dump(), ":", value.dump());
    offset += entry.bytes();
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string length(8, '\0');
  for (int i = 0; i < 8; ++i) length[i] = static_cast<char>(text.size() >> (8 * i));
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  RETURN_IF_ERROR(file.Append(length));
  RETURN_IF_ERROR(file.Append(text));
  return SafetensorsWriter(std::move(file), std::move(entries));
}

absl::Status SafetensorsWriter::Append(const at::Tensor& tensor) {
  RETORT_CHECK(next_ < entries_.size());
  const SafetensorsEntry& entry = entries_[next_++];
  RETORT_CHECK(tensor.scalar_type() == entry.dtype && tensor.sizes() == c10::IntArrayRef(entry.shape));
  const at::Tensor plain = tensor.detach().to(at::kCPU).contiguous();
  return file_.Append({static_cast<const char*>(plain.const_data_ptr()), plain.nbytes()});
}

absl::Status SafetensorsWriter::Commit() {
  RETORT_CHECK(next_ == entries_.size());
  return file_.Commit();
}

}  // namespace retort
