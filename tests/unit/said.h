// What an error says, for tests.
#pragma once
#include "comm/error.h"

#include <functional>
#include <string>

#include <gtest/gtest.h>

namespace trireme::test {

inline std::string said(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "nothing";
}

}  // namespace trireme::test

#define EXPECT_SAYS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)
