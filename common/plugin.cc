#include "common/plugin.h"

#include <filesystem>
#include <system_error>

namespace retort {

std::vector<std::string> PluginPaths(const std::string& library) {
  std::vector<std::string> paths;
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (!error) {
    const std::filesystem::path folder = program.parent_path();
    paths.push_back((folder / library).string());
    paths.push_back((folder.parent_path() / "lib" / library).string());
  }
  paths.push_back(library);
  return paths;
}

}  // namespace retort
