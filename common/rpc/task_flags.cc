#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/rpc/task_client.h"

namespace retort {

absl::StatusOr<TaskFlags> ParseTaskFlags(int argc, const char* const* argv) {
  TaskFlags flags;
  uint64_t epoch = 0;
  const auto text = [](std::string* target) {
    return [target](absl::string_view value) {
      *target = std::string(value.data(), value.size());
      return !value.empty();
    };
  };
  const std::map<std::string, std::function<bool(absl::string_view)>> setters = {
      {"--coordinator", text(&flags.channel.address)},
      {"--token-file", text(&flags.channel.token_file)},
      {"--tls-ca", text(&flags.channel.tls_ca)},
      {"--tls-cert", text(&flags.channel.tls_cert)},
      {"--tls-key", text(&flags.channel.tls_key)},
      {"--task-id", text(flags.ref.mutable_task_id())},
      {"--epoch", [&](absl::string_view value) { return absl::SimpleAtoi(value, &epoch); }},
      {"--work-dir", text(&flags.work_dir)},
      {"--cache-dir", text(&flags.cache_dir)},
      {"--threads",
       [&](absl::string_view value) {
         return absl::SimpleAtoi(value, &flags.threads) && flags.threads >= 1 && flags.threads <= 1024;
       }},
  };
  std::set<std::string> seen;
  for (int i = 0; i < argc; ++i) {
    // Both "--flag value" and "--flag=value".
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const auto setter = setters.find(name);
    if (setter == setters.end())
      return absl::InvalidArgumentError(absl::StrCat("unknown flag \"", name, "\" for a task"));
    std::string value;
    if (equals != std::string::npos) {
      value = argument.substr(equals + 1);
    } else if (++i < argc) {
      value = argv[i];
    } else {
      return absl::InvalidArgumentError(absl::StrCat(name, " needs a value"));
    }
    if (!seen.insert(name).second) return absl::InvalidArgumentError(absl::StrCat(name, " is given twice"));
    if (!setter->second(value))
      return absl::InvalidArgumentError(absl::StrCat(name, ": \"", value, "\" is not a possible value"));
  }
  for (const char* required : {"--coordinator", "--task-id", "--epoch", "--work-dir", "--cache-dir"}) {
    if (seen.count(required) == 0) return absl::InvalidArgumentError(absl::StrCat("a task needs ", required));
  }
  flags.ref.set_epoch(epoch);
  return flags;
}

}  // namespace retort
