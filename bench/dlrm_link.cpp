// What the all-to-all of DLRM costs a step on the link that is there, and what codes save of it: one session on --ranks
// ranks whose exchange changes between steps, all arms at the same weights (learning rate 0), block by block in turn.
//   --problem "FOLDER 4096,16384,60% [SECONDS]": FOLDER/job.yaml is a configuration of dlrm, FOLDER/arms/NAME.yaml one
//   for each arm, of which `compression` counts; `none` must be there. Then global batches; N%: the batch at which the
//   exposed exchange is that share of the step of `none`, found by bisection. SECONDS after its start no batch and no
//   block begins any more. FOLDER/rows.jsonl has the rows so far after every block, FOLDER/ranks.log when ranks are
//   ready.
// Exposed: a step minus the same with copies in place of both exchanges (`local`). codec_ms: a step that codes and
// decodes but sends nothing, minus the one with copies. ceiling: speedup if what the arm codes were free.
#include "bench/bench.h"
#include "bench/collectives.h"
#include "bench/judge.h"
#include "comm/error.h"
#include "framework/device_info.h"
#include "framework/experiment.h"
#include "framework/init_from.h"
#include "framework/session.h"
#include "recipes/dlrm/exchange_switch.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

namespace trireme::bench {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int batches = 4;         // taken in turn, on the device
constexpr int until_replayed = 6;  // steps, of which the fourth is the first one

struct Problem {
  std::string folder;
  std::vector<std::string> batches;
  std::vector<std::string> arms;  // in the order of `order`
  double seconds = 1e9;
};

// The arms that a cut run should have are measured first.
int order_of(const std::string& arm) {
  const std::vector<std::string> order = {"none",  "both", "both-sparse", "int4",      "forward",
                                          "paper", "int8", "fp16",        "both-exact"};
  return int(std::find(order.begin(), order.end(), arm) - order.begin());
}

// Every rank has as many samples.
void check_batches(const Problem& p, int ranks) {
  for (const auto& item : p.batches) {
    const std::int64_t batch = std::atoll(item.c_str());
    if (item.ends_with('%') || batch % ranks == 0) continue;
    throw UsageError("bench dlrm_link --problem",
                     "a batch of " + item + " does not divide by " + std::to_string(ranks) + " ranks",
                     "take " + std::to_string((batch + ranks - 1) / ranks * ranks) + ", or other --ranks");
  }
}

Problem problem_of(const std::string& text) {
  std::istringstream in(text);
  Problem p;
  std::string list;
  in >> p.folder >> list >> p.seconds;
  if (in.fail()) p.seconds = 1e9;
  std::istringstream items(list);
  for (std::string item; std::getline(items, item, ',');) p.batches.push_back(item);
  const auto good = [](const std::string& s) { return std::atoi(s.c_str()) > 0; };
  if (p.batches.empty() || !std::all_of(p.batches.begin(), p.batches.end(), good))
    throw UsageError("bench dlrm_link --problem", "'" + text + "' is none", "write \"FOLDER 4096,16384,60%\"");
  if (!fs::exists(p.folder + "/arms/none.yaml"))
    throw UsageError("bench dlrm_link --problem", p.folder + " has no arms/none.yaml", "see bench/dlrm_lab");
  for (const auto& file : fs::directory_iterator(p.folder + "/arms")) p.arms.push_back(file.path().stem().string());
  std::sort(p.arms.begin(), p.arms.end(), [](const std::string& a, const std::string& b) {
    return std::pair(order_of(a), a) < std::pair(order_of(b), b);
  });
  return p;
}

// The session of one rank.
class Trainer {
 public:
  Trainer(const Problem& problem, Experiment& run, Communicator& world)
      : run_(run), world_(world), session_(world, run.train, *run.recipe) {
    tell(problem, "has a session");
    switch_ = dynamic_cast<dlrm::ExchangeSwitch*>(run.recipe.get());
    if (!switch_) throw UsageError(problem.folder + "/job.yaml", "is of another recipe", "write recipe: dlrm");
    for (const auto& arm : problem.arms) arms_[arm] = dlrm::compression_of(problem.folder + "/arms/" + arm + ".yaml");
    if (!run.train.init_from.empty()) init_from(run.train.init_from, session_, world);
    tell(problem, "has its weights");
  }

  // "BATCH ARM WHAT STEPS", WHAT: wire, local, local_forward.
  nlohmann::json block(const std::string& command) {
    std::istringstream in(command);
    std::int64_t batch = 0;
    std::string arm, what;
    int steps = 0;
    in >> batch >> arm >> what >> steps;
    if (batch != batch_) load(batch);
    switch_->use(arms_.at(arm), {what != "wire", what == "local"}, session_.context());
    for (int i = 0; i < until_replayed; ++i) advance();
    (void)session_.loss();
    (void)switch_->take_ratios(session_.context());
    world_.barrier().wait();
    const std::uint64_t sent = link_bytes();
    const auto begin = Clock::now();
    for (int i = 0; i < steps; ++i) advance();
    const double loss = session_.loss();
    double ms = std::chrono::duration<double, std::milli>(Clock::now() - begin).count() / steps;
    double bytes = double(link_bytes() - sent) / steps / world_.size();
    world_.all_reduce({&ms, 1, DType::f64}, Op::max).wait();
    world_.all_reduce({&bytes, 1, DType::f64}, Op::sum).wait();
    const dlrm::ExchangeRatios ratios = switch_->take_ratios(session_.context());
    return {{"ms", ms},
            {"sent", bytes},
            {"loss", loss},
            {"forward", ratios.forward},
            {"backward", ratios.backward},
            {"replayed", session_.replays()}};
  }

 private:
  // For who waits: how far each rank is.
  void tell(const Problem& problem, const char* what) const {
    const std::chrono::duration<double> s = Clock::now() - begin_;
    std::ofstream(problem.folder + "/ranks.log", std::ios::app)
        << "rank " + std::to_string(world_.rank()) + " " + what + " after " + std::to_string(int(s.count())) + " s\n";
  }

  void load(std::int64_t batch) {
    if (batch_ > 0) session_.step(mine_[std::size_t(step_) % mine_.size()]);  // ids of the next one are on their way
    mine_.clear();
    batch_ = batch;
    const auto ids = run_.recipe->train_ids();
    const std::int64_t rows = batch / world_.size();
    for (int k = 0; k < batches; ++k) {
      std::vector<std::int64_t> own;
      for (std::int64_t i = 0; i < rows; ++i)
        own.push_back(ids[std::size_t((k * batch + world_.rank() * rows + i) % std::ssize(ids))]);
      Batch b = run_.recipe->train_data().read(own, 0);
      b.ids = own, b.global_ids = own;
      b.epoch = 0, b.index = k;
      for (auto& [name, column] : b.columns) column = column.to(session_.context().device());
      mine_.push_back(std::move(b));
    }
    step_ = 0;
    release_device_memory();
  }

  void advance() {
    session_.context().now.step = 1;
    const std::size_t n = mine_.size();
    session_.step(mine_[std::size_t(step_) % n], &mine_[std::size_t(step_ + 1) % n]);
    ++step_;
  }

  const Clock::time_point begin_ = Clock::now();
  Experiment& run_;
  Communicator& world_;
  Session session_;
  dlrm::ExchangeSwitch* switch_ = nullptr;
  std::map<std::string, dlrm::CompressionConfig> arms_;
  std::vector<Batch> mine_;
  std::int64_t batch_ = 0, step_ = 0;
};

void serve(const Options& o, Communicator& world) {
  const Problem problem = problem_of(o.problem);
  Experiment run(Config::load(problem.folder + "/job.yaml", {"device=" + o.device}));
  Trainer trainer(problem, run, world);
  Server server(o.serve, world.rank());
  while (const auto command = server.command()) server.reply(trainer.block(*command));
}

// ---- the process that measures

struct Cell {
  std::string arm, what;
  std::vector<double> ms;
  nlohmann::json last;
  double median() const { return quantile(ms, 0.5); }
};

class Measurement {
 public:
  using Publish = std::function<void(const nlohmann::json& rows)>;  // of a batch, so far
  Measurement(Arm& job, const Options& o, Clock::time_point end, Publish publish)
      : job_(job), options_(o), end_(end), publish_(std::move(publish)) {}

  bool over() const { return Clock::now() >= end_; }

  void ask(Cell& cell, std::int64_t batch, int steps) {
    const auto answer =
        job_.ask(std::to_string(batch) + " " + cell.arm + " " + cell.what + " " + std::to_string(steps), patience);
    if (!answer) throw DataError("bench dlrm_link", job_.skipped());
    cell.last = *answer;
    cell.ms.push_back(answer->at("ms"));
  }

  // Steps of a block: about a sixth of a second.
  int steps_at(std::int64_t batch) {
    Cell probe{"none", "wire", {}, {}};
    ask(probe, batch, 2);
    return std::clamp(int(160 / std::max(probe.ms[0], 0.1)), 3, 20);
  }

  double share_at(std::int64_t batch) {
    const int steps = steps_at(batch);
    Cell wire{"none", "wire", {}, {}}, local{"none", "local", {}, {}};
    for (int k = 0; k < 3; ++k) ask(wire, batch, steps), ask(local, batch, steps);
    const double share = 1 - local.median() / wire.median();
    std::fprintf(stderr, "batch %lld: exposed share %.3f of %.2f ms\n", static_cast<long long>(batch), share,
                 wire.median());
    return share;
  }

  // It grows with the batch: a step that waits for its kernels to start takes the same time for few samples.
  std::int64_t batch_of(double share) {
    const std::int64_t unit = std::int64_t(options_.ranks) * 32;
    std::int64_t low = 0, high = 0, best = 0;  // ends, as far as they are known
    double nearest = 1;
    for (std::int64_t batch = std::max<std::int64_t>(1, 2048 / unit) * unit; batch >= unit && batch <= 1 << 20;) {
      const double s = share_at(batch);
      if (std::fabs(s - share) < nearest) nearest = std::fabs(s - share), best = batch;
      if (nearest < 0.015 || over()) break;
      (s < share ? low : high) = batch;
      const std::int64_t middle = high == 0  ? 2 * low
                                  : low == 0 ? high / 2
                                             : std::int64_t(std::sqrt(double(low) * double(high)));
      batch = middle / unit * unit;
      if (batch == low || batch == high) break;
    }
    return best;
  }

  // Once more with another batch where the blocks of all arms say that the search was not near enough.
  nlohmann::json rows_where(double share, const std::vector<std::string>& arms) {
    const std::int64_t unit = std::int64_t(options_.ranks) * 32, batch = batch_of(share);
    nlohmann::json rows = rows_at(batch, arms);
    const double found = std::clamp(rows[0]["share"].get<double>(), 0.05, 0.95);
    if (std::fabs(found - share) <= 0.03 || over()) return rows;
    const double factor = share / (1 - share) * (1 - found) / found;
    const auto other = std::int64_t(double(batch) * std::clamp(factor, 0.5, 2.0)) / unit * unit;
    if (other < unit || other == batch) return rows;
    nlohmann::json again = rows_at(other, arms);
    return std::fabs(again[0]["share"].get<double>() - share) < std::fabs(found - share) ? again : rows;
  }

  nlohmann::json rows_at(std::int64_t batch, const std::vector<std::string>& arms) {
    std::vector<Cell> cells;
    for (const auto& arm : arms) cells.push_back({arm, "wire", {}, {}}), cells.push_back({arm, "local", {}, {}});
    cells.push_back({"none", "local_forward", {}, {}});
    const int steps = steps_at(batch);
    nlohmann::json rows;
    for (int b = 0; b < options_.blocks && !(b >= 3 && over()); ++b) {
      for (auto& c : cells) ask(c, batch, steps);
      if (b > 0 || options_.blocks == 1) publish_(rows = rows_of(batch, arms, cells));
    }
    return rows;
  }

 private:
  nlohmann::json rows_of(std::int64_t batch, const std::vector<std::string>& arms,
                         const std::vector<Cell>& cells) const {
    const auto find = [&](const std::string& arm, const char* what) -> const Cell& {
      return *std::find_if(cells.begin(), cells.end(), [&](const Cell& c) { return c.arm == arm && c.what == what; });
    };
    const Cell &none = find("none", "wire"), &local = find("none", "local");
    const double share = 1 - local.median() / none.median(),
                 forward = 1 - find("none", "local_forward").median() / none.median();
    nlohmann::json rows = nlohmann::json::array();
    for (const auto& arm : arms) {
      const Cell &c = find(arm, "wire"), &codes = find(arm, "local");
      const Ratio r = ratio_of(none.ms, c.ms);
      const double f = c.last["forward"], b = c.last["backward"];
      const double free = (f > 1 ? forward : 0) + (b > 1 ? share - forward : 0), ceiling = 1 / (1 - free);
      nlohmann::json row{{"arm", arm},
                         {"batch", batch},
                         {"ranks", options_.ranks},
                         {"step_ms", c.median()},
                         {"low_ms", quantile(c.ms, 0.25)},
                         {"high_ms", quantile(c.ms, 0.75)},
                         {"exposed_ms", c.median() - local.median()},
                         {"codec_ms", codes.median() - local.median()},
                         {"share", share},
                         {"forward_share", forward},
                         {"forward_ratio", f},
                         {"backward_ratio", b},
                         {"speedup", r.mean},
                         {"speedup_low", r.low},
                         {"speedup_high", r.high},
                         {"ceiling", ceiling},
                         {"of_ceiling", r.mean / ceiling},
                         {"sent", c.last["sent"]},
                         {"loss", c.last["loss"]},
                         {"replayed", c.last["replayed"]},
                         {"blocks_ms", c.ms}};
      if (const char* lab = std::getenv("TRIREME_LAB")) row["lab"] = lab;
      rows.push_back(row);
    }
    return rows;
  }

  static constexpr std::chrono::seconds patience{60};
  Arm& job_;
  const Options& options_;
  const Clock::time_point end_;
  const Publish publish_;
};

// All rows there are, which it returns: whole batches, and the one at work. Never half a file.
nlohmann::json write_rows(const std::string& folder, nlohmann::json all, const nlohmann::json& rows,
                          const std::string& problem) {
  for (auto row : rows) row["problem"] = problem, all.push_back(std::move(row));
  std::ofstream file(folder + "/rows.new");
  for (const auto& row : all) file << row.dump() << '\n';
  file.close();
  fs::rename(folder + "/rows.new", folder + "/rows.jsonl");
  return all;
}

nlohmann::json run(const Options& o) {
  const Problem problem = problem_of(o.problem);
  check_batches(problem, o.ranks);
  const auto begin = Clock::now();
  const Scratch scratch;
  Arm job("trireme", own_arm(o, "all", o.problem, o.ranks, scratch.path("job")), o.ranks, scratch.path("job"));
  const auto seconds = std::chrono::seconds(std::int64_t(std::min(problem.seconds, 600.0)));
  if (!job.ready(seconds)) throw DataError("bench dlrm_link", job.skipped());
  std::fprintf(stderr, "ranks are ready after %.0f s\n", std::chrono::duration<double>(Clock::now() - begin).count());
  std::string item;
  nlohmann::json done = nlohmann::json::array();
  const auto publish = [&](const nlohmann::json& rows) { write_rows(problem.folder, done, rows, item); };
  const auto end = begin + std::chrono::milliseconds(std::int64_t(1000 * std::min(problem.seconds, 1e6)));
  Measurement measurement(job, o, end, publish);
  for (const auto& batch : problem.batches) {
    if (measurement.over()) break;
    item = batch;
    const double number = std::atof(item.c_str());
    const auto rows = item.ends_with('%') ? measurement.rows_where(number / 100, problem.arms)
                                          : measurement.rows_at(std::int64_t(number), problem.arms);
    done = write_rows(problem.folder, done, rows, item);
  }
  return done;
}

const Benchmarks::Entry entry({"dlrm_link", "what the exchange of DLRM costs a step, and its codes save", run, serve,
                               true});

}  // namespace
}  // namespace trireme::bench
