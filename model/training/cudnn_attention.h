// Attention by cuDNN's graphs, in the plug-in libretort_attention.so: packed samples of any lengths, written straight
// into views, also deterministic. A plan is built (up to a second: its kernel is compiled) when a shape is first seen;
// shapes are rounded up so that there are few.
//
// Deterministic, cuDNN before 9.25 stores the gradient of all scores on Hopper, 2 bytes x heads x length^2 a sample;
// the plug-in cuts a batch into pieces of 1.5 GiB. What does not fit so is not taken.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "model/training/training_attention.h"

namespace retort::internal {

// Both take CUDA tensors in bf16 or f16 as in training_attention.h, with one width for q, k and v. False: nothing was
// done, and `why` says why not; a log line says so once for each reason. Throws where cuDNN fails while it works.
bool CudnnAttendForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const PackedSamples& samples,
                        const AttentionOptions& options, at::Tensor& out, AttentionTape& tape, std::string& why);
bool CudnnAttendBackward(const at::Tensor& d_out, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const at::Tensor& out, const AttentionTape& tape, const PackedSamples& samples,
                         const AttentionOptions& options, at::Tensor& dq, at::Tensor& dk, at::Tensor& dv,
                         std::string& why);

}  // namespace retort::internal
