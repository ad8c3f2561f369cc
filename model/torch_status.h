// libtorch's exceptions as Status, at the one boundary where they stop.
#pragma once

#include <exception>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace retort {

// kResourceExhausted when memory ran out (host or device), kInternal otherwise; "<what>: <first line of the message>".
absl::Status TorchErrorToStatus(absl::string_view what, const std::exception& error);

// Runs `body` (returning Status or StatusOr) and turns what it throws into a Status.
template <typename Body>
std::invoke_result_t<Body> CatchTorchErrors(absl::string_view what, Body&& body) {
  try {
    return std::forward<Body>(body)();
  } catch (const std::exception& error) {
    return TorchErrorToStatus(what, error);
  }
}

}  // namespace retort
