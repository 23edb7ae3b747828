// Libraries that a build may lack: a test that needs one says so in its first line, and is skipped without it.
#pragma once
#include "data/libraries.h"

#include <gtest/gtest.h>

#define TRIREME_NEEDS(...) \
  if (const auto lacking = trireme::missing_libraries({__VA_ARGS__}); !lacking.empty()) GTEST_SKIP() << lacking
