#include "common/plugin.h"

#include <dlfcn.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/str_join.h"

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

void* OpenPlugin(const std::string& library, const std::string& symbol, std::string& reasons) {
  std::vector<std::string> found;
  for (const std::string& path : PluginPaths(library)) {
    void* opened = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (opened == nullptr) {
      found.push_back(::dlerror());
      continue;
    }
    void* address = ::dlsym(opened, symbol.c_str());
    if (address != nullptr) return address;
    found.push_back(path + " lacks " + symbol);
  }
  reasons = absl::StrJoin(found, "; ");
  return nullptr;
}

}  // namespace retort
