#include "trainers/scale/study.h"

#include "comm/error.h"
#include "comm/wrappers/traced.h"
#include "data/loader.h"
#include "framework/experiment.h"
#include "framework/io/file_io.h"
#include "framework/io/folder_lock.h"
#include "framework/session.h"
#include "framework/base/quantile.h"
#include "framework/base/tensor.h"
#include "trainers/launch.h"
#include "trainers/loop.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>
#include <utility>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using scale::Exchange;
using scale::Measured;
using scale::Spread;
using Clock = std::chrono::steady_clock;

constexpr int warm_up = 3;
// A model that misses the largest measured number of ranks by more is not carried on beyond it.
constexpr double tolerance = 0.15;
constexpr int farthest = 1024;

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
    found.push_back({world.size(), double(count * sizeof(float)), scale::all_reduce_messages(world.size()),
                     scale::all_reduce_bytes(world.size(), double(count * sizeof(float))), 1e-3 * median(ms)});
  }
  return found;
}

json to_json(const Spread& s) { return {{"min", s.min}, {"mean", s.mean}, {"max", s.max}}; }
Spread spread_of(const json& j) { return {j.at("min"), j.at("mean"), j.at("max")}; }

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

json to_json(const scale::Study& s) {
  json study{{"experiment", s.title},
             {"scaling", s.mode},
             {"setting", s.setting},
             {"measured", json::array()},
             {"fitted_on", s.fitted_on}};
  for (const auto& m : s.measured) study["measured"].push_back(to_json(m));
  if (s.link)
    study["model"] = {
        {"alpha_us", 1e6 * s.link->alpha}, {"beta_gbps", 1e-9 * s.link->beta}, {"hidden_share_of_backward", s.hidden}};
  if (s.check)
    study["check"] = {{"ranks", s.check->ranks},
                      {"step_error", s.check->step_error},
                      {"comm_error", s.check->comm_error},
                      {"within", tolerance},
                      {"good", s.check->good()}};
  study["modelled"] = json::array();
  for (std::size_t i = 0; i < s.modelled.size(); ++i) {
    const auto& p = s.modelled[i];
    study["modelled"].push_back(
        {{"ranks", p.ranks},
         {"batch_size", s.batches[i]},
         {"local_ms", p.local_ms},
         {"comm_ms", p.comm_ms},
         {"comm_exposed_ms", p.exposed_ms},
         {"step_ms", p.step_ms()},
         {"efficiency", scale::efficiency(s.measured.front(), p.ranks, s.batches[i], p.step_ms())},
         {"kind", p.ranks > s.measured.back().ranks ? "modelled, extrapolated" : "modelled"}});
  }
  return study;
}

void print_table(const scale::Study& s) {
  const auto line = [](const char* kind, int ranks, double batch, double step, double local, double exposed, double mib,
                       double efficiency) {
    std::printf("%-22s %6d %8.0f %10.2f %10.2f %10.2f %10.3f %9.1f %%\n", kind, ranks, batch, step, local, exposed, mib,
                100 * efficiency);
  };
  std::printf("%s scaling of %s\n%s\n", s.mode.c_str(), s.title.c_str(), s.setting.c_str());
  std::printf("%-22s %6s %8s %10s %10s %10s %10s %11s\n", "", "ranks", "batch", "step ms", "local ms", "exposed ms",
              "MiB sent", "efficiency");
  for (const auto& m : s.measured)
    line("measured", m.ranks, m.batch, m.step_ms, m.local_ms(), m.exposed.mean, m.bytes / 1048576,
         scale::efficiency(s.measured.front(), m.ranks, m.batch, m.step_ms));
  for (std::size_t i = 0; i < s.modelled.size(); ++i) {
    const auto& p = s.modelled[i];
    line(p.ranks > s.measured.back().ranks ? "modelled, extrapolated" : "modelled", p.ranks, s.batches[i], p.step_ms(),
         p.local_ms, p.exposed_ms, std::nan(""),
         scale::efficiency(s.measured.front(), p.ranks, s.batches[i], p.step_ms()));
  }
  if (s.link)
    std::printf("model: alpha = %.1f us a message, beta = %.4g MB/s, fitted on", 1e6 * s.link->alpha,
                1e-6 * s.link->beta);
  for (const int n : s.fitted_on) std::printf(" %d", n);
  std::printf(s.fitted_on.empty() ? "no model: it takes two numbers of ranks above 1\n" : " ranks\n");
  if (s.check)
    std::printf("check on %d ranks: step %+.1f %%, all-reduce %+.1f %% from the measurement: %s\n", s.check->ranks,
                100 * s.check->step_error, 100 * s.check->comm_error,
                s.check->good() ? "good enough to extrapolate" : "not good enough to extrapolate");
}

std::vector<std::string> launcher_words(const std::string& launcher, int ranks) {
  std::istringstream in(launcher);
  std::vector<std::string> words;
  for (std::string word; in >> word;) {
    for (auto at = word.find("{ranks}"); at != std::string::npos; at = word.find("{ranks}"))
      word.replace(at, 7, std::to_string(ranks));
    words.push_back(word);
  }
  return words;
}

void write_file(const std::string& path, const std::string& text) { replace_durably(system_io(), path, text); }

}  // namespace

bool scale::Check::good() const { return std::abs(step_error) <= tolerance && std::abs(comm_error) <= tolerance; }

scale::Study scale::make_study(std::vector<Measured> measured, bool weak) {
  std::sort(measured.begin(), measured.end(), [](const auto& a, const auto& b) { return a.ranks < b.ranks; });
  Study s;
  s.mode = weak ? "weak" : "strong";
  s.measured = measured;
  std::vector<Measured> fitted = measured;
  const auto several = std::count_if(measured.begin(), measured.end(), [](const auto& m) { return m.ranks > 1; });
  if (several < 2) return s;
  if (several > 2) fitted.pop_back();
  for (const auto& m : fitted) s.fitted_on.push_back(m.ranks);
  const Model model(fitted, weak);
  s.link = model.link();
  s.hidden = model.hidden();
  const Measured& last = measured.back();
  if (several > 2) {
    const Exchange& gradient = last.exchanges.back();
    s.check = {last.ranks, model.predict(last.ranks).step_ms() / last.step_ms - 1,
               s.link->seconds(gradient.messages, gradient.bytes) / gradient.seconds - 1};
  }
  const double batch = measured.front().batch;
  const auto add = [&](int n) {
    s.modelled.push_back(model.predict(n));
    s.batches.push_back(weak ? batch / measured.front().ranks * n : batch);
  };
  for (const auto& m : measured) add(m.ranks);
  if (s.check && s.check->good())
    for (int n = 2 * last.ranks; n <= farthest && (weak || n <= batch); n *= 2) add(n);
  return s;
}

int scale_measure(const ScaleOptions& o, Communicator& world, int local_ranks) {
  Experiment run(Config::load(o.file, o.overrides));
  const TrainConfig& config = run.train;
  set_threads(config, local_ranks);
  Session session(world, config, *run.recipe);
  Loader loader(run.recipe->train_data(), run.recipe->train_ids(), config.batch_size, world.rank(), world.size(),
                std::uint64_t(config.seed), {.prefetch = config.prefetch});
  Context& context = session.context();
  context.steps_per_epoch = loader.steps_per_epoch();
  double data = 0;
  std::int64_t taken = 0;
  const auto step = [&] {
    const auto begin = Clock::now();
    context.now.step = taken++;
    const Batch batch = loader.next();
    context.now.epoch = batch.epoch;
    data += ms_since(begin);
    session.step(batch);
  };
  // What the training loop agrees on, and looks at.
  const auto read = [&] {
    double agreed[2] = {0, 0};
    context.comm("control").all_reduce({agreed, 2, DType::f64}, Op::sum).wait();
    if (!std::isfinite(session.loss()))
      throw Error(ExitCode::nonfinite, "step " + std::to_string(taken - 1), "the loss is not finite",
                  "lower optimizer.lr");
  };
  for (int s = 0; s < warm_up; ++s) step(), read();
  session.take_times();
  world.barrier().wait();
  data = 0;
  const auto before = traffic(context);
  const auto timed = Clock::now();
  std::vector<double> steps;
  auto begin = timed;
  for (std::int64_t s = 1, unread = 1; s <= o.steps; ++s, ++unread) {
    step();
    // Where training does: on a CPU after each step, else the device would wait for the host.
    if (context.device().is_cuda() && s % config.log_every != 0 && s != o.steps) continue;
    read();
    steps.push_back(ms_since(begin) / double(std::exchange(unread, 0)));
    begin = Clock::now();
  }
  const double n = o.steps, mean = ms_since(timed) / n;
  const StepTimes t = session.take_times();
  data /= n;
  // The host loads while a GPU computes: what counts is how long that has nothing to do between steps.
  if (context.device().is_cuda()) data = std::max(0.0, mean - (t.forward + t.backward + t.exposed + t.optimizer) / n);
  const std::vector<double> sums{data, t.forward / n, t.backward / n, t.exposed / n, t.optimizer / n};
  const auto after = traffic(context);
  world.all_reduce({steps.data(), steps.size(), DType::f64}, Op::max).wait();
  std::vector<double> all(sums.size() * std::size_t(world.size()));
  world.all_gather({sums.data(), sums.size(), DType::f64}, {all.data(), all.size(), DType::f64}).wait();
  const auto spread = [&](std::size_t k) {
    Spread s{all[k], 0, all[k]};
    for (std::size_t at = k; at < all.size(); at += sums.size()) {
      s.min = std::min(s.min, all[at]), s.max = std::max(s.max, all[at]);
      s.mean += all[at] / world.size();
    }
    return s;
  };
  Measured m{world.size(),
             double(config.batch_size),
             median(steps),
             spread(0),
             spread(1),
             spread(2),
             spread(3),
             spread(4),
             (after.first - before.first) / o.steps,
             (after.second - before.second) / o.steps,
             {}};
  if (world.size() > 1) m.exchanges = time_exchanges(context, session.reduced_bytes());
  if (world.rank() != 0) return 0;
  json found = to_json(m);
  found["place"] =
      (context.device().is_cuda() ? "GPUs over " : "CPUs over ") + std::string(context.comm("grad").backend());
  write_file(o.measure + "/measured.json", found.dump(1) + "\n");
  write_file(o.measure + "/config.resolved.yaml", run.config.print(run.schema, false));
  return 0;
}

int scale_command(const ScaleOptions& o) {
  const Experiment run(Config::load(o.file, o.overrides));  // a mistake is told once, before any rank starts
  const std::string out = o.out.empty() ? "runs/scale-" + fs::path(o.file).stem().string() : o.out;
  std::vector<int> counts = o.ranks;
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  std::vector<Measured> measured;
  std::string place;  // with the largest number of ranks
  std::error_code failed;
  fs::create_directories(out, failed);
  if (failed) throw DataError(out, "cannot be made: " + failed.message());
  const FolderLock lock(out);  // two studies in one folder would mix their figures
  if (!lock.warning().empty()) std::cerr << "trireme: warning: " << lock.warning() << std::endl;
  for (const int n : counts) {
    const auto batch = run.train.batch_size * (o.weak ? n : 1);
    if (batch % n != 0)
      throw UsageError(run.config.place("batch_size"),
                       std::to_string(batch) + " is not divisible by " + std::to_string(n) + " ranks",
                       "choose a multiple of every number of ranks, or --weak");
    const std::string folder = out + "/ranks_" + std::to_string(n);
    fs::create_directories(folder, failed);
    if (failed) throw DataError(folder, "cannot be made: " + failed.message());
    fs::remove(folder + "/measured.json", failed);
    std::vector<std::string> arguments{"scale", o.file};
    arguments.insert(arguments.end(), o.overrides.begin(), o.overrides.end());
    arguments.insert(arguments.end(), {"batch_size=" + std::to_string(batch), "--ranks", std::to_string(n), "--steps",
                                       std::to_string(o.steps), "--measure", folder});
    std::cerr << "scale: " << n << (n == 1 ? " rank" : " ranks") << ", batch " << batch << std::endl;
    std::vector<std::string> command = o.launcher.empty() ? mpirun_prefix(n) : launcher_words(o.launcher, n);
    command.push_back(fs::read_symlink("/proc/self/exe").string());
    command.insert(command.end(), arguments.begin(), arguments.end());
    if (const int code = launch_command(n, std::move(command))) return code;
    std::ifstream in(folder + "/measured.json");
    const json found = json::parse(in, nullptr, false);
    if (found.is_discarded())
      throw DataError(folder + "/measured.json", "was not written by rank 0",
                      "the folder must be visible to all nodes");
    measured.push_back(measured_of(found));
    place = found.at("place");
    if (measured.back().ranks != n)
      throw CommError(
          "scale", "the launcher started " + std::to_string(measured.back().ranks) + " ranks, not " + std::to_string(n),
          "--launcher needs {ranks}");
  }
  scale::Study study = scale::make_study(std::move(measured), o.weak);
  study.title = o.file;
  for (const auto& text : o.overrides) study.title += " " + text;
  const char* lab = std::getenv("TRIREME_LAB");
  study.setting =
      place + "; " +
      (lab ? lab : std::to_string(std::thread::hardware_concurrency()) + " cores on the node that started it");
  print_table(study);
  write_file(out + "/scale.json", to_json(study).dump(1) + "\n");
  write_file(out + "/scale.html", scale::page(study));
  std::cout << "report: " << out << "/scale.html" << std::endl;
  return 0;
}

}  // namespace trireme
