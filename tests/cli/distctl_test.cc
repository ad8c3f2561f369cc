#include "tests/cli/distctl_test.h"

#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "tests/tiny_tokenizer.h"

namespace retort::cli {

namespace fs = std::filesystem;

void DistctlTest::SetUp() {
  std::string pattern = (fs::temp_directory_path() / "distctl_test.XXXXXX").string();
  ASSERT_NE(mkdtemp(pattern.data()), nullptr);
  folder_ = pattern;
  const char* bin = std::getenv("RETORT_BIN_DIR");
  ASSERT_NE(bin, nullptr);
  bin_ = bin;
  Write("train.jsonl", R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})"
                       "\n");
  Write("model/config.json",
        R"({"num_hidden_layers": 1, "hidden_size": 4, "num_attention_heads": 1, "vocab_size": 10})");
  Write("model/tokenizer.json", kTinyTokenizer);
  Write("model/tokenizer_config.json", kTinyTokenizerConfig);
  const std::string header = R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  std::string length(8, '\0');
  length[0] = static_cast<char>(header.size());
  Write("model/model.safetensors", length + header + std::string(4, '\0'));
  Write("job.yaml", "name: j\ndataset: [{path: train.jsonl}]\nstudent: {model_name_or_path: model, lora: {r: 2}}\n");
}

void DistctlTest::TearDown() { fs::remove_all(folder_); }

void DistctlTest::Write(const std::string& path, const std::string& text) {
  fs::create_directories((folder_ / path).parent_path());
  std::ofstream(folder_ / path, std::ios::binary) << text;
}

std::string DistctlTest::Read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

Ended DistctlTest::Distctl(const std::string& arguments) {
  const std::string command =
      absl::StrCat("cd ", folder_.string(), " && RETORT_STATE_DIR=", (folder_ / "state").string(), " ", environment_,
                   " ", bin_, "/distctl ", arguments, " >out.txt 2>err.txt </dev/null");
  const int status = std::system(command.c_str());
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, Read(folder_ / "out.txt"), Read(folder_ / "err.txt")};
}

}  // namespace retort::cli
