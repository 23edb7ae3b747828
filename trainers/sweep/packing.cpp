#include "trainers/sweep/packing.h"

#include "comm/error.h"

#include <algorithm>
#include <numeric>

#include <Eigen/QR>

namespace trireme::sweep {

double MemoryModel::bytes(std::span<const Load> jobs) const {
  double tokens = 0, parameters = 0;
  for (const auto& job : jobs) tokens += double(job.tokens), parameters += double(job.parameters);
  return fixed + per_token * tokens + copies * adapter_bytes * parameters;
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
  return {k[0], std::max(0.0, k[1])};
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

std::vector<std::size_t> fitting_order(const MemoryLimit& limit, std::span<const Load> jobs) {
  auto order = admission_order(jobs, {});
  std::erase_if(order, [&](std::size_t i) { return !limit.allows({}, jobs[i]); });
  return order;
}

std::vector<Profiled> profile_steps(const MemoryLimit& limit, std::span<const Load> jobs,
                                    const std::function<Profiled(std::size_t jobs)>& step) {
  std::vector<Load> order;
  for (const std::size_t i : fitting_order(limit, jobs)) order.push_back(jobs[i]);
  if (order.empty()) return {};
  MemoryLimit now = limit;
  std::vector<Profiled> found;
  const std::size_t most = std::min(order.size(), std::size_t(limit.slots));
  for (std::size_t n = 1;; n = std::min(2 * n, most)) {
    const std::span<const Load> first(order.data(), n);
    if (now.model.bytes(first) > limit.bytes) break;
    found.push_back(step(n));
    const bool apart = found.front().tokens != found.back().tokens;
    if (found.back().bytes > 0 && apart) now.model = fit_memory(found);
    if (n == most) break;
  }
  return found;
}

double seconds_of(std::span<const Profiled> profiles, double tokens) {
  std::vector<Profiled> sorted(profiles.begin(), profiles.end());
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.tokens < b.tokens; });
  if (sorted.empty()) return 0;
  if (sorted.size() == 1 || tokens <= double(sorted[0].tokens)) return sorted[0].seconds;
  std::size_t next = 1;
  while (next + 1 < sorted.size() && tokens > double(sorted[next].tokens)) ++next;
  const Profiled &a = sorted[next - 1], &b = sorted[next];
  if (a.tokens == b.tokens) return b.seconds;
  const double share = (tokens - double(a.tokens)) / double(b.tokens - a.tokens);
  return std::max(0.0, a.seconds + share * (b.seconds - a.seconds));
}

double forecast_seconds(const MemoryLimit& limit, int ranks, std::span<const Load> jobs,
                        std::span<const std::int64_t> steps, std::span<const double> tokens,
                        const std::function<double(double tokens)>& step_seconds) {
  struct Running {
    std::size_t job;
    int rank;
    std::int64_t left;
  };
  std::vector<std::size_t> queue = admission_order(jobs, {});
  std::vector<Running> running;
  double seconds = 0;
  const auto load_of = [&](int rank) {
    double sum = 0;
    for (const auto& r : running) sum += r.rank == rank ? tokens[r.job] : 0;
    return sum;
  };
  for (;;) {
    std::erase_if(queue, [&](std::size_t i) {
      int best = -1;
      for (int r = 0; r < ranks && steps[i] > 0; ++r) {
        std::vector<Load> there;
        for (const auto& x : running)
          if (x.rank == r) there.push_back(jobs[x.job]);
        if (limit.allows(there, jobs[i]) && (best < 0 || load_of(r) < load_of(best))) best = r;
      }
      if (best >= 0) running.push_back({i, best, steps[i]});
      return best >= 0 || steps[i] <= 0;
    });
    if (running.empty()) return seconds;
    std::int64_t ticks = running[0].left;
    for (const auto& r : running) ticks = std::min(ticks, r.left);
    double most = 0;
    for (int r = 0; r < ranks; ++r) most = std::max(most, load_of(r));
    seconds += double(ticks) * step_seconds(most);
    for (auto& r : running) r.left -= ticks;
    std::erase_if(running, [](const Running& r) { return r.left <= 0; });
  }
}

}  // namespace trireme::sweep
