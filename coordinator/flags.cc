#include "coordinator/flags.h"

#include <CLI/CLI.hpp>

#include "absl/strings/str_cat.h"
#include "common/version.h"

namespace retort {

absl::StatusOr<CoordinatorFlags> ParseCoordinatorFlags(int argc, const char* const* argv, const std::string& home) {
  CoordinatorFlags flags;
  flags.state_dir = absl::StrCat(home, "/.retort/coordinator");
  int64_t suspect_millis = absl::ToInt64Milliseconds(flags.options.suspect_after);
  int64_t lost_millis = absl::ToInt64Milliseconds(flags.options.lost_after);
  CLI::App app("Retort's coordinator: jobs, scheduling, rendezvous, sample store and artifact store.",
               "retort-coordinator");
  app.set_version_flag("--version", std::string(kVersion));
  app.add_option("--state-dir", flags.state_dir, "Folder that holds all of its state; one coordinator at a time")
      ->capture_default_str();
  app.add_option("--listen", flags.server.address, "HOST:PORT; port 0 takes a free one. Off loopback TLS is required")
      ->capture_default_str();
  app.add_option(
      "--token-file", flags.server.token_file,
      "File of mode 0600 with the token that callers show; made when missing (default: token beside --state-dir)");
  app.add_option("--tls-cert", flags.server.tls_cert, "The server's certificate, PEM");
  app.add_option("--tls-key", flags.server.tls_key, "The server's key, PEM");
  app.add_option("--tls-client-ca", flags.server.tls_client_ca,
                 "Callers with a certificate that it signed need no token, PEM");
  app.add_option("--address-file", flags.address_file, "Where to write the bound HOST:PORT");
  app.add_option("--suspect-after-ms", suspect_millis, "Silence after which nothing new is placed on a worker")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{50}, int64_t{3'600'000}));
  app.add_option("--lost-after-ms", lost_millis, "Silence after which a worker's tasks run elsewhere")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{100}, int64_t{86'400'000}));
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    flags.show_help = true;
    flags.help = app.help();
    return flags;
  } catch (const CLI::CallForVersion&) {
    flags.show_help = true;
    flags.help = absl::StrCat("retort-coordinator ", std::string(kVersion), "\n");
    return flags;
  } catch (const CLI::ParseError& error) {
    return absl::InvalidArgumentError(absl::StrCat(error.what(), "; see retort-coordinator --help"));
  }
  if (lost_millis < 2 * suspect_millis) {
    return absl::InvalidArgumentError("--lost-after-ms: must be at least twice --suspect-after-ms");
  }
  while (flags.state_dir.size() > 1 && flags.state_dir.back() == '/') flags.state_dir.pop_back();
  if (flags.state_dir.empty()) return absl::InvalidArgumentError("--state-dir: must not be empty");
  if (flags.server.token_file.empty() && flags.server.tls_client_ca.empty()) {
    const size_t slash = flags.state_dir.rfind('/');
    flags.server.token_file =
        slash == std::string::npos ? "token" : absl::StrCat(flags.state_dir.substr(0, slash + 1), "token");
  }
  flags.options.suspect_after = absl::Milliseconds(suspect_millis);
  flags.options.lost_after = absl::Milliseconds(lost_millis);
  return flags;
}

}  // namespace retort
