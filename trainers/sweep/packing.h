// Which jobs run at a time: the memory that they take, admission, and what comes in when one leaves (ALTO,
// section 7.1). Torch-free.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace trireme::sweep {

// What a job adds to a pass.
struct Load {
  std::string job;
  std::int64_t batch_size = 0;
  std::int64_t tokens = 0;      // of its longest batch: batch size times the longest sample, twice that for pairs
  std::int64_t parameters = 0;  // of its adapter
};

// Bytes = fixed + per_token * tokens + 18 * adapter parameters (f32 master, gradient and two moments, and a copy of two
// bytes in which the pass computes), `copies` times: beside whole
// adapters a pipeline's ranks hold slices of all.
struct MemoryModel {
  double fixed = 0, per_token = 0, copies = 1;
  static constexpr double adapter_bytes = 18;
  double bytes(std::span<const Load> jobs) const;
};

// A synthetic training step of some jobs, on a rank (ALTO, A.3).
struct Profiled {
  std::int64_t tokens = 0, parameters = 0;
  double bytes = 0;  // the most that was reserved
  double seconds = 0;
};
// Least squares over fixed and per_token, once the adapters' part, which is known, is taken off. At least two different
// numbers of tokens. Throws Error (bug).
MemoryModel fit_memory(std::span<const Profiled> profiles);

struct MemoryLimit {
  MemoryModel model;
  double bytes = 0;        // margin times capacity
  std::int64_t slots = 0;  // jobs at a time
  bool allows(std::span<const Load> running, const Load& next) const;
};

// Indices of those that the limit allows alone, in the order of admission.
std::vector<std::size_t> fitting_order(const MemoryLimit& limit, std::span<const Load> jobs);
// Steps of the first 1, 2, 4, ... and of all jobs in this order, up to where the model, fitted again after
// each step, says that the next does not fit into the limit. `step` is told how many jobs.
std::vector<Profiled> profile_steps(const MemoryLimit& limit, std::span<const Load> jobs,
                                    const std::function<Profiled(std::size_t jobs)>& step);
// How long a step of so many tokens takes: between the measured ones in a straight line, below the least as long as
// that.
double seconds_of(std::span<const Profiled> profiles, double tokens);

// Indices of `queue` in the order in which they may start: after a job of batch size `freed` left, first those of that
// size; then any others, large batches first, equal ones in the queue's order.
std::vector<std::size_t> admission_order(std::span<const Load> queue, std::optional<std::int64_t> freed);

// How long it takes until all jobs are over if none exits: steps[i] more of each, admitted as there is room, on this
// many ranks that step together; tokens[i]: of a step on the average; step_seconds: of a step of so many. Without
// evaluations.
double forecast_seconds(const MemoryLimit& limit, int ranks, std::span<const Load> jobs,
                        std::span<const std::int64_t> steps, std::span<const double> tokens,
                        const std::function<double(double tokens)>& step_seconds);

// The jobs of `queue` (indices) to start beside `running` on one rank: in admission order, each that is allowed.
std::vector<std::size_t> admit(const MemoryLimit& limit, std::span<const Load> queue, std::vector<Load> running,
                               std::optional<std::int64_t> freed = {});

}  // namespace trireme::sweep
