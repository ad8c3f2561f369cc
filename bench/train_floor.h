// What a LoRA step cannot do without: the frozen model's products, forward and towards the input, and attention, each
// timed alone.
#pragma once

#include <cstdint>

#include "model/weights.h"

namespace retort::bench {

struct TrainFloor {
  double products_seconds = 0.0;   // of the layers
  double head_seconds = 0.0;       // of the output head
  double attention_seconds = 0.0;  // cuDNN's, where it takes the shape; else flash-2's
  double seconds() const { return products_seconds + head_seconds + attention_seconds; }
};

// On a GPU, for `batch_size` samples of `sequence_length` tokens. Medians of `repeats`; each product runs once through
// all layers, so that no weight is found in a cache.
TrainFloor MeasureTrainFloor(const ModelWeights& weights, int64_t sequence_length, int64_t batch_size, int repeats);

// Multiplications and additions of one step by the count peers use: 4 a frozen weight (the look-up of embeddings left
// out, the head in) and causal attention forward and twice backward; what is computed again is not counted.
double TrainFlopsPerToken(const ModelConfig& config, int64_t sequence_length);

}  // namespace retort::bench
