// Of tests that ask for a GPU: CUDA must be open before anything asks for it.
#include <gtest/gtest.h>

#include "model/device.h"

int main(int argc, char** argv) {
  retort::OpenCudaIfPresent();
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
