#include "trainers/step_report.h"

#include "comm/call_site.h"
#include "framework/device_info.h"
#include "framework/metrics/trace.h"
#include "framework/metrics/utilisation.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <utility>

#include <sys/resource.h>

namespace trireme {
namespace {

double peak_memory_gib() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return double(usage.ru_maxrss) / 1048576;
}

std::string format(double v) {
  char text[64];
  std::snprintf(text, sizeof text, "%.6g", v);
  return text;
}

}  // namespace

StepReport::StepReport(const TrainConfig& config, Session& session, Traced& world, double flops_per_sample)
    : config_(config),
      session_(session),
      world_(world),
      stragglers_(world.size()),
      flops_(flops_per_sample * double(config.batch_size)),
      peak_tflops_(config.peak_tflops > 0
                       ? config.peak_tflops
                       : data_sheet_tflops(device_name(session.context().device()), config.precision)) {}

void StepReport::begin_step() {
  begin_ = Trace::now_ns();
  blocked_before_ = world_.recorder()->blocked_ns();
}

void StepReport::loaded() { loaded_ = Trace::now_ns(); }

void StepReport::add_step() {
  const auto end = Trace::now_ns();
  sums_["step_ms"] += double(end - begin_) * 1e-6;
  sums_["data_ms"] += double(loaded_ - begin_) * 1e-6;
  const double blocked = double(std::int64_t(world_.recorder()->blocked_ns() - blocked_before_)) * 1e-6;
  sums_["own_ms"] += std::max(0.0, double(end - begin_) * 1e-6 - std::max(0.0, blocked));
  ++steps_;
}

Record StepReport::record(std::int64_t step, double loss) {
  const StepTimes t = session_.take_times();
  if (std::isfinite(t.data)) sums_["data_ms"] = t.data;  // a GPU's: the host runs ahead, and waits for its memory
  sums_["forward_ms"] = t.forward;
  sums_["backward_ms"] = t.backward;
  sums_["comm_exposed_ms"] = t.exposed;
  sums_["optimizer_ms"] = t.optimizer;
  if (t.replayed > 0) sums_["replayed_ms"] = t.replayed;
  Record r;
  r.step = step;
  gather_times(r);
  r.values["samples_per_s"] = 1e3 * double(config_.batch_size) / r.values["step_ms"];
  r.values["loss"] = loss;
  r.values["lr"] = session_.context().now.lr;
  r.values["epoch"] = double(session_.context().now.epoch);
  r.values["gradient_norm"] = session_.gradient_norm();
  const at::Device device = session_.context().device();
  r.values["memory_gib"] = device.is_cpu() ? peak_memory_gib() : peak_device_memory_gib(device);
  const auto [sent, uncompressed] = bytes_since_last_log();
  r.values["bytes_sent"] = sent / double(steps_);
  r.values["bytes_uncompressed"] = uncompressed / double(steps_);
  if (flops_ > 0) {
    const Utilisation u = utilisation(flops_, r.values["step_ms"], world_.size(), peak_tflops_);
    r.values["tflops"] = u.tflops;
    r.values["mfu"] = u.mfu;
  }
  for (const auto& [key, value] : session_.take_logged()) r.values[key] = value;
  sums_.clear();
  steps_ = 0;
  return r;
}

// Mean times a step of all ranks: their mean, least and largest; who is slow is named.
void StepReport::gather_times(Record& r) {
  const CallSite here("loop: times of all ranks");
  const std::size_t n = std::size_t(world_.size()), width = sums_.size();
  std::vector<double> mine, all(n * width);
  for (const auto& [key, sum] : sums_) mine.push_back(sum / double(steps_));
  session_.context()
      .comm("control")
      .all_gather({mine.data(), width, DType::f64}, {all.data(), all.size(), DType::f64})
      .wait();
  std::size_t k = 0;
  for (const auto& [key, unused] : sums_) {
    std::vector<double> of_ranks;
    for (std::size_t rank = 0; rank < n; ++rank) of_ranks.push_back(all[rank * width + k]);
    ++k;
    r.values[key] = std::accumulate(of_ranks.begin(), of_ranks.end(), 0.0) / double(n);
    if (n == 1) continue;
    const auto [least, most] = std::minmax_element(of_ranks.begin(), of_ranks.end());
    r.values[key + "_min"] = *least;
    r.values[key + "_max"] = *most;
    if (key == "own_ms") name_stragglers(r, of_ranks);
  }
}

void StepReport::name_stragglers(Record& r, const std::vector<double>& own_ms) {
  for (const int rank : stragglers_.look(own_ms, steps_)) {
    session_.context().message("rank " + std::to_string(rank) + " is slow: its own work takes " +
                               format(own_ms[std::size_t(rank)]) + " ms a step, that of the median rank " +
                               format(StragglerReport::median(own_ms)) + " ms; the others wait for it");
    r.values["straggler"] = rank;
  }
}

// Sent, and what it would have been without compression.
std::pair<double, double> StepReport::bytes_since_last_log() {
  double gradients = 0, others = 0;
  for (const auto& name : session_.communicators())
    (name == "grad" ? gradients : others) += double(session_.stats(name).bytes);
  const double sent = gradients + others - std::exchange(bytes_logged_, gradients + others);
  const double since = others - std::exchange(others_logged_, others);
  return {sent, since + double(session_.plain_bytes()) * double(steps_) + session_.take_spared()};
}

}  // namespace trireme
