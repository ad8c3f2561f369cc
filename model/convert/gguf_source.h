// A GGUF file's tensors under the names, and in the arrangement, that a Hugging Face folder has.
#pragma once

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/gguf/config.h"
#include "model/gguf/families.h"
#include "model/gguf/file.h"
#include "model/tensor_source.h"
#include "model/weights.h"

namespace retort {

// Get gives F32, F16 and BF16 tensors in their dtype (mapped, where they lie as HF has them) and dequantises all others
// to f32, one at a time, on torch's threads. One thread calls it at a time.
class GgufSource final : public TensorSource {
 public:
  // Errors: kNotFound, kInvalidArgument, kUnimplemented (an architecture, a tensor or its type, by name).
  static absl::StatusOr<std::unique_ptr<GgufSource>> Open(const std::string& path);

  std::vector<std::string> Names() const override;
  bool Has(const std::string& name) const override { return entries_.contains(name); }
  absl::StatusOr<at::Tensor> Get(const std::string& name) override;
  absl::StatusOr<std::vector<int64_t>> ShapeOf(const std::string& name) override;

  const gguf::File& file() const { return *file_; }
  const nlohmann::json& config() const { return config_; }  // see gguf::ConfigFromGguf

  // What Get will give. Errors: kNotFound.
  struct Description {
    c10::ScalarType dtype;
    std::vector<int64_t> shape;
  };
  absl::StatusOr<Description> Describe(const std::string& name) const;

 private:
  struct Entry {
    const gguf::TensorInfo* tensor = nullptr;
    const gguf::TensorInfo* values = nullptr;  // with Layout::kKeyOfKvB: the other half
    gguf::Layout layout = gguf::Layout::kSame;
    int64_t expert = -1;
  };

  GgufSource() = default;
  absl::Status AddTensors();
  absl::Status AddTensor(const gguf::TensorInfo& tensor, const gguf::RuleMatch& match);
  absl::Status Check(const std::string& name, const Entry& entry) const;
  // A tensor's elements from `first` on, `shape` of them.
  at::Tensor Load(const gguf::TensorInfo& tensor, int64_t first, const std::vector<int64_t>& shape) const;

  std::shared_ptr<const gguf::File> file_;
  const gguf::Family* family_ = nullptr;
  nlohmann::json config_;
  gguf::Geometry geometry_;
  std::map<std::string, Entry> entries_;
};

// LoadWeights for a GGUF file. Errors: as GgufSource::Open, ParseModelConfig and LoadWeightsFrom.
absl::StatusOr<ModelWeights> LoadGgufWeights(const std::string& path, std::optional<c10::ScalarType> dtype,
                                             c10::Device device, const BaseQuantisation& quantisation = {});

}  // namespace retort
