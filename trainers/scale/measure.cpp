#include "trainers/scale/measure.h"

#include "comm/error.h"
#include "comm/wrappers/traced.h"
#include "data/loader.h"
#include "framework/base/quantile.h"
#include "framework/base/tensor.h"
#include "framework/experiment.h"
#include "framework/io/file_io.h"
#include "framework/session.h"
#include "trainers/loop.h"
#include "trainers/stop.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <nlohmann/json.hpp>

namespace trireme::scale {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int warm_up = 3;

double median(std::vector<double> v) { return quantile(std::move(v), 0.5); }
double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// Collective calls and bytes sent by this rank so far.
std::pair<double, double> traffic(Context& context) {
  double calls = 0, bytes = 0;
  for (const std::string_view name : {"world", "grad", "control"})
    if (const auto* traced = dynamic_cast<const Traced*>(&context.comm(name))) {
      calls += double(traced->stats().calls);
      bytes += double(traced->stats().bytes);
    }
  return {calls, bytes};
}

// All-reduces alone, of the memory and on the communicator that gradients take: small ones, and as large as the
// gradient.
std::vector<Exchange> time_exchanges(Context& context, std::size_t gradient_bytes) {
  Communicator& comm = context.comm("grad");
  Communicator& world = context.comm("control");
  std::vector<Exchange> found;
  std::vector<std::size_t> sizes{4096, 65536, gradient_bytes / 4, gradient_bytes};
  std::sort(sizes.begin(), sizes.end());
  for (const std::size_t bytes : sizes) {
    const std::size_t count = std::max<std::size_t>(bytes / sizeof(float), 1);
    const auto shared = context.device().is_cpu() ? comm.allocate(count * sizeof(float)) : nullptr;
    const auto options = at::device(context.device()).dtype(at::kFloat);
    const at::Tensor data = shared ? at::from_blob(shared.get(), {std::int64_t(count)}, options)
                                   : at::empty({std::int64_t(count)}, options);
    data.fill_(1e-30f);
    std::vector<double> ms;
    for (int i = 0; i < 7; ++i) {
      world.barrier().wait();
      const auto begin = Clock::now();
      comm.all_reduce(buffer_of(data), Op::sum).wait_host(std::chrono::minutes(10));
      ms.push_back(ms_since(begin));
    }
    world.all_reduce({ms.data(), ms.size(), DType::f64}, Op::max).wait();
    ms.erase(ms.begin(), ms.begin() + 2);
    found.push_back({world.size(), double(count * sizeof(float)), all_reduce_messages(world.size()),
                     all_reduce_bytes(world.size(), double(count * sizeof(float))), 1e-3 * median(ms)});
  }
  return found;
}

// Steps as the training loop takes them.
class Stepper {
 public:
  Stepper(Experiment& run, Communicator& world)
      : config_(in_phases(run)),
        world_(world),
        session_(world, config_, *run.recipe),
        loader_(run.recipe->train_data(), run.recipe->train_ids(), config_.batch_size, world.rank(), world.size(),
                std::uint64_t(config_.seed), {.prefetch = config_.prefetch}) {}
  Context& context() { return session_.context(); }
  std::size_t reduced_bytes() const { return session_.reduced_bytes(); }

  Measured time(int steps) {
    for (int s = 0; s < warm_up; ++s) step(), read();
    session_.take_times();
    world_.barrier().wait();
    data_ = 0;
    const auto before = traffic(context());
    const auto timed = Clock::now();
    std::vector<double> each;
    auto begin = timed;
    for (std::int64_t s = 1, unread = 1; s <= steps; ++s, ++unread) {
      step();
      // Where training does: on a CPU after each step, else the device would wait for the host.
      if (context().device().is_cuda() && s % config_.log_every != 0 && s != steps) continue;
      read();
      each.push_back(ms_since(begin) / double(std::exchange(unread, 0)));
      begin = Clock::now();
    }
    const std::vector<double> phases = take_phases(steps, ms_since(timed) / steps);
    const auto after = traffic(context());
    world_.all_reduce({each.data(), each.size(), DType::f64}, Op::max).wait();
    const std::vector<Spread> s = spreads(phases);
    return {world_.size(),
            double(config_.batch_size),
            median(each),
            s[0],
            s[1],
            s[2],
            s[3],
            s[4],
            (after.first - before.first) / steps,
            (after.second - before.second) / steps,
            {}};
  }

 private:
  // What is replayed as a CUDA graph has no phases.
  static const TrainConfig& in_phases(Experiment& run) {
    run.train.graph = "off";
    return run.train;
  }
  void step() {
    const auto begin = Clock::now();
    context().now.step = taken_++;
    const Batch batch = loader_.next();
    context().now.epoch = batch.epoch;
    data_ += ms_since(begin);
    session_.step(batch);
  }

  // What the training loop agrees on, and looks at.
  void read() {
    double agreed[2] = {0, 0};
    context().comm("control").all_reduce({agreed, 2, DType::f64}, Op::sum).wait();
    if (!std::isfinite(session_.loss()))
      throw Error(ExitCode::nonfinite, "step " + std::to_string(taken_ - 1), "the loss is not finite",
                  "lower optimizer.lr");
  }

  // Of this rank, ms a step: data, forward, backward, exposed communication, optimizer. step_ms: the mean.
  std::vector<double> take_phases(double n, double step_ms) {
    const StepTimes t = session_.take_times();
    double data = data_ / n;
    // The host loads while a GPU computes: what counts is how long that has nothing to do between steps.
    if (context().device().is_cuda())
      data = std::max(0.0, step_ms - (t.forward + t.backward + t.exposed + t.optimizer) / n);
    return {data, t.forward / n, t.backward / n, t.exposed / n, t.optimizer / n};
  }

  // Collective: each over all ranks.
  std::vector<Spread> spreads(const std::vector<double>& mine) {
    const std::size_t n = mine.size();
    std::vector<double> all(n * std::size_t(world_.size()));
    world_.all_gather({mine.data(), n, DType::f64}, {all.data(), all.size(), DType::f64}).wait();
    std::vector<Spread> found;
    for (std::size_t k = 0; k < n; ++k) {
      Spread s{all[k], 0, all[k]};
      for (std::size_t at = k; at < all.size(); at += n) {
        s.min = std::min(s.min, all[at]), s.max = std::max(s.max, all[at]);
        s.mean += all[at] / world_.size();
      }
      found.push_back(s);
    }
    return found;
  }

  const TrainConfig& config_;
  Communicator& world_;
  Session session_;
  Loader loader_;
  double data_ = 0;  // ms
  std::int64_t taken_ = 0;
};

json to_json(const Spread& s) { return {{"min", s.min}, {"mean", s.mean}, {"max", s.max}}; }
Spread spread_of(const json& j) { return {j.at("min"), j.at("mean"), j.at("max")}; }

}  // namespace

json to_json(const Measured& m) {
  json exchanges = json::array();
  for (const auto& e : m.exchanges)
    exchanges.push_back(
        {{"buffer_bytes", e.buffer_bytes}, {"messages", e.messages}, {"bytes_sent", e.bytes}, {"seconds", e.seconds}});
  return {{"ranks", m.ranks},
          {"batch_size", m.batch},
          {"step_ms", m.step_ms},
          {"data_ms", to_json(m.data)},
          {"forward_ms", to_json(m.forward)},
          {"backward_ms", to_json(m.backward)},
          {"comm_exposed_ms", to_json(m.exposed)},
          {"optimizer_ms", to_json(m.optimizer)},
          {"collectives", m.calls},
          {"bytes_sent", m.bytes},
          {"all_reduce", exchanges}};
}

Measured measured_of(const json& j) {
  Measured m{j.at("ranks"),
             j.at("batch_size"),
             j.at("step_ms"),
             spread_of(j.at("data_ms")),
             spread_of(j.at("forward_ms")),
             spread_of(j.at("backward_ms")),
             spread_of(j.at("comm_exposed_ms")),
             spread_of(j.at("optimizer_ms")),
             j.at("collectives"),
             j.at("bytes_sent"),
             {}};
  for (const auto& e : j.at("all_reduce"))
    m.exchanges.push_back({m.ranks, e.at("buffer_bytes"), e.at("messages"), e.at("bytes_sent"), e.at("seconds")});
  return m;
}

int measure(const MeasureOptions& o, Communicator& world, int local_ranks) {
  end_on_stop_signals();  // there is nothing to save
  Experiment run(Config::load(o.file, o.overrides));
  set_threads(run.train, local_ranks);
  Stepper stepper(run, world);
  Measured m = stepper.time(o.steps);
  Context& context = stepper.context();
  if (world.size() > 1) m.exchanges = time_exchanges(context, stepper.reduced_bytes());
  if (world.rank() != 0) return 0;
  json found = to_json(m);
  found["place"] =
      (context.device().is_cuda() ? "GPUs over " : "CPUs over ") + std::string(context.comm("grad").backend());
  replace_durably(system_io(), o.folder + "/measured.json", found.dump(1) + "\n");
  replace_durably(system_io(), o.folder + "/config.resolved.yaml", run.config.print(run.schema, false));
  return 0;
}

}  // namespace trireme::scale
