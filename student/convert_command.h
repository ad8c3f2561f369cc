// `retort-student convert`: a Hugging Face folder to a GGUF file, or back.
#pragma once

namespace retort {

// Exit code: 0; 1 when it could not be done; 2 for wrong arguments.
int ConvertCommand(int argc, char** argv);

}  // namespace retort
