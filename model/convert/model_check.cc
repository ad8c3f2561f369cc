#include "model/convert/model_check.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status.h"
#include "model/config.h"
#include "model/weights.h"

namespace retort {

absl::Status CheckTensorsAgainstConfig(
    const nlohmann::json& config, const std::string& where,
    const std::function<absl::StatusOr<std::vector<int64_t>>(const std::string& name)>& shape_of) {
  ModelWeights weights;
  ASSIGN_OR_RETURN(weights.config, ParseModelConfig(config, nullptr, where));
  return VisitTensors(weights, [&](const TensorPlace& place) -> absl::Status {
    ASSIGN_OR_RETURN(const std::vector<int64_t> shape, shape_of(place.name));
    if (shape == place.shape) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(where, ": tensor \"", place.name, "\" has shape [",
                                                   absl::StrJoin(shape, ", "), "]; the config asks for [",
                                                   absl::StrJoin(place.shape, ", "), "]"));
  });
}

}  // namespace retort
