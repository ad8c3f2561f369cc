#include "curate/split.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "common/hash.h"

namespace retort::curate {
namespace {

constexpr double kRoundingSlack = 1e-9;

}  // namespace

absl::StatusOr<std::vector<Split>> SplitPrompts(const std::vector<std::string>& prompt_hashes,
                                                const v1::SplitSpec& shares, uint64_t seed) {
  double train = shares.train();
  const double validation = shares.validation();
  if (!(train >= 0) || !(validation >= 0) || train + validation > 1 + kRoundingSlack) {
    return absl::InvalidArgumentError(absl::StrCat("curate.split: train ", train, " and validation ", validation,
                                                   " must not be negative, nor more than 1 together"));
  }
  if (train == 0 && validation == 0) train = 1;

  const auto count = static_cast<int64_t>(prompt_hashes.size());
  const auto share_of = [count](double share) {
    return static_cast<int64_t>(std::llround(share * static_cast<double>(count)));
  };
  int64_t validation_count = share_of(validation);
  if (validation > 0 && count > 1) validation_count = std::max<int64_t>(validation_count, 1);
  validation_count = std::min(validation_count, train > 0 ? std::max<int64_t>(count - 1, 0) : count);
  const bool whole = std::abs(train + validation - 1) <= kRoundingSlack;
  const int64_t rest = count - validation_count;
  const int64_t train_count = whole ? rest : std::min(share_of(train), rest);

  std::vector<Sha256Digest> scores;
  scores.reserve(prompt_hashes.size());
  for (const std::string& prompt_hash : prompt_hashes) {
    Sha256 hash;
    hash.UpdateField("retort split 1");
    hash.UpdateU64(seed);
    hash.UpdateField(prompt_hash);
    scores.push_back(hash.Finish());
  }
  std::vector<size_t> order(prompt_hashes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] < scores[b]; });
  std::vector<Split> splits(prompt_hashes.size(), Split::kLeftOut);
  for (int64_t i = 0; i < validation_count + train_count; ++i)
    splits[order[static_cast<size_t>(i)]] = i < validation_count ? Split::kValidation : Split::kTrain;
  return splits;
}

}  // namespace retort::curate
