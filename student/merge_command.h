// retort-student merge: an adapter put into its base, without a job.
#pragma once

namespace retort {

// Returns the exit code: 0 done, 1 failed, 2 wrong usage.
int MergeCommand(int argc, char** argv);

}  // namespace retort
