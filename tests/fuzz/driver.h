// Runs a fuzz target on mutations of sound inputs: what libFuzzer does, without clang and without coverage.
//
// Each target defines Seeds and LLVMFuzzerTestOneInput and links driver.cc; with clang, -fsanitize=fuzzer links the
// second alone, unchanged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace retort {

// Sound inputs to start from.
std::vector<std::string> Seeds();

}  // namespace retort

// Returns 0. Whatever it does besides (crash, a sanitizer's report, a failed check) is a finding.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
