#include "common/json_line.h"

#include "absl/strings/str_replace.h"

namespace retort {

std::string WithoutLineBreaks(absl::string_view json) {
  return absl::StrReplaceAll(json, {{"\xc2\x85", "\\u0085"}, {"\xe2\x80\xa8", "\\u2028"}, {"\xe2\x80\xa9", "\\u2029"}});
}

}  // namespace retort
