#include "trainers/straggler.h"

#include <random>

#include <gtest/gtest.h>

namespace trireme {
namespace {

TEST(Straggler, TheMedianOfTwoIsTheFaster) {
  EXPECT_EQ(StragglerReport::median(std::vector<double>{5, 1}), 1);
  EXPECT_EQ(StragglerReport::median(std::vector<double>{5, 1, 2}), 2);
  EXPECT_EQ(StragglerReport::median(std::vector<double>{5, 1, 2, 9}), 2);
}

TEST(Straggler, IsNamedOnceWhenItStaysSlow) {
  StragglerReport report(3);
  const std::vector<double> slow{100, 180, 110}, even{100, 120, 110};
  EXPECT_TRUE(report.look(slow, 5).empty());
  EXPECT_TRUE(report.look(slow, 5).empty());
  EXPECT_EQ(report.look(slow, 5), std::vector<int>{1});
  EXPECT_TRUE(report.look(slow, 5).empty()) << "told already";
  EXPECT_TRUE(report.look(even, 5).empty());
  for (int line = 0; line < 2; ++line) EXPECT_TRUE(report.look(slow, 5).empty());
  EXPECT_EQ(report.look(slow, 5), std::vector<int>{1}) << "slow again";
}

TEST(Straggler, AFewStepsAreNotEnough) {
  StragglerReport report(2);
  const std::vector<double> slow{90, 10};
  for (int line = 1; line < 10; ++line) EXPECT_TRUE(report.look(slow, 1).empty()) << line;
  EXPECT_EQ(report.look(slow, 1), std::vector<int>{0});
}

TEST(Straggler, ShortStepsMustStaySlowForAWhile) {
  StragglerReport report(2);
  const std::vector<double> slow{1, 4};
  for (int line = 1; line < 125; ++line) EXPECT_TRUE(report.look(slow, 1).empty()) << line;
  EXPECT_EQ(report.look(slow, 1), std::vector<int>{1});
}

// Single steps three times as long as the others, one in ten: noise, not a slow rank.
TEST(Straggler, NoFalseAlarmInNoise) {
  std::mt19937 random(7);
  StragglerReport report(4);
  for (int line = 0; line < 1000; ++line) {
    std::vector<double> ms;
    for (int r = 0; r < 4; ++r) ms.push_back(10 + double(random() % 300) / 100 + (random() % 10 == 0 ? 20 : 0));
    EXPECT_TRUE(report.look(ms, 1).empty()) << line;
  }
}

}  // namespace
}  // namespace trireme
