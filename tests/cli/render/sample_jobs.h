// Jobs in several states, for what is made of them.
#pragma once

#include "retort/v1/job.pb.h"

namespace retort::cli {

v1::Job TrainingJob();
v1::Job WaitingJob();
v1::Job FailedJob();
v1::Job FinishedJob();

}  // namespace retort::cli
