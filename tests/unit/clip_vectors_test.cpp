// Losses of recipes/fastclip against recorded numbers, on K loopback ranks for every K the files name.
// TRIREME_CLIP_VECTORS names the folder; otherwise the project's own set (PyTorch autograd) is used.
#include "comm/local/loopback.h"
#include "framework/losses/contrastive.h"
#include "tests/max_difference.h"

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <mutex>

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme::fastclip {
namespace {

using nlohmann::json;

std::string folder() {
  if (const char* f = std::getenv("TRIREME_CLIP_VECTORS")) return f;
  return std::string(std::getenv("TRIREME_SOURCE") ? std::getenv("TRIREME_SOURCE") : ".") + "/tests/reference/clip";
}

const json& vectors() {
  static const json all = [] {
    std::ifstream in(folder() + "/vectors.json");
    if (!in) throw std::runtime_error("cannot read " + folder() + "/vectors.json");
    return json::parse(in);
  }();
  return all;
}

std::vector<double> flat(const json& j) {
  std::vector<double> v;
  if (j.is_array())
    for (const auto& x : j)
      for (const double y : flat(x)) v.push_back(y);
  else
    v.push_back(j.get<double>());
  return v;
}

at::Tensor rows(const json& j, std::int64_t first, std::int64_t n, at::ScalarType type) {
  const auto v = flat(j);
  const auto width = std::int64_t(v.size()) / std::int64_t(j.size());
  return at::tensor(v, at::kDouble).view({-1, width}).narrow(0, first, n).to(type).contiguous();
}

struct Case {
  std::string name;
  int workers;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const auto& [name, per_k] : vectors()["outputs"].items())
    for (const auto& [k, steps] : per_k.items()) all.push_back({name, std::stoi(k.substr(1))});
  return all;
}

// What each worker computed in one step.
struct Output {
  std::map<std::string, std::vector<double>> arrays;
};

class ClipVectors : public testing::TestWithParam<Case> {
 protected:
  void run(at::ScalarType type, double tolerance) {
    const auto& [name, k] = GetParam();
    const json& settings = vectors()["cases"][name];
    const std::string cls = settings["cls"];
    if (cls == "i" || cls == "s")
      GTEST_SKIP() << name << ": individual temperatures and reference models come with their recipe";
    const json& expected = vectors()["outputs"][name]["K" + std::to_string(k)];
    const std::int64_t b = vectors()["meta"]["B"].get<std::int64_t>() / k;
    std::vector<Output> outputs(expected.size());
    std::mutex mutex;
    run_loopback(k, [&](Communicator& comm) {
      NormalizerTable table(vectors()["meta"]["n"], at::TensorOptions().dtype(type));
      for (std::size_t step = 0; step < expected.size(); ++step) {
        const json& in = vectors()["inputs"][step];
        const std::int64_t first = b * comm.rank();
        const at::Tensor t = at::full({}, std::log(1 / settings["tau"][step].get<double>()), type);
        const at::Tensor image = rows(in["e1"], first, b, type), text = rows(in["e2"], first, b, type);
        LossResult r;
        double gamma = 0;
        if (cls == "o") {
          r = mini_batch_loss(comm, image, text, t);
        } else {
          gamma =
              gamma_at(settings.value("sched", "cosine"), settings["gmin"], settings["E"], settings["epochs"][step]);
          const auto ids = in["idx"].get<std::vector<std::int64_t>>();
          r = global_loss(comm, image, text, t, ids, gamma, table,
                          {settings.value("mt", false), settings["rho"], settings["eps"], false});
          table.write(ids, r.log_u, at::zeros({}, at::kFloat));
        }
        std::lock_guard lock(mutex);
        auto& a = outputs[step].arrays;
        const auto put = [&](const std::string& key, const at::Tensor& v, std::int64_t at, std::int64_t total) {
          auto& to = a[key];
          to.resize(total);
          const at::Tensor d = v.to(at::kDouble).contiguous();
          std::copy_n(d.const_data_ptr<double>(), d.numel(), to.begin() + at);
        };
        const std::int64_t n = image.numel();
        put("loss_per_worker", r.loss, comm.rank(), k);
        put("grad_logscale_per_worker", r.d_log_scale, comm.rank(), k);
        put("grad_e1_raw", r.d_image, n * comm.rank(), n * k);
        put("grad_e2_raw", r.d_text, n * comm.rank(), n * k);
        put("grad_e1_eff", r.d_image / k, n * comm.rank(), n * k);
        put("grad_e2_eff", r.d_text / k, n * comm.rank(), n * k);
        put("u1_after", table.image.exp(), 0, table.image.numel());
        put("u2_after", table.text.exp(), 0, table.text.numel());
        a["gamma"] = {gamma};
      }
    });
    for (std::size_t step = 0; step < expected.size(); ++step) {
      auto& a = outputs[step].arrays;
      double mean = 0;
      for (const double g : a["grad_logscale_per_worker"]) mean += g / k;
      a["grad_logscale_eff"] = {mean};
      for (const auto& [key, value] : expected[step].items()) {
        ASSERT_TRUE(a.contains(key)) << name << " K" << k << ": no array " << key;
        const auto want = flat(value);
        ASSERT_EQ(want.size(), a[key].size()) << key;
        double worst = 0;
        for (std::size_t i = 0; i < want.size(); ++i)
          worst = test::nan_max(worst, std::abs(a[key][i] - want[i]) / (1 + std::abs(want[i])));
        EXPECT_LE(worst, tolerance) << name << " K" << k << " step " << step << " " << key;
      }
    }
  }
};

TEST_P(ClipVectors, Float64) { run(at::kDouble, 1e-10); }
TEST_P(ClipVectors, Float32) { run(at::kFloat, 1e-5); }

// More rows than a tile has, on one rank and on two that share them unevenly with the tiles, against matrices that are
// written out.
TEST(Tiles, LossesOfManyRows) {
  const std::int64_t global = 1500, d = 7;
  at::manual_seed(9);
  const auto unit = [&] {
    const at::Tensor x = at::randn({global, d}, at::kDouble);
    return x / x.norm(2, {1}, true);
  };
  const at::Tensor image = unit(), text = unit(), t = at::full({}, 2.5, at::kDouble);
  const double s = std::exp(2.5), eps = 1e-14;
  const at::Tensor sim = at::mm(image, text.t()), diagonal = sim.diagonal();
  const at::Tensor off = 1 - at::eye(global, at::kDouble);
  // OpenCLIP's loss: softmax minus one on the diagonal, by rows and by columns.
  const at::Tensor dsim =
      (at::softmax(s * sim, 1) + at::softmax(s * sim, 0) - 2 * at::eye(global, at::kDouble)) * (s / (2.0 * global));
  const double mbcl =
      ((at::logsumexp(s * sim, {1}) + at::logsumexp(s * sim, {0}) - 2 * s * diagonal).mean() / 2.0).item<double>();
  // FastCLIP v3 at gamma = 1.
  const at::Tensor x = ((sim - diagonal.unsqueeze(1)) * s).exp() * off,
                   y = ((sim.t() - diagonal.unsqueeze(1)) * s).exp() * off;
  const at::Tensor u1 = x.sum(1) / double(global - 1), u2 = y.sum(1) / double(global - 1);
  const at::Tensor p = x / (u1 + eps).unsqueeze(1), q = y / (u2 + eps).unsqueeze(1);
  const at::Tensor r = (p.sum(1) + q.sum(1)).unsqueeze(1);
  const double c = 1 / (2.0 * global * (global - 1));
  const at::Tensor d_image = c * (at::mm(p + q.t(), text) - r * text),
                   d_text = c * (at::mm(q + p.t(), image) - r * image);
  std::vector<std::int64_t> ids(global);
  for (std::int64_t i = 0; i < global; ++i) ids[std::size_t(i)] = i;
  for (const int k : {1, 2}) {
    std::mutex mutex;
    double worst = 0, loss = 0;
    run_loopback(k, [&](Communicator& comm) {
      const std::int64_t b = global / k, first = b * comm.rank();
      const at::Tensor mine = image.narrow(0, first, b), its = text.narrow(0, first, b);
      const NormalizerTable table(global, at::TensorOptions().dtype(at::kDouble));
      const LossResult plain = mini_batch_loss(comm, mine, its, t);
      const LossResult v3 = global_loss(comm, mine, its, t, ids, 1, table, {true, 6.5, eps, false});
      const std::lock_guard lock(mutex);
      const auto compare = [&](const at::Tensor& got, const at::Tensor& want) {
        worst =
            test::nan_max(worst, ((got / k - want.narrow(0, first, b)).abs().max() / want.abs().max()).item<double>());
      };
      compare(plain.d_image, at::mm(dsim, text));
      compare(plain.d_text, at::mm(dsim.t(), image));
      compare(v3.d_image, d_image);
      compare(v3.d_text, d_text);
      worst = test::nan_max(worst, (v3.log_u[0].exp() / u1 - 1).abs().max().item<double>());
      loss += plain.loss.item<double>() / k;
    });
    EXPECT_LE(worst, 1e-11) << k << " ranks";
    EXPECT_NEAR(loss, mbcl, 1e-11) << k << " ranks";
  }
}

// A similarity of bf16 features would be wrong in its third digit: autocast of the model ends before the loss.
TEST(Tiles, AutocastDoesNotReachTheLoss) {
  at::manual_seed(2);
  const auto unit = [] {
    const at::Tensor x = at::randn({16, 8});
    return x / x.norm(2, {1}, true);
  };
  const at::Tensor image = unit(), text = unit(), t = at::full({}, 4.0, at::kFloat);
  run_loopback(1, [&](Communicator& comm) {
    const at::Tensor want = mini_batch_loss(comm, image, text, t).d_image;
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    const at::Tensor got = mini_batch_loss(comm, image, text, t).d_image;
    at::autocast::set_autocast_enabled(at::kCPU, false);
    EXPECT_TRUE(at::equal(got, want));
  });
}

INSTANTIATE_TEST_SUITE_P(All, ClipVectors, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name + "_K" + std::to_string(info.param.workers); });

}  // namespace
}  // namespace trireme::fastclip
