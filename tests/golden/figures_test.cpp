// Figures that are told of a run: FLOPs of recipes against torch's counter (tests/reference/flops.py), the share of a
// peak, and what benchmarks make of their times.
#include "bench/collectives.h"
#include "bench/judge.h"
#include "bench/own_run.h"
#include "comm/local/loopback.h"
#include "framework/experiment.h"
#include "framework/metrics/utilisation.h"
#include "framework/models/clip.h"
#include "tests/unit/reference_files.h"

#include <cmath>
#include <fstream>

#include <gtest/gtest.h>

namespace trireme {
namespace {

using nlohmann::json;

json counted() { return json::parse(std::ifstream(test::reference_file("flops.json"))); }

double flops_of(const std::string& yaml) { return Experiment(Config::parse(yaml, "test")).recipe->flops_per_sample(); }

TEST(Flops, OfTheMlpAreTorchsCount) {
  for (const auto& c : counted().at("mlp"))
    EXPECT_EQ(flops_of("recipe: mlp\nsizes: " + c["sizes"].dump()), c["flops"]) << c;
}

TEST(Flops, OfTheTransformerAreTorchsCount) {
  for (const auto& c : counted().at("transformer")) {
    std::string model = "recipe: transformer\nmodel: {";
    for (const char* key : {"layers", "width", "heads", "vocab", "context"})
      model += std::string(key) + ": " + c[key].dump() + ", ";
    EXPECT_EQ(flops_of(model + "}"), c["flops"]) << c;
  }
}

// The counter leaves out the gradient of the pixels, the formula takes every product three times.
TEST(Flops, OfClipAreTorchsCount) {
  nn::Parameters unset = nn::Parameters::unset(at::kFloat, at::kMeta);
  nn::ClipConfig vit, resnet;
  vit.name = "ViT-B-32", vit.embed_dim = 512, vit.patch_size = 32;
  vit.vision_width = 768, vit.vision_layers = 12, vit.vision_heads = 12;
  resnet.name = "RN50", resnet.embed_dim = 1024;
  resnet.vision_width = 64, resnet.vision_heads = 32, resnet.resnet_layers = {3, 4, 6, 3};
  for (nn::ClipConfig* c : {&vit, &resnet}) {
    c->image_size = 224, c->context = 77, c->vocab = 49408, c->text_width = 512, c->text_layers = 12, c->text_heads = 8;
    const nn::Clip clip(*c, 0, unset);
    for (const auto& counted : counted().at("clip"))
      if (counted["model"] == c->name) {
        EXPECT_NEAR(clip.training_flops_per_pair(77) / counted["flops"].get<double>(), 1, 0.02) << c->name;
      }
  }
}

// recipes/transformer: losses do not depend on ranks, buckets or micro-batches, and fall.
TEST(Transformer, RanksDoNotChangeTheResult) {
  std::vector<double> one;
  for (const auto& [ranks, more] : {std::pair{1, ""}, {2, "bucket_mib: 0.01\n"}, {4, ""}, {2, "accumulate: 3\n"}}) {
    std::vector<double> losses;
    run_loopback(ranks, [&, ranks = ranks, more = more](Communicator& world) {
      Experiment run(Config::parse(std::string("recipe: transformer\nsteps: 100\nbatch_size: 12\nprecision: f64\n"
                                               "device: cpu\nthreads: 1\nsamples: 300\nfirst_bucket_mib: 0.01\n"
                                               "optimizer: {lr: 1.0e-2}\n"
                                               "model: {layers: 2, width: 16, heads: 2, vocab: 8, context: 6}\n") +
                                       more,
                                   "test"));
      bench::OwnSession session(run, world, 10);
      for (int step = 0; step < 10; ++step) {
        const double loss = session.step();
        if (world.rank() == 0) losses.push_back(loss);
      }
    });
    if (one.empty()) one = losses;
    EXPECT_NEAR(one[0], std::log(8), 0.05);
    EXPECT_LT(one.back(), one[0] - 0.05);
    for (std::size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(losses[i], one[i], 1e-12 * one[i]) << ranks << more;
  }
}

TEST(Utilisation, IsAShareOfTheDataSheetsPeak) {
  EXPECT_EQ(data_sheet_tflops("NVIDIA H100 80GB HBM3", "bf16"), 989.4);
  EXPECT_EQ(data_sheet_tflops("NVIDIA H100 80GB HBM3", "f32"), 66.9);
  EXPECT_EQ(data_sheet_tflops("NVIDIA H100 PCIe", "fp16"), 756);
  EXPECT_EQ(data_sheet_tflops("NVIDIA H200", "bf16"), 989.4);
  EXPECT_EQ(data_sheet_tflops("NVIDIA H200 NVL", "bf16"), 835);
  EXPECT_EQ(data_sheet_tflops("NVIDIA A100-SXM4-80GB", "f64"), 19.5);
  EXPECT_EQ(data_sheet_tflops("NVIDIA L4", "bf16"), 121);
  EXPECT_EQ(data_sheet_tflops("NVIDIA L40S", "bf16"), 362);
  EXPECT_EQ(data_sheet_tflops("NVIDIA GH200 480GB", "bf16"), 989.4);
  for (const char* other : {"", "NVIDIA RTX A4000", "NVIDIA RTX A1000 Laptop GPU", "NVIDIA A10G", "Tesla T4"})
    EXPECT_EQ(data_sheet_tflops(other, "f32"), 0) << other;
  const Utilisation u = utilisation(400e12, 500, 2, 800);
  EXPECT_DOUBLE_EQ(u.tflops, 400);
  EXPECT_DOUBLE_EQ(u.mfu, 0.5);
  EXPECT_TRUE(std::isnan(utilisation(1, 1, 1, 0).mfu));
}

TEST(Judge, ARatioHasItsInterval) {
  const bench::Ratio r = bench::ratio_of({2, 4, 3}, {1, 1, 1});
  EXPECT_DOUBLE_EQ(r.mean, 3);
  EXPECT_NEAR(r.high - r.mean, 4.303 / std::sqrt(3.0), 1e-9);
  EXPECT_NEAR(r.mean - r.low, 4.303 / std::sqrt(3.0), 1e-9);
  EXPECT_EQ(bench::ratio_of({2}, {1}).low, 2);
}

TEST(Judge, ALossIsHeldAgainstItsOwnSide) {
  json rows = json::array();
  for (const auto& [arm, seed, loss] : {std::tuple{"trireme none", 1, 1.0},
                                        {"trireme none", 2, 1.1},
                                        {"trireme int8", 1, 1.05},
                                        {"ddp none", 1, 2.0},
                                        {"ddp bf16", 1, 2.1}})
    rows.push_back({{"arm", arm}, {"seed", seed}, {"last_loss", loss}});
  rows.push_back({{"arm", "ddp x"}, {"seed", 1}, {"skipped", "why"}});
  const json judged = bench::judged(rows);
  EXPECT_DOUBLE_EQ(judged[2]["against_none"], 1.05);
  EXPECT_DOUBLE_EQ(judged[4]["against_none"], 1.05);
  EXPECT_NEAR(judged[2]["allowed"], 1 + 2 * std::sqrt(0.005) / 1.05, 1e-9);
  EXPECT_FALSE(judged[5].contains("allowed"));
}

// The check of bench comm finds one wrong element of any operation, and none where all is right.
TEST(Collectives, AWrongElementIsSeen) {
  run_loopback(3, [](Communicator& world) {
    for (const auto& op : bench::collectives) {
      bench::Exchange x = bench::exchange_of(op, 3 * 40 * sizeof(float), world.size());
      std::vector<float> in(x.in_count), out(x.out_count);
      x.in = in.data(), x.out = out.data();
      bench::fill(x, world.rank());
      for (int call = 0; call < 2; ++call) bench::start(world, x, {}).wait();
      if (op == "barrier") continue;
      EXPECT_EQ(bench::count_wrong(x, 2, world), 0) << op;
      out[7] = std::nextafter(out[7], 1.f) * 1.001f;
      EXPECT_EQ(bench::count_wrong(x, 2, world), 1) << op;
      EXPECT_EQ(bench::count_wrong(x, 2, world, 5), 0) << op;
    }
  });
}

}  // namespace
}  // namespace trireme
