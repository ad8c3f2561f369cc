// Plug-in libraries: what needs a GPU's libraries and is opened where they are there.
#pragma once

#include <string>
#include <vector>

namespace retort {

// Where `library` ("libretort_x.so") may lie, to be tried in turn: beside the program, where the build puts it, and
// where the dynamic linker looks.
std::vector<std::string> PluginPaths(const std::string& library);

// The address of `symbol` in the first of these that opens and has it; it stays open. Null where none does: `reasons`
// then says why, path by path.
void* OpenPlugin(const std::string& library, const std::string& symbol, std::string& reasons);

}  // namespace retort
