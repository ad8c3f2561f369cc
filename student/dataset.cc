#include "student/dataset.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/check.h"
#include "common/hash.h"
#include "common/status.h"
#include "model/safetensors.h"

namespace retort {
namespace {

at::Tensor CopyToTensor(const std::vector<int32_t>& values) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::kInt);
  if (!values.empty()) std::memcpy(tensor.data_ptr<int32_t>(), values.data(), values.size() * sizeof(int32_t));
  return tensor;
}

at::Tensor CopyToTensor(const std::vector<int64_t>& values) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  if (!values.empty()) std::memcpy(tensor.data_ptr<int64_t>(), values.data(), values.size() * sizeof(int64_t));
  return tensor;
}

absl::StatusOr<std::vector<int64_t>> CopyToVector(const at::Tensor& tensor) {
  if (tensor.dim() != 1 || tensor.scalar_type() != at::kLong) return absl::DataLossError("a list of another type");
  const int64_t* values = tensor.const_data_ptr<int64_t>();
  return std::vector<int64_t>(values, values + tensor.numel());
}

absl::string_view Bytes(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
}

}  // namespace

absl::Span<const int32_t> Dataset::Slice(const at::Tensor& tensor, int64_t sample) const {
  RETORT_CHECK(sample >= 0 && sample < size());
  return {tensor.const_data_ptr<int32_t>() + offsets_[sample],
          static_cast<size_t>(offsets_[sample + 1] - offsets_[sample])};
}

std::vector<int64_t> Dataset::sequence_starts(int64_t sample) const {
  RETORT_CHECK(sample >= 0 && sample < size());
  const int64_t begin = offsets_[sample];
  std::vector<int64_t> starts;
  for (auto start = std::lower_bound(sequences_.begin(), sequences_.end(), begin);
       start != sequences_.end() && *start < offsets_[sample + 1]; ++start) {
    starts.push_back(*start - begin);
  }
  return starts;
}

std::string Dataset::Digest() const {
  Sha256 hash;
  hash.UpdateField(Bytes(input_ids_));
  hash.UpdateField(Bytes(labels_));
  for (const int64_t offset : offsets_) hash.UpdateU64(static_cast<uint64_t>(offset));
  for (const int64_t start : sequences_) hash.UpdateU64(static_cast<uint64_t>(start));
  for (const int64_t count : trained_tokens_) hash.UpdateU64(static_cast<uint64_t>(count));
  return ToHex(hash.Finish());
}

absl::Status Dataset::SaveTo(const std::string& path) const {
  return WriteSafetensors(path,
                          {{"input_ids", input_ids_},
                           {"labels", labels_},
                           {"offsets", CopyToTensor(offsets_)},
                           {"sequences", CopyToTensor(sequences_)},
                           {"trained_tokens", CopyToTensor(trained_tokens_)}},
                          {{"sha256", Digest()},
                           {"over_long", absl::StrCat(counts_.over_long)},
                           {"nothing_to_train", absl::StrCat(counts_.nothing_to_train)}});
}

absl::StatusOr<Dataset> Dataset::LoadFrom(const std::string& path) {
  ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  Dataset dataset;
  ASSIGN_OR_RETURN(dataset.input_ids_, file.Get("input_ids"));
  ASSIGN_OR_RETURN(dataset.labels_, file.Get("labels"));
  ASSIGN_OR_RETURN(const at::Tensor offsets, file.Get("offsets"));
  ASSIGN_OR_RETURN(const at::Tensor trained_tokens, file.Get("trained_tokens"));
  ASSIGN_OR_RETURN(const at::Tensor sequences, file.Get("sequences"));
  ASSIGN_OR_RETURN(dataset.offsets_, CopyToVector(offsets));
  ASSIGN_OR_RETURN(dataset.sequences_, CopyToVector(sequences));
  ASSIGN_OR_RETURN(dataset.trained_tokens_, CopyToVector(trained_tokens));
  dataset.counts_.kept = static_cast<int64_t>(dataset.trained_tokens_.size());
  const auto& metadata = file.metadata();
  const auto value = [&](const char* key) {
    const auto found = metadata.find(key);
    return found == metadata.end() ? std::string() : found->second;
  };
  const bool whole = dataset.input_ids_.scalar_type() == at::kInt && dataset.labels_.scalar_type() == at::kInt &&
                     absl::SimpleAtoi(value("over_long"), &dataset.counts_.over_long) &&
                     absl::SimpleAtoi(value("nothing_to_train"), &dataset.counts_.nothing_to_train) &&
                     value("sha256") == dataset.Digest();
  if (!whole) return absl::DataLossError(absl::StrCat(path, ": damaged"));
  return dataset;
}

void DatasetBuilder::Add(const TrainingExample& example) {
  RETORT_CHECK(example.input_ids.size() == example.labels.size());
  if (static_cast<int64_t>(example.input_ids.size()) > max_length_) {
    ++dataset_.counts_.over_long;
    return;
  }
  std::vector<int32_t> starts = example.sample_starts;
  if (starts.empty()) starts.push_back(0);
  int64_t trained = 0;
  for (const int32_t label : example.labels) trained += label != kIgnoreLabel;
  for (const int32_t start : starts) {
    if (!example.labels.empty()) trained -= example.labels[static_cast<size_t>(start)] != kIgnoreLabel;
  }
  if (trained == 0) {
    ++dataset_.counts_.nothing_to_train;
    return;
  }
  for (const int32_t start : starts) dataset_.sequences_.push_back(static_cast<int64_t>(input_ids_.size()) + start);
  input_ids_.insert(input_ids_.end(), example.input_ids.begin(), example.input_ids.end());
  labels_.insert(labels_.end(), example.labels.begin(), example.labels.end());
  dataset_.offsets_.push_back(static_cast<int64_t>(input_ids_.size()));
  dataset_.trained_tokens_.push_back(trained);
  ++dataset_.counts_.kept;
}

Dataset DatasetBuilder::Build() && {
  dataset_.input_ids_ = CopyToTensor(input_ids_);
  dataset_.labels_ = CopyToTensor(labels_);
  return std::move(dataset_);
}

}  // namespace retort
