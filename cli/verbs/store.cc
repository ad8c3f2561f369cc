#include <unistd.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/render/format.h"
#include "cli/render/job_json.h"
#include "cli/render/terminal.h"
#include "common/rpc/sample_client.h"

namespace retort::cli {
namespace {

struct Arguments {
  std::string set;
  std::string file;
  std::string name;
  int64_t limit = 0;
};

// Runs `action` with a client of the store.
template <typename Action>
int WithStore(const Globals& globals, Action action) {
  const auto client = Connect(globals);
  if (!client.ok()) return Fail(client.status());
  SampleClient store(client->channel, v1::TaskRef(), ClientRetry());
  return action(store);
}

int Stats(const Globals& globals, SampleClient& store) {
  const auto stats = store.Stats();
  if (!stats.ok()) return Fail(stats.status());
  if (globals.json) {
    PrintJson(StoreStatsToJson(*stats));
    return kExitDone;
  }
  Table table({"", ">count"});
  table.AddRow({"sample sets", FormatCount(stats->sample_sets())});
  table.AddRow({"prompts", FormatCount(stats->prompts())});
  table.AddRow({"traces", FormatCount(stats->traces())});
  for (const auto& [reason, count] : stats->traces_by_finish_reason().counts()) {
    table.AddRow({absl::StrCat("  ", reason), FormatCount(count)});
  }
  table.AddRow({"unfinished traces", FormatCount(stats->partials())});
  table.AddRow({"leases", FormatCount(stats->leases())});
  table.AddRow({"manifests", FormatCount(stats->manifests())});
  table.AddRow({"on disk", FormatBytes(stats->disk_bytes())});
  std::fputs(table.ToString(DescribeTerminal(STDOUT_FILENO).color).c_str(), stdout);
  return kExitDone;
}

int ListSets(const Globals& globals, SampleClient& store) {
  const auto sets = store.ListSampleSets();
  if (!sets.ok()) return Fail(sets.status());
  if (globals.json) {
    nlohmann::json list = nlohmann::json::array();
    for (const v1::SampleSetInfo& set : sets->sets()) list.push_back(SampleSetToJson(set));
    PrintJson({{"sets", std::move(list)}});
    return kExitDone;
  }
  if (sets->sets_size() == 0) {
    std::puts("no sample sets; jobs with a teacher make them, `distctl store import` as well");
    return kExitDone;
  }
  Table table({"set", ">prompts", ">n", ">traces", ">leased", "outcomes"});
  for (const v1::SampleSetInfo& set : sets->sets()) {
    std::string outcomes;
    for (const auto& [reason, count] : set.outcomes().counts()) {
      absl::StrAppend(&outcomes, outcomes.empty() ? "" : ", ", FormatCount(count), " ", reason);
    }
    table.AddRow({set.sample_set_id(), FormatCount(set.prompt_count()), absl::StrCat(set.n()),
                  FormatCount(set.trace_count()), FormatCount(set.leased_count()), outcomes});
  }
  std::fputs(table.ToString(DescribeTerminal(STDOUT_FILENO).color).c_str(), stdout);
  return kExitDone;
}

int Cat(const Globals& globals, const Arguments& arguments, SampleClient& store) {
  const Terminal terminal = DescribeTerminal(STDOUT_FILENO);
  int64_t shown = 0;
  // Ends the listing early; not an error.
  constexpr absl::string_view kEnough = "enough";
  const absl::Status status =
      store.ListTraces(arguments.set, [&](const v1::Prompt& prompt, const v1::Trace& trace) -> absl::Status {
        if (arguments.limit > 0 && shown == arguments.limit) return absl::CancelledError(kEnough);
        ++shown;
        if (globals.json) {
          std::printf(
              "%s\n",
              TraceToJson(prompt, trace).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
          return absl::OkStatus();
        }
        const std::string heading =
            absl::StrCat("prompt ", prompt.prompt_index(), " sample ", trace.key().sample_index(), "  ",
                         trace.finish_reason(), "  ", trace.completion_tokens(), " tokens");
        std::printf("%s%s\n", shown == 1 ? "" : "\n", Styled(heading, Style::kBold, terminal.color).c_str());
        const nlohmann::json messages =
            nlohmann::json::parse(prompt.messages_json(), nullptr, /*allow_exceptions=*/false);
        if (messages.is_array() && !messages.empty() && messages.back().is_object()) {
          const std::string question = messages.back().value("content", std::string());
          std::printf("%s\n", Styled(question, Style::kDim, terminal.color).c_str());
        }
        if (!trace.reasoning().empty()) std::printf("<think>\n%s\n</think>\n", trace.reasoning().c_str());
        std::printf("%s\n",
                    trace.error().empty() ? trace.text().c_str() : absl::StrCat("error: ", trace.error()).c_str());
        return absl::OkStatus();
      });
  if (!status.ok() && !(absl::IsCancelled(status) && absl::StrContains(status.message(), kEnough))) return Fail(status);
  return kExitDone;
}

int Import(const Globals& globals, const Arguments& arguments, SampleClient& store) {
  const auto imported = store.ImportJsonl(arguments.file, arguments.name);
  if (!imported.ok()) return Fail(imported.status());
  const std::string set = "import/" + arguments.name;
  if (globals.json) {
    PrintJson({{"set", set}, {"stored", imported->stored()}, {"already_present", imported->already_present()}});
  } else {
    std::printf("%s: %s rows stored, %s there already\n", set.c_str(), FormatCount(imported->stored()).c_str(),
                FormatCount(imported->already_present()).c_str());
  }
  return kExitDone;
}

int ExportSet(const Globals& globals, const Arguments& arguments, SampleClient& store) {
  const auto rows = store.ExportJsonl(arguments.set, arguments.file);
  if (!rows.ok()) return Fail(rows.status());
  if (globals.json) {
    PrintJson({{"set", arguments.set}, {"file", arguments.file}, {"rows", *rows}});
  } else {
    std::printf("%s: %s rows\n", arguments.file.c_str(), FormatCount(*rows).c_str());
  }
  return kExitDone;
}

int Verify(const Globals& globals, SampleClient& store) {
  const auto verified = store.Verify();
  if (!verified.ok()) return Fail(verified.status());
  const bool sound = verified->problems_size() == 0;
  if (globals.json) {
    nlohmann::json problems = nlohmann::json::array();
    for (const std::string& problem : verified->problems()) problems.push_back(problem);
    PrintJson({{"sound", sound}, {"records_checked", verified->records_checked()}, {"problems", std::move(problems)}});
  } else {
    for (const std::string& problem : verified->problems()) std::printf("%s\n", problem.c_str());
    std::printf("%s records checked, %s\n", FormatCount(verified->records_checked()).c_str(),
                sound ? "all sound" : absl::StrCat(verified->problems_size(), " problems").c_str());
  }
  return sound ? kExitDone : kExitFailed;
}

}  // namespace

void AddStore(CLI::App* app, Context* context) {
  CLI::App* verb = AddVerb(app, context, "store", "Look into the sample store, fill it, take out of it");
  verb->require_subcommand(1);
  auto arguments = std::make_shared<Arguments>();
  const auto add = [&](const std::string& name, const std::string& description, auto action) {
    CLI::App* sub = AddVerb(verb, context, name, description);
    sub->callback([context, arguments, action] {
      context->exit_code =
          WithStore(context->globals, [&](SampleClient& store) { return action(context->globals, *arguments, store); });
    });
    return sub;
  };
  add("stats", "Count what is stored",
      [](const Globals& globals, const Arguments&, SampleClient& store) { return Stats(globals, store); });
  add("ls", "List the sample sets",
      [](const Globals& globals, const Arguments&, SampleClient& store) { return ListSets(globals, store); });
  add("verify", "Read every record and check that all agree; exit code 1 when something does not",
      [](const Globals& globals, const Arguments&, SampleClient& store) { return Verify(globals, store); });

  CLI::App* cat = add("cat", "Print the traces of a set; with --json one object a line", Cat);
  cat->add_option("SET", arguments->set, "Sample set, e.g. JOB/teacher; `store ls` lists them")->required();
  cat->add_option("--limit", arguments->limit, "How many at most (default all)")->check(CLI::NonNegativeNumber);

  CLI::App* import = add("import", "Store the rows of a JSONL file of {\"messages\": [...]}", Import);
  import->add_option("FILE", arguments->file, "JSONL file")->required();
  import->add_option("--name", arguments->name, "The set becomes import/NAME")->required();

  CLI::App* export_set =
      add("export", "Write a set as JSONL of {\"messages\": [...]}; imported rows as they came", ExportSet);
  export_set->add_option("SET", arguments->set, "Sample set, e.g. JOB/teacher")->required();
  export_set->add_option("--output", arguments->file, "File to write")->required();
}

}  // namespace retort::cli
