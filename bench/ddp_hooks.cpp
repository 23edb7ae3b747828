// Data-parallel training with gradient hooks beside DistributedDataParallel with PyTorch's own: the transformer of
// recipes/transformer (151 M parameters, bf16 autocast, f32 gradients) and the MLP of recipes/mlp (f32). Equal weights
// and batches, AdamW, buckets of 25 MiB; hooks begin with step 4 (losses: 10). With --device cuda on GPUs: over NVLink
// as the machine has it, or on the hosts of tests/net/lab --gpus, where bytes are also counted by the link. Without, a
// small network on the host, over gloo.
//   --problem "512", "64": sequences of 64 tokens a rank; all arms. `512 line`: without PowerSGD; `512 powersgd`: with
//             it alone; `512 buckets`: buckets of 25, 50 and 100 MiB.
//   --problem "mlp buckets": of the MLP, whose weights of 256 MiB leave in pieces of 25 or 100, or (300) whole.
//   --problem scaling: 1, 2, 4, ... --ranks ranks, 512 sequences or 4,096 samples of the MLP on each; no hooks; on
//             several GPUs also with steps replayed as CUDA graphs, as one GPU's are.
//   --problem losses: what each arm has learnt after 500 steps; `losses int8 ddp-powersgd-4 seeds`: none and these
//             arms alone (seeds: none of two more).
#include "bench/bench.h"
#include "bench/collectives.h"
#include "bench/judge.h"
#include "bench/own_run.h"
#include "comm/error.h"
#include "comm/wrappers/traced.h"
#include "framework/device_info.h"
#include "framework/metrics/utilisation.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <map>
#include <sstream>

namespace trireme::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int start_learning = 10;     // hooks compress from this step on
constexpr int start_timed = 4;         // and here where time alone counts: before, a slow link takes a second a step
constexpr int warm_up = 8;             // steps before anything is timed
constexpr int timed = 4, untimed = 1;  // steps of a block: the first one takes memory that other arms had
constexpr int learning_steps = 500, learning_tail = 20;

// What an arm trains: "transformer 512 2024 25 4": model, rows of a rank, seed, MiB of a bucket, first step with hooks.
struct Case {
  std::string model;
  int rows = 0, seed = 2024, bucket_mib = 25, start = start_timed;

  int batches() const { return model == "mlp" ? 4 : 32; }  // taken in turn; rows of the MLP are large
  std::string text() const {
    return model + " " + std::to_string(rows) + " " + std::to_string(seed) + " " + std::to_string(bucket_mib) + " " +
           std::to_string(start);
  }
  static Case of(const std::string& text) {
    std::istringstream in(text);
    Case c;
    in >> c.model >> c.rows >> c.seed >> c.bucket_mib >> c.start;
    return c;
  }
  std::string start_file(int ranks) const {
    return "start-" + model + "-" + std::to_string(rows) + "-" + std::to_string(seed) + "-" + std::to_string(ranks);
  }
};

// "none", "bf16", ... , "powersgd-RANK"; "replayed": none.
std::string hook_yaml(const std::string& arm, int start) {
  if (arm == "none") return {};
  if (arm == "replayed") return "graph: on\n";
  const auto dash = arm.find('-');
  const std::string rank = dash == arm.npos ? "" : ", rank: " + arm.substr(dash + 1);
  return "hook: {name: " + arm.substr(0, dash) + rank + ", start: " + std::to_string(start) + "}\n";
}

std::string yaml(const Options& o, int ranks) {
  const Case c = Case::of(o.problem);
  const bool gpu = o.device == "cuda", text = c.model == "transformer";
  const int batch = c.rows * ranks;
  const std::string sizes = gpu ? "[1024, 8192, 8192, 8192, 10]" : "[64, 128, 10]",
                    shape =
                        gpu ? "{layers: 12, width: 1024, heads: 16}" : "{layers: 2, width: 64, heads: 4, context: 16}";
  return "recipe: " + c.model + "\nsteps: 1000000\nlog_every: 1000000\nseed: " + std::to_string(c.seed) +
         "\nbatch_size: " + std::to_string(batch) + "\ndevice: " + o.device +
         "\nprecision: " + (gpu && text ? "bf16" : "f32") +
         "\nsamples: " + std::to_string((c.batches() + c.batches() / 4 + 1) * batch) +
         "\nbucket_mib: " + std::to_string(c.bucket_mib) +
         "\noptimizer: {lr: 3.0e-4, beta2: 0.98, eps: 1.0e-6, weight_decay: 0.1, schedule: const, warmup: 50}\n" +
         (text ? "model: " + shape : "sizes: " + sizes) + "\n" + hook_yaml(o.arm, c.start);
}

// Bytes of gradients that this rank has sent, by formula.
double sent_by_formula(Session& session) {
  const auto* traced = dynamic_cast<const Traced*>(&session.context().comm("grad"));
  return traced ? double(traced->stats().bytes) : 0;
}

double mean(Communicator& world, double value) {
  value /= world.size();
  world.all_reduce({&value, 1, DType::f64}, Op::sum).wait();
  return value;
}

nlohmann::json take_block(const Experiment& run, OwnSession& own, Communicator& world, int steps, int before) {
  for (int i = 0; i < before; ++i) own.advance();
  if (before > 0) own.session().loss();
  own.session().take_times();
  world.barrier().wait();
  const double formula = sent_by_formula(own.session()), cpu = thread_cpu_ms();
  const std::uint64_t sent = link_bytes();
  const auto begin = Clock::now();
  for (int i = 0; i < steps; ++i) own.advance();
  const double loss = own.session().loss();
  const double ms = std::chrono::duration<double, std::milli>(Clock::now() - begin).count(),
               used = thread_cpu_ms() - cpu;
  const StepTimes t = own.session().take_times();
  nlohmann::json answer{{"ms", ms}, {"cpu_ms", used}, {"losses", {loss}}};
  answer["sent"] = mean(world, double(link_bytes() - sent) / steps);
  answer["sent_by_formula"] = mean(world, (sent_by_formula(own.session()) - formula) / steps);
  for (const auto& [name, value] : {std::pair{"forward_ms", t.forward},
                                    {"backward_ms", t.backward},
                                    {"exposed_ms", t.exposed},
                                    {"optimizer_ms", t.optimizer}})
    answer[name] = value / steps;
  const double peak = data_sheet_tflops(device_name(own.session().context().device()), run.train.precision),
               flops = run.recipe->flops_per_sample() * double(run.train.batch_size);
  const Utilisation u = utilisation(flops, ms / steps, world.size(), peak);
  answer["tflops"] = u.tflops;
  if (peak > 0) answer["mfu"] = u.mfu;
  release_device_memory();
  return answer;
}

void serve(const Options& o, Communicator& world) {
  Experiment run(Config::parse(yaml(o, world.size()), "benchmark"));
  const Case c = Case::of(o.problem);
  OwnSession own(run, world, c.batches());
  if (o.arm == "none" && c.bucket_mib == 25) {
    const auto& t = run.train.optimizer;
    own.write((std::filesystem::path(o.serve).parent_path() / c.start_file(world.size())).string(),
              {{"batches", std::to_string(c.batches())},
               {"precision", run.train.precision},
               {"columns", c.model == "mlp" ? "x label" : "tokens"},
               {"heads", o.device == "cuda" ? "16" : "4"},
               {"lr", std::to_string(t.lr)},
               {"warmup", std::to_string(t.warmup)},
               {"weight_decay", std::to_string(t.weight_decay)}});
  }
  own.move_batches();  // the peer's lie there too
  Server server(o.serve, world.rank());
  while (const auto command = server.command()) {
    std::istringstream in(*command);
    int steps = 0, before = 0;
    std::string what;
    in >> steps >> what >> before;
    if (what == "losses") {
      std::vector<double> losses;
      for (int i = 0; i < steps; ++i) losses.push_back(own.step());
      server.reply({{"losses", losses}});
    } else {
      server.reply(take_block(run, own, world, steps, before));
    }
  }
}

// One arm of the table.
struct Contestant {
  bool ddp = false;
  std::string hook;
  Case what;
  int ranks = 1;
  std::unique_ptr<Arm> arm = {};
  std::vector<double> ms = {};
  nlohmann::json last = {};  // the newest answer

  std::string name() const { return (ddp ? "ddp " : "trireme ") + hook; }
  nlohmann::json row() const {
    nlohmann::json row{{"arm", name()},
                       {"problem", what.model + " " + std::to_string(what.rows) + " a rank"},
                       {"ranks", ranks},
                       {"seed", what.seed},
                       {"bucket_mib", what.bucket_mib}};
    if (const char* lab = std::getenv("TRIREME_LAB")) row["lab"] = lab;
    if (!arm->skipped().empty()) row["skipped"] = arm->skipped();
    return row;
  }
};

using Contestants = std::vector<Contestant>;

// All of ours first: they write what their peers read.
void start_arms(const Options& o, Contestants& all, const Scratch& scratch) {
  for (const bool ddp : {false, true}) {
    int number = 0;
    for (auto& c : all) {
      ++number;
      if (c.ddp != ddp) continue;
      const std::string folder = scratch.path(std::to_string(number));
      std::vector<std::string> command;
      if (ddp) {
        command = peer_arm("ddp_hooks.py",
                           {"--file", scratch.path(c.what.start_file(c.ranks)), "--hook", c.hook, "--device", o.device,
                            "--start", std::to_string(c.what.start), "--bucket-mib", std::to_string(c.what.bucket_mib),
                            "--port", std::to_string(free_port())},
                           folder, c.ranks > 1 ? c.ranks : 0);
      } else {
        command = own_arm(o, c.hook, c.what.text(), c.ranks, folder);
      }
      c.arm = std::make_unique<Arm>(c.name(), command, c.ranks, folder);
    }
    bool any = false;
    for (auto& c : all) {
      if (c.ddp != ddp) continue;
      if (c.arm->ready(std::chrono::seconds(300)))
        any = true;
      else
        std::fprintf(stderr, "%s: %s\n", c.name().c_str(), c.arm->skipped().c_str());
    }
    if (!ddp && !any) throw DataError("bench ddp_hooks", all.front().arm->skipped());
  }
}

// The peer's arm that one of ours is held against: of the same hook, or of bf16 where it has none such.
const Contestant* rival(const Contestants& all, const Contestant& ours) {
  const Contestant* found = nullptr;
  for (const auto& c : all) {
    if (!c.ddp || c.ranks != ours.ranks || c.what.model != ours.what.model || c.what.rows != ours.what.rows) continue;
    if (c.hook == (ours.hook == "replayed" ? "none" : ours.hook)) return &c;
    if (c.hook == "bf16") found = &c;
  }
  return found;
}

nlohmann::json timed_row(const Contestants& all, const Contestant& c) {
  nlohmann::json row = c.row();
  if (c.ms.empty()) return row;
  row.update(c.last);
  row.erase("ms");
  if (!std::getenv("TRIREME_LAB")) row.erase("sent");  // nothing counts it elsewhere
  row.update({{"step_ms", quantile(c.ms, 0.5)},
              {"low_ms", quantile(c.ms, 0.25)},
              {"high_ms", quantile(c.ms, 0.75)},
              {"blocks", c.ms.size()}});
  if (const Contestant* peer = c.ddp ? nullptr : rival(all, c);
      peer && c.ms.size() > 1 && peer->ms.size() == c.ms.size()) {
    const Ratio r = ratio_of(peer->ms, c.ms);
    row.update({{"against", peer->name()}, {"ratio", r.mean}, {"ratio_low", r.low}, {"ratio_high", r.high}});
  }
  return row;
}

void add_efficiency(nlohmann::json& rows) {
  for (auto& row : rows)
    for (const auto& one : rows)
      if (one["ranks"] == 1 && one["problem"] == row["problem"] && one.contains("step_ms") && row.contains("step_ms") &&
          (one["arm"] == row["arm"] || (one["arm"] == "trireme none" && row["arm"] == "trireme replayed")))
        row["weak_efficiency"] = one["step_ms"].get<double>() / row["step_ms"].get<double>();
}

nlohmann::json measure(const Options& o, Contestants all) {
  const Scratch scratch;
  start_arms(o, all, scratch);
  for (int b = -1; b < o.blocks; ++b) {
    for (auto& c : all) {
      const int steps = b < 0 ? warm_up : timed;
      const auto answer = c.arm->ask(std::to_string(steps) + " steps " + std::to_string(b < 0 ? 0 : untimed));
      if (!answer) continue;
      c.last = *answer;
      if (b >= 0) c.ms.push_back(answer->at("ms").get<double>() / steps);
      std::fprintf(stderr, "%d %s x%d %s: %.2f ms\n", b, c.what.model.c_str(), c.ranks, c.name().c_str(),
                   answer->at("ms").get<double>() / steps);
    }
  }
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& c : all) rows.push_back(timed_row(all, c));
  add_efficiency(rows);
  return rows;
}

void add_arms(Contestants& all, const Case& what, int ranks, const std::vector<std::string>& ours,
              const std::vector<std::string>& ddp) {
  for (const auto& hook : ours) all.push_back({false, hook, what, ranks});
  for (const auto& hook : ddp) all.push_back({true, hook, what, ranks});
}

// Our none, which writes what the others start with, and the arms that are named, or all. Throws UsageError.
Contestants learners(const Options& o, const std::vector<std::string>& ours, const std::vector<std::string>& ddp,
                     const std::string& names) {
  std::map<std::string, Contestants> known;
  const auto none = [&](int seed) {
    return Contestant{false, "none", {"transformer", 64, seed, 25, start_learning}, o.ranks};
  };
  const Case what = none(2024).what;
  for (const auto& hook : ours) add_arms(known[hook], what, o.ranks, {hook}, {});
  for (const auto& hook : ddp) add_arms(known["ddp-" + hook], what, o.ranks, {}, {hook});
  for (const int seed : {2025, 2026}) known["seeds"].push_back(none(seed));
  std::vector<std::string> order = ours;
  for (const auto& hook : ddp) order.push_back("ddp-" + hook);
  order.push_back("seeds");
  std::istringstream words(names);
  std::vector<std::string> asked{std::istream_iterator<std::string>(words), {}};
  Contestants all;
  all.push_back(none(2024));
  for (const auto& name : asked.empty() ? order : asked) {
    auto found = known.extract(name);
    if (!found)
      throw UsageError("bench ddp_hooks --problem", "losses has no arm '" + name + "', or it has been named",
                       "say bf16, int8, top_k, powersgd-4, ddp-none, ddp-powersgd-4-bf16, seeds, ... once");
    if (name != "none") std::ranges::move(found.mapped(), std::back_inserter(all));
  }
  return all;
}

// What each arm has learnt, one after the other.
nlohmann::json learn(const Options& o, Contestants all) {
  const Scratch scratch;
  start_arms(o, all, scratch);
  nlohmann::json rows = nlohmann::json::array();
  for (auto& c : all) {
    nlohmann::json row = c.row();
    if (const auto answer = c.arm->ask(std::to_string(learning_steps) + " losses")) {
      const auto losses = answer->at("losses").get<std::vector<double>>();
      row["first_loss"] = losses.front();
      double sum = 0;
      for (int i = 0; i < learning_tail; ++i) sum += losses[losses.size() - 1 - std::size_t(i)];
      row["last_loss"] = sum / learning_tail;
      std::fprintf(stderr, "%s seed %d: %.4f to %.4f\n", c.name().c_str(), c.what.seed, losses.front(),
                   sum / learning_tail);
    }
    rows.push_back(row);
    c.arm->skip("done");  // its memory is free for the next one
  }
  return judged(rows);
}

// What and which part of it: "64", "512 line", "mlp buckets", "scaling", "losses int8 seeds".
std::pair<std::string, std::string> problem_of(const Options& o) {
  std::istringstream words(o.problem.empty() ? "64" : o.problem);
  std::string what, part, more;
  words >> what;
  if (what == "losses") return std::getline(words, part), std::pair{what, part};
  words >> part >> more;
  const bool number = !what.empty() && what.size() < 7 && what.find_first_not_of("0123456789") == what.npos &&
                      std::atoi(what.c_str()) > 0;
  const bool known = number          ? part.empty() || part == "line" || part == "powersgd" || part == "buckets"
                     : what == "mlp" ? part == "buckets"
                                     : part.empty() && what == "scaling";
  if (!known || !more.empty())
    throw UsageError("bench ddp_hooks --problem", "'" + o.problem + "' is none",
                     "512, 64, each also with line, powersgd or buckets; mlp buckets; scaling; losses, also with arms");
  return {what, part};
}

nlohmann::json run(const Options& o) {
  const std::vector<std::string> plain{"none", "bf16", "int8", "top_k"}, peers_plain{"none", "bf16"};
  const std::vector<std::string> low_rank{"powersgd-4", "powersgd-16", "powersgd-32"};
  std::vector<std::string> peers_low_rank = low_rank;
  for (const auto& hook : low_rank) peers_low_rank.push_back(hook + "-bf16");
  const auto [what, part] = problem_of(o);
  Contestants all;
  if (what == "losses") {
    auto ours = plain, ddp = peers_plain;
    ours.insert(ours.end(), low_rank.begin(), low_rank.end());
    ddp.insert(ddp.end(), peers_low_rank.begin(), peers_low_rank.end());
    return learn(o, learners(o, ours, ddp, part));
  }
  if (what == "scaling") {
    for (int n = 1; n <= o.ranks; n *= 2)
      for (const Case& c : {Case{"transformer", 512}, Case{"mlp", 4096}}) {
        add_arms(all, c, n, {"none"}, {"none"});
        if (n > 1 && o.device == "cuda") add_arms(all, c, n, {"replayed"}, {});
      }
    return measure(o, std::move(all));
  }
  const bool mlp = what == "mlp";
  const Case c{mlp ? "mlp" : "transformer", mlp ? 4096 : std::atoi(what.c_str())};
  add_arms(all, c, 1, {"none"}, {"none"});  // compute alone
  nlohmann::json rows;
  if (part == "buckets") {
    add_arms(all, c, o.ranks, {"none"}, {"none"});
    for (const int mib : mlp ? std::vector{100, 300} : std::vector{50, 100})
      all.push_back({false, "none", {c.model, c.rows, c.seed, mib}, o.ranks});
    return measure(o, std::move(all));
  }
  // In two rounds: memory for all arms at once is not there.
  if (part != "powersgd") {
    add_arms(all, c, o.ranks, plain, peers_plain);
    rows = measure(o, std::move(all));
  }
  if (part != "line") {
    Contestants more;
    add_arms(more, c, o.ranks, {"none"}, {});  // writes the start
    add_arms(more, c, o.ranks, low_rank, peers_low_rank);
    for (auto& row : measure(o, std::move(more))) rows.push_back(row);
  }
  return rows;
}

const Benchmarks::Entry entry({"ddp_hooks",
                               "a transformer with gradient hooks against PyTorch DDP with its own (--ranks N); "
                               "--device cuda: on GPUs",
                               run, serve, true});

}  // namespace
}  // namespace trireme::bench
