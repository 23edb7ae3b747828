#include "recipes/sdit/teacache_fit.h"

#include "comm/error.h"
#include "data/file.h"
#include "framework/io/file_io.h"
#include "framework/sampler.h"
#include "recipes/sdit/caches.h"
#include "recipes/sdit/sparse.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme::sdit {
namespace {

double value_of(std::span<const double> polynomial, double x) {
  double value = 0;
  for (const double factor : polynomial) value = value * x + factor;
  return value;
}

// Runs every block and notes the modulated input.
class Watch final : public BlockCache {
 public:
  std::optional<BlockStreams> before_blocks(const BlockStreams&,
                                            const std::function<at::Tensor()>& modulated) override {
    now = modulated().to(at::kFloat);
    return {};
  }
  at::Tensor now;
};

double change(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().mean() / b.abs().mean()).item<double>();
}

// Method `teacache_fit`: samples densely and writes the fit over all pictures of the job so far.
class TeaCacheFitSampler final : public Sampler {
 public:
  void fields(Fields& f) override {
    f("file", file_, "where the fit goes, for teacache.fit");
    f("retained", retained_, "as teacache.retained, for the thresholds", {.min = 1});
  }
  void setup(SampleContext& context) override {
    if (context.comm().size() > 1)
      throw UsageError("teacache_fit", "one rank sees all changes of a picture", "ranks_per_picture=1");
  }
  void begin(Sampling& s, SampleContext& context) override {
    Sampler::begin(s, context);
    require_one_forward(s, "teacache_fit");
    if (s.prompts.size() > 1) throw UsageError("teacache_fit", "takes one picture at a time", "batch=1");
    if (s.prompts[0].index != std::ssize(pictures_))
      throw UsageError("teacache_fit", "another process drew some of the pictures, and their changes are not kept",
                       "draw all in one go: --fresh, one rank");
    pictures_.emplace_back();
    input_ = output_ = at::Tensor();
  }
  at::Tensor velocity(Sampling& s, SampleContext& context) override {
    Watch watch;
    const at::Tensor v = guided(context, s, s.x, s.sigma(), {.blocks = &watch});
    if (input_.defined()) {
      pictures_.back().input.push_back(change(watch.now, input_));
      pictures_.back().output.push_back(change(v, output_));
    }
    input_ = watch.now, output_ = v;
    return v;
  }
  bool may_save(const Sampling&) const override { return false; }
  nlohmann::json report() const override {
    const TeaCacheFit fit = fit_teacache(pictures_, retained_);
    write_fit(file_, fit);
    return {
        {"polynomial", fit.polynomial}, {"error", fit.error}, {"shares", fit.shares}, {"thresholds", fit.thresholds}};
  }

 private:
  std::string file_ = "teacache.json";
  std::int64_t retained_ = 1;
  std::vector<StepChanges> pictures_;
  at::Tensor input_, output_;
};

const Samplers::Entry registered("teacache_fit", [] { return std::make_unique<TeaCacheFitSampler>(); });

}  // namespace

std::int64_t steps_computed(const StepChanges& changes, std::span<const double> polynomial, double threshold,
                            std::int64_t retained) {
  const auto steps = std::int64_t(changes.input.size()) + 1;
  std::int64_t computed = 1;
  double sum = 0;
  for (std::int64_t step = 1; step < steps; ++step) {
    sum += value_of(polynomial, changes.input[std::size_t(step - 1)]);
    if (step >= retained && step + 1 < steps && sum < threshold) continue;
    sum = 0;
    ++computed;
  }
  return computed;
}

TeaCacheFit fit_teacache(std::span<const StepChanges> pictures, std::int64_t retained) {
  std::vector<double> x, y;
  for (const auto& p : pictures) {
    x.insert(x.end(), p.input.begin(), p.input.end());
    y.insert(y.end(), p.output.begin(), p.output.end());
  }
  if (x.size() < 6) throw UsageError("teacache_fit", "fewer than 6 changes between steps", "more steps or prompts");
  // Powers of x over its largest, or the columns would differ by many orders.
  const double largest = std::max(1e-12, *std::max_element(x.begin(), x.end()));
  const at::Tensor scaled = at::tensor(x, at::kDouble) / largest, wanted = at::tensor(y, at::kDouble).unsqueeze(1);
  std::vector<at::Tensor> powers;
  for (int power = 4; power >= 0; --power) powers.push_back(scaled.pow(power));
  const at::Tensor columns = at::stack(powers, 1);
  const at::Tensor factors = std::get<0>(at::linalg_lstsq(columns, wanted, {}, "gelsd"));
  TeaCacheFit fit;
  for (int i = 0; i < 5; ++i) fit.polynomial.push_back(factors[i][0].item<double>() / std::pow(largest, 4 - i));
  fit.error = (columns.matmul(factors) - wanted).square().mean().sqrt().item<double>();
  for (const double share : {0.67, 0.6, 0.5, 0.4, 1.0 / 3, 0.25}) {
    double low = 0, high = 1;
    const auto computed = [&](double threshold) {
      double ran = 0, all = 0;
      for (const auto& p : pictures) {
        ran += double(steps_computed(p, fit.polynomial, threshold, retained));
        all += double(p.input.size() + 1);
      }
      return ran / all;
    };
    while (computed(high) > share && high < 1e6) high *= 2;
    for (int i = 0; i < 50; ++i) (computed((low + high) / 2) > share ? low : high) = (low + high) / 2;
    fit.shares.push_back(share);
    fit.thresholds.push_back(high);
  }
  return fit;
}

double threshold_of(const TeaCacheFit& fit, double share) {
  std::string known;
  for (std::size_t i = 0; i < fit.shares.size(); ++i) {
    if (std::fabs(fit.shares[i] - share) <= 0.02) return fit.thresholds[i];
    known += (i ? ", " : "") + std::to_string(fit.shares[i]).substr(0, 4);
  }
  throw UsageError("teacache.share", "the fit has no threshold for " + std::to_string(share), "one of " + known);
}

void write_fit(const std::string& path, const TeaCacheFit& fit) {
  nlohmann::json thresholds = nlohmann::json::array();
  for (std::size_t i = 0; i < fit.shares.size(); ++i) thresholds.push_back({fit.shares[i], fit.thresholds[i]});
  const nlohmann::json json = {{"polynomial", fit.polynomial}, {"error", fit.error}, {"thresholds", thresholds}};
  replace_durably(system_io(), path, json.dump(1) + "\n");
}

TeaCacheFit read_fit(const std::string& path) {
  if (!std::filesystem::exists(path))
    throw DataError(path, "is not there", "method teacache_fit makes it: trireme sample recipes/sdit/fit.yaml");
  const auto bytes = read_file(path, 1 << 20);
  const auto json = nlohmann::json::parse(bytes.begin(), bytes.end(), nullptr, false);
  TeaCacheFit fit;
  const auto numbers = [](const nlohmann::json& list) {
    return list.is_array() && std::all_of(list.begin(), list.end(), [](const auto& v) { return v.is_number(); });
  };
  if (json.is_object() && json.contains("polynomial") && numbers(json["polynomial"]))
    fit.polynomial = json["polynomial"].get<std::vector<double>>();
  if (json.is_object() && json.contains("thresholds") && json["thresholds"].is_array())
    for (const auto& pair : json["thresholds"])
      if (numbers(pair) && pair.size() == 2) fit.shares.push_back(pair[0]), fit.thresholds.push_back(pair[1]);
  if (fit.polynomial.empty()) throw DataError(path, "holds no polynomial", "make it by method teacache_fit");
  return fit;
}

}  // namespace trireme::sdit
