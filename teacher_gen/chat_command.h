// `chat`: a conversation with a model on the terminal.
#pragma once

namespace retort {

// argv[0] is the verb. Returns the exit code: 0 when the conversation was ended, 1 on an error, 2 on wrong flags.
int ChatCommand(int argc, char** argv);

}  // namespace retort
