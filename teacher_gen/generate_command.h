// `retort-teacher generate`: JSONL of prompts in, JSONL of what the model writes out.
#pragma once

namespace retort {

// Exit code: 0; 1 when a line or the whole could not be done; 2 for wrong flags.
int GenerateCommand(int argc, char** argv);

}  // namespace retort
