// Rotary scaling: Llama 3's factors for each frequency, and finding the scaling that made given ones.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace retort::gguf {

struct Llama3Scaling {
  double factor = 8.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_context = 8192;
};

// What each of `rotary_dim` / 2 frequencies is divided by (rope_freqs.weight).
std::vector<float> Llama3Factors(const Llama3Scaling& scaling, double theta, int64_t rotary_dim);

// The scaling whose factors these are. `original_context_hint`: what the file says, or 0. Nothing: no Llama 3 scaling
// with a whole original context makes them.
std::optional<Llama3Scaling> FindLlama3Scaling(const std::vector<float>& factors, double theta, int64_t rotary_dim,
                                               int64_t original_context_hint);

}  // namespace retort::gguf
