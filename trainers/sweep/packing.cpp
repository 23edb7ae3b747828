#include "trainers/sweep/packing.h"

#include "comm/error.h"

#include <algorithm>
#include <numeric>

#include <Eigen/QR>

namespace trireme::sweep {

double MemoryModel::bytes(std::span<const Load> jobs) const {
  double tokens = 0, parameters = 0;
  for (const auto& job : jobs) tokens += double(job.tokens), parameters += double(job.parameters);
  return fixed + per_token * tokens + adapter_bytes * parameters;
}

MemoryModel fit_memory(std::span<const Profiled> profiles) {
  Eigen::MatrixXd a(Eigen::Index(profiles.size()), 2);
  Eigen::VectorXd y(a.rows());
  for (Eigen::Index i = 0; i < a.rows(); ++i) {
    const Profiled& p = profiles[std::size_t(i)];
    a(i, 0) = 1;
    a(i, 1) = double(p.tokens);
    y(i) = p.bytes - MemoryModel::adapter_bytes * double(p.parameters);
  }
  const auto solver = a.colPivHouseholderQr();
  if (a.rows() < 2 || solver.rank() < 2)
    throw Error(ExitCode::bug, "memory model", "profiles of one number of tokens say nothing of the others");
  const Eigen::Vector2d k = solver.solve(y);
  return {k[0], k[1]};
}

bool MemoryLimit::allows(std::span<const Load> running, const Load& next) const {
  if (std::int64_t(running.size()) >= slots) return false;
  std::vector<Load> all(running.begin(), running.end());
  all.push_back(next);
  return model.bytes(all) <= bytes;
}

std::vector<std::size_t> admission_order(std::span<const Load> queue, std::optional<std::int64_t> freed) {
  std::vector<std::size_t> order(queue.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const bool same_a = freed && queue[a].batch_size == *freed, same_b = freed && queue[b].batch_size == *freed;
    if (same_a != same_b) return same_a;
    return queue[a].batch_size > queue[b].batch_size;
  });
  return order;
}

std::vector<std::size_t> admit(const MemoryLimit& limit, std::span<const Load> queue, std::vector<Load> running,
                               std::optional<std::int64_t> freed) {
  std::vector<std::size_t> started;
  for (const std::size_t i : admission_order(queue, freed)) {
    if (!limit.allows(running, queue[i])) continue;
    running.push_back(queue[i]);
    started.push_back(i);
  }
  return started;
}

}  // namespace trireme::sweep
