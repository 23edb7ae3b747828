// Losses of recipes/fastclip against recorded numbers, on K loopback ranks for every K the files name.
// TRIREME_CLIP_VECTORS names the folder; otherwise the project's own set (PyTorch autograd) is used.
#include "comm/local/loopback.h"
#include "framework/losses/contrastive.h"
#include "tests/max_difference.h"

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <limits>
#include <mutex>
#include <optional>

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

// MKL rounds by the kind of CPU: in these tests in one way on all. It reads this at its first product.
const bool products_alike = ::setenv("MKL_CBWR", "COMPATIBLE", 0) == 0;

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

at::Tensor test_rows(const json& j, std::int64_t first, std::int64_t n, at::ScalarType type) {
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

using Strings = std::vector<std::string_view>;

// One worker's way through the steps of a case.
class Worker {
 public:
  Worker(Communicator& comm, const json& settings, at::ScalarType type, bool sharded)
      : comm_(comm), s_(settings), type_(type), cls_(settings["cls"]) {
    const bool individual = cls_ == "i";
    std::vector<double> initial{-std::numeric_limits<double>::infinity()};
    if (individual) initial.insert(initial.end(), {s_["tau_init"].get<double>(), 0, 0, 0});
    table_.emplace(vectors()["meta"]["n"], initial, at::TensorOptions().dtype(type), comm, sharded);
  }

  LossResult step(std::size_t i, Reduction reduction) {
    const json& in = vectors()["inputs"][i];
    const auto ids = in["idx"].get<std::vector<std::int64_t>>();
    const std::int64_t b = std::int64_t(ids.size()) / comm_.size(), first = b * comm_.rank();
    Rows rows{matrix(in["e1"], first, b), matrix(in["e2"], first, b)};
    if (s_.value("ref", false) || s_.value("dist", false))
      rows.reference_image = matrix(in["r1"], first, b), rows.reference_text = matrix(in["r2"], first, b);
    if (s_.value("mask", false)) rows.captions = at::tensor(in["captions"].get<std::vector<std::int64_t>>(), at::kLong);
    const at::Tensor t = at::full({}, cls_ == "i" ? 0 : std::log(1 / s_["tau"][i].get<double>()), type_);
    if (cls_ == "o") return mini_batch_loss(comm_, rows, t, reduction);
    if (cls_ == "x") return siglip_loss(comm_, rows, t, at::full({}, s_["bias"].get<double>(), type_), reduction);
    const std::int64_t epoch = s_["epochs"][i];
    gamma = gamma_at(s_.value("sched", "cosine"), s_.value("gmin", 1.0), s_.value("E", 1), epoch);
    Estimator estimator{s_.value("scent", false) ? Estimator::scent : Estimator::moving_average,
                        cls_ == "s" ? Estimator::log : Estimator::linear, s_.value("const_gamma", 10.0)};
    const at::Tensor old = table_->read(comm_, ids);
    LossResult r =
        cls_ == "i" ? individual(rows, old, epoch, estimator, reduction) : global(rows, t, old, estimator, reduction);
    table_->write(ids, r.entries, at::zeros({}, at::kFloat));
    return r;
  }

  // The tables as the vectors have them: [n] of each side and column.
  void tables(const std::function<void(const std::string&, const at::Tensor&, std::int64_t first)>& put) const {
    const Strings names{"u", "tau", "bound", "m_grad_tau", "v_grad_tau"};
    for (int side = 0; side < 2; ++side)
      for (std::int64_t c = 0; c < table_->values().size(1); ++c) {
        at::Tensor column = table_->values()[side][c];
        if (c == 0) column = cls_ == "s" ? at::where(at::isinf(column), at::zeros_like(column), column) : column.exp();
        put(std::string(names[std::size_t(c)]) + std::to_string(side + 1) + "_after", column, table_->first());
      }
  }

  double gamma = 0;
  at::Tensor contrastive, distilled;  // parts of the loss

 private:
  at::Tensor matrix(const json& j, std::int64_t first, std::int64_t b) const { return test_rows(j, first, b, type_); }

  LossResult individual(const Rows& rows, const at::Tensor& old, std::int64_t epoch, const Estimator& estimator,
                        Reduction reduction) {
    IndividualLossOptions o;
    o.rho = s_["rho"], o.eps = s_["eps"], o.lr_tau = s_["lr_tau"];
    o.beta1 = s_["b1"], o.beta2 = s_["b2"], o.adam_eps = s_["eps_tau"];
    o.adam_sqrt = s_.value("adam_sqrt", true), o.multiply_tau = s_.value("tau_weight", "repo") == "paper";
    o.estimator = estimator, o.reduction = reduction;
    return individual_loss(comm_, rows, old, gamma, epoch, o);
  }

  LossResult global(Rows rows, const at::Tensor& t, const at::Tensor& old, const Estimator& estimator,
                    Reduction reduction) {
    GlobalLossOptions o;
    o.multiply_tau = s_.value("mt", false), o.rho = s_.value("rho", 0.0), o.eps = s_["eps"];
    o.exact_tau_gradient = s_.value("tau_grad", "repo") == "paper";
    o.estimator = estimator, o.reduction = reduction;
    Rows shifted = rows;
    if (!s_.value("ref", false)) shifted.reference_image = shifted.reference_text = at::Tensor();
    const at::Tensor weight = at::full({}, s_.value("lw", 1.0), type_);
    LossResult r = global_loss(comm_, shifted, t, old, gamma, o);
    contrastive = r.loss * weight;
    if (!s_.value("dist", false)) return combined(r, weight, {}, weight);
    const at::Tensor dw =
        at::full({}, s_["dw"].get<double>(), type_) * (o.multiply_tau ? (-t).exp() : at::ones({}, type_));
    const LossResult d = distillation_loss(comm_, rows, t, s_["tscale"], reduction);
    distilled = d.loss * dw;
    return combined(r, weight, d, dw);
  }

  Communicator& comm_;
  const json& s_;
  const at::ScalarType type_;
  const std::string cls_;
  std::optional<NormalizerTable> table_;
};

class ClipVectors : public testing::TestWithParam<Case> {
 protected:
  void run(at::ScalarType type, double tolerance, Reduction reduction = Reduction::scalars) {
    const auto& [name, k] = GetParam();
    const json& settings = vectors()["cases"][name];
    const json& expected = vectors()["outputs"][name]["K" + std::to_string(k)];
    if (settings.value("scent", false) && type == at::kDouble) tolerance = std::max(tolerance, 1e-9);
    const std::int64_t n = vectors()["meta"]["n"];
    std::vector<Output> outputs(expected.size());
    std::mutex mutex;
    run_loopback(k, [&](Communicator& comm) {
      // One reduction with each kind of table.
      Worker worker(comm, settings, type, reduction == Reduction::scalars);
      for (std::size_t step = 0; step < expected.size(); ++step) {
        const LossResult r = worker.step(step, reduction);
        const std::lock_guard lock(mutex);
        auto& a = outputs[step].arrays;
        const auto put = [&](const std::string& key, const at::Tensor& v, std::int64_t at, std::int64_t total) {
          if (!v.defined()) return;
          auto& to = a[key];
          to.resize(std::size_t(total));
          const at::Tensor d = v.to(at::kDouble).contiguous();
          std::copy_n(d.const_data_ptr<double>(), d.numel(), to.begin() + at);
        };
        const std::int64_t values = r.d_image.numel();
        put("loss_per_worker", r.loss, comm.rank(), k);
        put("part_contrastive_loss_per_worker", worker.contrastive, comm.rank(), k);
        put("part_distill_loss_per_worker", worker.distilled, comm.rank(), k);
        put("grad_logscale_per_worker", r.d_log_scale, comm.rank(), k);
        put("grad_bias_per_worker", r.d_bias, comm.rank(), k);
        put("grad_e1_raw", r.d_image, values * comm.rank(), values * k);
        put("grad_e2_raw", r.d_text, values * comm.rank(), values * k);
        put("grad_e1_eff", r.d_image / k, values * comm.rank(), values * k);
        put("grad_e2_eff", r.d_text / k, values * comm.rank(), values * k);
        worker.tables([&](const std::string& key, const at::Tensor& v, std::int64_t first) { put(key, v, first, n); });
        a["gamma"] = {settings.contains("const_gamma") ? settings["const_gamma"].get<double>() : worker.gamma};
      }
    });
    for (std::size_t step = 0; step < expected.size(); ++step)
      compare(expected[step], outputs[step].arrays, step, tolerance, reduction);
  }

 private:
  static void compare(const json& expected, std::map<std::string, std::vector<double>>& a, std::size_t step,
                      double tolerance, Reduction reduction) {
    const auto& [name, k] = GetParam();
    if (a.contains("grad_logscale_per_worker")) {
      double mean = 0;
      for (const double g : a["grad_logscale_per_worker"]) mean += g / k;
      a["grad_logscale_eff"] = {mean};
    }
    for (const auto& [key, value] : expected.items()) {
      // What is sent instead of recovered divides a loss differently among the workers.
      if (reduction == Reduction::reduce_scatter && key.ends_with("_per_worker")) continue;
      ASSERT_TRUE(a.contains(key)) << name << " K" << k << ": no array " << key;
      const auto want = flat(value);
      ASSERT_EQ(want.size(), a[key].size()) << key;
      double worst = 0;
      for (std::size_t i = 0; i < want.size(); ++i)
        worst = test::nan_max(worst, std::abs(a[key][i] - want[i]) / (1 + std::abs(want[i])));
      EXPECT_LE(worst, tolerance) << name << " K" << k << " step " << step << " " << key;
    }
  }
};

TEST_P(ClipVectors, Float64) { run(at::kDouble, 1e-10); }
TEST_P(ClipVectors, Float32) { run(at::kFloat, 1e-5); }
// The other way of reducing gives the same gradients and tables; these are whole on each rank.
TEST_P(ClipVectors, ReduceScatter) { run(at::kDouble, 1e-10, Reduction::reduce_scatter); }

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
  for (const int k : {1, 2}) {
    std::mutex mutex;
    double worst = 0, loss = 0;
    run_loopback(k, [&](Communicator& comm) {
      const std::int64_t b = global / k, first = b * comm.rank();
      const at::Tensor mine = image.narrow(0, first, b), its = text.narrow(0, first, b);
      const at::Tensor old = at::full({2, 1, b}, -std::numeric_limits<double>::infinity(), at::kDouble);
      const LossResult plain = mini_batch_loss(comm, {mine, its}, t);
      const LossResult v3 = global_loss(comm, {mine, its}, t, old, 1, {true, 6.5, eps});
      const std::lock_guard lock(mutex);
      const auto compare = [&](const at::Tensor& got, const at::Tensor& want) {
        worst =
            test::nan_max(worst, ((got / k - want.narrow(0, first, b)).abs().max() / want.abs().max()).item<double>());
      };
      compare(plain.d_image, at::mm(dsim, text));
      compare(plain.d_text, at::mm(dsim.t(), image));
      compare(v3.d_image, d_image);
      compare(v3.d_text, d_text);
      worst = test::nan_max(worst, (v3.entries[0][0].exp() / u1 - 1).abs().max().item<double>());
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
    const at::Tensor want = mini_batch_loss(comm, {image, text}, t).d_image;
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    const at::Tensor got = mini_batch_loss(comm, {image, text}, t).d_image;
    at::autocast::set_autocast_enabled(at::kCPU, false);
    EXPECT_TRUE(at::equal(got, want));
  });
}

INSTANTIATE_TEST_SUITE_P(All, ClipVectors, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name + "_K" + std::to_string(info.param.workers); });

}  // namespace
}  // namespace trireme::fastclip
