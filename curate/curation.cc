#include "curate/curation.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/file.h"
#include "common/hash.h"
#include "common/rpc/sample_client.h"
#include "common/status.h"

namespace retort::curate {
namespace {

constexpr char kRowsFile[] = "/rows.tmp";

absl::Status DiskError(const std::string& path) {
  return absl::ResourceExhaustedError(absl::StrCat("write ", path, ": failed; is the disk full?"));
}

// Runs of white space become one blank, so that responses that differ in nothing else are the same.
std::string Normalised(absl::string_view text) {
  return absl::StrJoin(absl::StrSplit(text, absl::ByAnyChar(" \t\n\v\f\r"), absl::SkipEmpty()), " ");
}

}  // namespace

std::string FinishCause(absl::string_view finish_reason) {
  const bool plain = !finish_reason.empty() && finish_reason.size() <= 64 &&
                     std::all_of(finish_reason.begin(), finish_reason.end(),
                                 [](char c) { return absl::ascii_isgraph(static_cast<unsigned char>(c)); });
  return absl::StrCat("finish_", plain ? std::string(finish_reason) : finish_reason.empty() ? "unknown" : "other");
}

Curation::Curation(const v1::CurateSpec& spec, std::string folder, Verifier verifier)
    : spec_(spec),
      folder_(std::move(folder)),
      verifier_(std::move(verifier)),
      rows_(folder_ + kRowsFile, std::ios::binary | std::ios::trunc) {}

absl::StatusOr<std::unique_ptr<Curation>> Curation::Make(const v1::CurateSpec& spec, const std::string& folder) {
  ASSIGN_OR_RETURN(Verifier verifier, Verifier::Make(spec.verify()));
  RETURN_IF_ERROR(SplitPrompts({}, spec.split(), spec.seed()).status());
  std::unique_ptr<Curation> curation(new Curation(spec, folder, std::move(verifier)));
  if (!curation->rows_) return absl::InternalError(absl::StrCat("create ", folder, kRowsFile, ": failed"));
  return curation;
}

std::string Curation::Judge(const v1::Prompt& prompt, const v1::Trace& trace) {
  const auto& wanted = spec_.finish_reason();
  const bool finished = wanted.empty() ? trace.finish_reason() == "stop"
                                       : std::find(wanted.begin(), wanted.end(), trace.finish_reason()) != wanted.end();
  if (!finished) return FinishCause(trace.finish_reason());
  // Nothing to learn from, and no row that training takes.
  const auto answer_part = AfterThinking(trace.text());
  if (answer_part.has_value() && absl::StripAsciiWhitespace(*answer_part).empty()) return "empty";
  switch (verifier_.Verify(trace.text(), prompt.answer(), trace.finish_reason() == "length")) {
    case Verdict::kCorrect:
      break;
    case Verdict::kWrong:
      return "wrong_answer";
    case Verdict::kNoAnswer:
      return "no_answer";
    case Verdict::kNoReference:
      return "no_reference";
  }
  if (spec_.dedup() == v1::DEDUP_METHOD_EXACT) {
    Sha256 hash;
    hash.UpdateField(prompt.prompt_hash());
    hash.UpdateField(Normalised(trace.reasoning()));
    hash.UpdateField(Normalised(trace.text()));
    if (!seen_.insert(ToBytes(hash.Finish())).second) return "duplicate";
  }
  return "kept";
}

absl::Status Curation::Add(const v1::Prompt& prompt, const v1::Trace& trace) {
  const std::string cause = Judge(prompt, trace);
  ++outcomes_[cause];
  if (cause != "kept") return absl::OkStatus();
  ASSIGN_OR_RETURN(std::string row, TrainingRow(prompt, trace));
  row.push_back('\n');
  const auto [position, is_new] = prompt_positions_.try_emplace(prompt.prompt_hash(), prompt_hashes_.size());
  if (is_new) prompt_hashes_.push_back(prompt.prompt_hash());
  const auto size_bytes = static_cast<int64_t>(row.size());
  kept_.push_back(Kept{trace.key(), position->second, rows_bytes_, size_bytes});
  rows_bytes_ += size_bytes;
  rows_ << row;
  return rows_ ? absl::OkStatus() : DiskError(folder_ + kRowsFile);
}

absl::Status Curation::WriteSplit(Split split, const std::vector<Split>& splits, std::vector<v1::TraceKey>* keys) {
  const std::string path = folder_ + (split == Split::kTrain ? "/train.jsonl" : "/validation.jsonl");
  std::ifstream rows(folder_ + kRowsFile, std::ios::binary);
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  std::string row;
  for (const Kept& kept : kept_) {
    if (splits[kept.prompt] != split) continue;
    row.resize(static_cast<size_t>(kept.size_bytes));
    rows.seekg(kept.offset_bytes);
    if (!rows.read(row.data(), kept.size_bytes))
      return absl::InternalError(absl::StrCat("read ", folder_, kRowsFile, ": failed"));
    out << row;
    keys->push_back(kept.key);
  }
  out.close();
  if (!out) return DiskError(path);
  return FsyncPath(path);
}

absl::StatusOr<CuratedDataset> Curation::Finish() {
  rows_.close();
  if (!rows_) return DiskError(folder_ + kRowsFile);
  ASSIGN_OR_RETURN(const std::vector<Split> splits, SplitPrompts(prompt_hashes_, spec_.split(), spec_.seed()));
  CuratedDataset dataset;
  RETURN_IF_ERROR(WriteSplit(Split::kTrain, splits, &dataset.train));
  RETURN_IF_ERROR(WriteSplit(Split::kValidation, splits, &dataset.validation));
  const int64_t left_out = std::count_if(kept_.begin(), kept_.end(),
                                         [&](const Kept& kept) { return splits[kept.prompt] == Split::kLeftOut; });
  if (left_out > 0) {
    outcomes_["left_out"] = left_out;
    outcomes_["kept"] -= left_out;
  }
  std::remove((folder_ + kRowsFile).c_str());
  if (dataset.train.empty()) {
    const std::string causes = absl::StrJoin(outcomes_, ", ", absl::PairFormatter(" "));
    return absl::InvalidArgumentError(
        absl::StrCat("no trace is left to train on (", causes.empty() ? "there were none" : causes,
                     "): look at some with distctl store cat, then mend curate.verify, curate.finish_reason, "
                     "teacher.sampling.max_tokens or the prompts' answers"));
  }
  dataset.outcomes = outcomes_;
  return dataset;
}

}  // namespace retort::curate
