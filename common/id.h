// Random names.
#pragma once

#include <string>

namespace retort {

// `digits` lower-case hex digits from the system's random source.
std::string RandomHex(int digits);

// 16 random bytes as hex; for request ids and incarnations.
std::string NewRequestId();

}  // namespace retort
