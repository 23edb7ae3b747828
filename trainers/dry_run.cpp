#include "trainers/dry_run.h"

#include "comm/archive.h"
#include "comm/wrappers/traced.h"
#include "data/loader.h"
#include "framework/experiment.h"
#include "framework/plan.h"
#include "framework/session.h"
#include "trainers/plan.h"

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <map>
#include <set>

#include <ATen/ATen.h>

#include <sys/resource.h>

namespace trireme {
namespace {

// Bytes of state by the first part of its name: model, optimizer, ...
class Sizes final : public Archive {
 public:
  bool loading() const override { return false; }
  void array(std::string_view name, DType dtype, std::span<const std::int64_t> shape, void*, Sharing) override {
    std::size_t n = size_of(dtype);
    for (const auto extent : shape) n *= std::size_t(extent);
    add(name, n);
  }
  void text(std::string_view name, std::string& value, bool) override { add(name, value.size()); }
  bool has(std::string_view) const override { return true; }

  std::size_t of(const std::string& group) const {
    const auto found = bytes_.find(group);
    return found == bytes_.end() ? 0 : found->second;
  }
  std::size_t total() const { return total_; }

 private:
  void add(std::string_view name, std::size_t n) {
    const std::string path = full(name);
    bytes_[path.substr(0, path.find('/'))] += n;
    total_ += n;
  }
  std::map<std::string, std::size_t> bytes_;
  std::size_t total_ = 0;
};

std::string mib(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, bytes < 1048576 ? "%.3f MiB" : "%.1f MiB", bytes / 1048576);
  return text;
}

// The traced communicators of the session by name, and what each had done before the step that counts.
struct Observed {
  std::string name;
  const Traced* traced;
  std::uint64_t calls;
  std::int64_t now_ns;
};

std::vector<Observed> watch(Session& session, const Recipe& recipe) {
  std::set<std::string> names{"control", "grad", "world"};
  for (const auto& n : recipe.communicators()) names.insert(n);
  std::vector<Observed> all;
  for (const auto& n : names)
    if (const auto* traced = dynamic_cast<const Traced*>(&session.context().comm(n)))
      all.push_back({n, traced, traced->stats().calls, steady_now_ns()});
  return all;
}

void print_memory(Session& session) {
  Sizes sizes;
  session.state(sizes);
  std::size_t gradients = 0;
  for (const auto& p : session.parameters())
    if (p.value.grad().defined()) gradients += p.value.grad().nbytes();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  std::cout << "memory a rank: weights " << mib(double(sizes.of("model"))) << ", gradients (buckets) "
            << mib(double(gradients)) << ", optimizer " << mib(double(sizes.of("optimizer"))) << ", other state "
            << mib(double(sizes.total() - sizes.of("model") - sizes.of("optimizer")))
            << "; peak of this process, activations and data in it, " << mib(1024.0 * double(usage.ru_maxrss)) << "\n";
}

void print_schedule(const std::vector<Observed>& watched) {
  struct Line {
    std::string on;
    CommCall call;
  };
  std::vector<Line> lines;
  std::map<std::string, std::pair<std::size_t, double>> by_collective;  // calls, bytes
  std::size_t made = 0;
  double total = 0;
  for (const auto& w : watched) {
    made += w.traced->stats().calls - w.calls;
    for (const auto& call : w.traced->recent())
      if (call.begin_ns > w.now_ns) lines.push_back({w.name, call});
  }
  std::stable_sort(lines.begin(), lines.end(),
                   [](const Line& a, const Line& b) { return a.call.begin_ns < b.call.begin_ns; });
  for (const auto& l : lines) {
    auto& [calls, bytes] = by_collective[l.call.name];
    ++calls, bytes += double(l.call.bytes), total += double(l.call.bytes);
  }
  std::cout << "sent a step by a rank: " << mib(total);
  for (const auto& [name, sum] : by_collective)
    std::cout << ", " << name << " " << mib(sum.second) << " in " << sum.first;
  std::cout << "\ncollectives of a step, in order:\n";
  std::printf("  %4s  %-14s  %-14s  %14s\n", "", "communicator", "collective", "bytes sent");
  for (std::size_t i = 0; i < lines.size(); ++i)
    std::printf("  %4zu  %-14s  %-14s  %14llu\n", i + 1, lines[i].on.c_str(), lines[i].call.name,
                static_cast<unsigned long long>(lines[i].call.bytes));
  if (lines.size() < made)
    std::printf("  (and %zu earlier ones: the last 256 of a communicator are kept)\n", made - lines.size());
  std::fflush(stdout);
}

}  // namespace

void dry_run(Experiment& run, Communicator& world, const std::function<void(Session&)>& after_step) {
  Recipe& recipe = *run.recipe;
  const TrainConfig& train = run.train;
  Plan plan;
  if (recipe.plan(plan, world.size(), train)) {  // the data need not be here
    if (world.rank() != 0) return;
    std::cout << run.config.print(run.schema, true) << "\n";
    print_plan(plan, train, world.size());
    std::cout << "no step was taken: the configuration says how much data there will be\n" << std::flush;
    return;
  }
  Session session(world, train, recipe);
  const auto ids = recipe.train_ids();
  Loader loader(recipe.train_data(), ids, train.batch_size, world.rank(), world.size(), std::uint64_t(train.seed),
                {.prefetch = false});
  std::vector<Observed> watched;
  for (std::int64_t step = 0; step < 3; ++step) {
    watched = watch(session, recipe);
    session.context().now.step = step;
    const Batch batch = loader.next();
    session.context().now.epoch = batch.epoch;
    session.step(batch, recipe.looks_ahead() ? &loader.peek() : nullptr);
    after_step(session);
  }
  if (world.rank() != 0) return;
  std::cout << run.config.print(run.schema, true) << "\n";
  for (const auto& p : session.parameters())
    std::cout << "  " << p.name << " " << p.value.sizes() << " " << p.group
              << (p.value.requires_grad() ? "" : " frozen") << "\n";
  std::cout << "parameters " << session.parameter_count() << ", training samples " << ids.size() << ", steps an epoch "
            << loader.steps_per_epoch() << ", epochs "
            << double(session.context().steps) / double(loader.steps_per_epoch()) << "\nrank 0 of " << world.size()
            << (world.backend() == "fake" ? ", alone in a fake world: counts are real, results are not\n" : "\n");
  if (recipe.plan(plan, world.size(), train)) print_plan(plan, train, world.size());
  print_memory(session);
  std::cout << std::flush;
  print_schedule(watched);
}

}  // namespace trireme
