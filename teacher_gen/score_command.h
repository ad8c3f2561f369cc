// `retort-teacher score`: JSONL of texts or token ids in, JSONL of log-probabilities out.
#pragma once

namespace retort {

// Exit code: 0; 1 when a line or the whole could not be done; 2 for wrong flags.
int ScoreCommand(int argc, char** argv);

}  // namespace retort
