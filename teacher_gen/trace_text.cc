#include "teacher_gen/trace_text.h"

#include <algorithm>

#include "common/status.h"

namespace retort {

TraceText::TraceText(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {
  for (const char* token : {"<think>", "</think>"}) {
    const int32_t id = tokenizer_.TokenToId(token);
    if (id < 0) continue;
    const absl::StatusOr<bool> special = IsSpecial(id);
    if (special.ok() && *special) kept_.push_back(id);
  }
}

absl::StatusOr<bool> TraceText::IsSpecial(int32_t id) {
  const auto known = special_.find(id);
  if (known != special_.end()) return known->second;
  ASSIGN_OR_RETURN(const std::string without, tokenizer_.Decode({id}, true));
  ASSIGN_OR_RETURN(const std::string with, tokenizer_.Decode({id}, false));
  const bool special = without.empty() && !with.empty();
  special_[id] = special;
  return special;
}

absl::StatusOr<std::string> TraceText::Decode(const std::vector<int32_t>& ids) {
  const bool plain = std::none_of(ids.begin(), ids.end(),
                                  [&](int32_t id) { return std::find(kept_.begin(), kept_.end(), id) != kept_.end(); });
  if (plain) {
    absl::StatusOr<std::string> text = tokenizer_.Decode(ids, true);
    if (text.ok()) return text;
  }
  std::vector<int32_t> wanted;
  for (const int32_t id : ids) {
    const absl::StatusOr<bool> special = IsSpecial(id);
    const bool unknown = !special.ok();
    if (!unknown && (!*special || std::find(kept_.begin(), kept_.end(), id) != kept_.end())) wanted.push_back(id);
  }
  return tokenizer_.Decode(wanted, false);
}

}  // namespace retort
