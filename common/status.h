// Status helpers: macros, context, and the two-way mapping between absl::Status and grpc::Status.
#pragma once

#include <grpcpp/support/status.h>

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace retort {

// The same code and payloads with "<context>: " before the message. OK stays OK.
absl::Status WithContext(const absl::Status& status, absl::string_view context);

// Codes of the two enums have the same numbers; messages are kept.
grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);

// The status for the current errno after `what` failed, e.g. "open /data/x: No space left on device". ENOENT is
// kNotFound, ENOSPC and EDQUOT are kResourceExhausted, EACCES and EPERM kPermissionDenied, EEXIST kAlreadyExists, all
// else kInternal.
absl::Status ErrnoStatus(absl::string_view what, int error_number);

}  // namespace retort

#define RETORT_CONCAT_INNER(a, b) a##b
#define RETORT_CONCAT(a, b) RETORT_CONCAT_INNER(a, b)

// Returns from the enclosing function when the expression (a Status or grpc::Status convertible one) is not OK.
#define RETURN_IF_ERROR(expression)                   \
  do {                                                \
    if (auto _status = (expression); !_status.ok()) { \
      return _status;                                 \
    }                                                 \
  } while (false)

// ASSIGN_OR_RETURN(auto x, F()); the declaration may hold no comma outside parentheses.
#define ASSIGN_OR_RETURN(declaration, expression) \
  ASSIGN_OR_RETURN_IMPL(RETORT_CONCAT(_status_or_, __LINE__), declaration, expression)
#define ASSIGN_OR_RETURN_IMPL(temporary, declaration, expression) \
  auto temporary = (expression);                                  \
  if (!temporary.ok()) return temporary.status();                 \
  declaration = std::move(temporary).value()
