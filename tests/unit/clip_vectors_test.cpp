// Losses of recipes/fastclip against recorded numbers, on K loopback ranks for every K the files name.
// TRIREME_CLIP_VECTORS names the folder; otherwise the project's own set (PyTorch autograd) is used.
#include "comm/local/loopback.h"
#include "framework/losses/contrastive.h"
#include "tests/max_difference.h"

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <mutex>

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

INSTANTIATE_TEST_SUITE_P(All, ClipVectors, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name + "_K" + std::to_string(info.param.workers); });

}  // namespace
}  // namespace trireme::fastclip
