// Trainings of the small FastCLIP on one machine's GPUs, through the program.
#pragma once
#include "comm/device.h"
#include "tests/gpu/blots.h"
#include "tests/max_difference.h"
#include "tests/needs.h"

#include <cmath>
#include <map>

#include <nlohmann/json.hpp>

namespace trireme::test {

inline std::map<int, double> losses(const fs::path& run) {
  std::map<int, double> found;
  std::ifstream in(run / "metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    const auto j = nlohmann::json::parse(line, nullptr, false);
    if (j.contains("loss") && j["loss"].is_number()) found[j["step"]] = j["loss"];
  }
  return found;
}

class Gpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!device_runtime()) GTEST_SKIP() << "built without CUDA";
    if (device_runtime()->count() == 0) GTEST_SKIP() << "no GPU";
    TRIREME_NEEDS("PCRE2");  // the tokenizer does
    prepare_blots(folder.path / "blots.h5");
    std::ofstream(folder.path / "blots.yaml") << blots_experiment;
  }
  // Empty: that number of ranks can use NCCL here.
  static std::string no_nccl(int ranks) {
    if (device_runtime()->nccl_version().empty()) return "no libnccl.so.2";
    if (ranks > device_runtime()->count() && !std::getenv("NCCL_MULTI_RANK_GPU_ENABLE"))
      return "NCCL wants a GPU a rank";
    return "";
  }
  Outcome train(const std::string& out, int ranks, Words more = {}, Words environment = {}) {
    Words words{"train", "blots.yaml", "--out", out, "--ranks", std::to_string(ranks)};
    words.insert(words.end(), more.begin(), more.end());
    return run_program(words, {folder.path, environment});
  }
  void expect_losses_of_one(const std::string& name, int ranks, const Words& more, const Words& environment = {}) {
    if (one.empty()) {
      const Outcome o = train("one", 1);
      ASSERT_EQ(o.code, 0) << o;
      one = losses(folder.path / "one");
      ASSERT_EQ(one.size(), 50u);
      EXPECT_LT(one[50], 0.9 * one[1]) << "it does not learn";
    }
    const Outcome o = train(name, ranks, more, environment);
    ASSERT_EQ(o.code, 0) << name << "\n" << o;
    double worst = 0;
    const auto many = losses(folder.path / name);
    ASSERT_EQ(many.size(), one.size());
    for (const auto& [step, loss] : one) worst = nan_max(worst, std::fabs(many.at(step) - loss) / std::fabs(loss));
    EXPECT_LE(worst, 1e-5) << name;
    std::printf("%-18s worst relative difference of a loss in 50 steps to 1 rank: %.1e\n", name.c_str(), worst);
  }

  TempFolder folder;
  std::map<int, double> one;
};

}  // namespace trireme::test
