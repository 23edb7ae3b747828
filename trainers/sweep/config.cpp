#include "trainers/sweep/config.h"

#include "comm/error.h"
#include "data/rng.h"
#include "framework/config/tree.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

namespace trireme::sweep {
namespace {

// "2r" or "r": a multiple of the rank; "16": itself.
std::optional<double> alpha_of(std::string_view text, std::int64_t rank) {
  const bool of_rank = text.ends_with('r');
  if (of_rank) text.remove_suffix(1);
  if (text.empty()) return of_rank ? std::optional(double(rank)) : std::nullopt;
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value) || value <= 0) return {};
  return of_rank ? value * double(rank) : value;
}

std::string short_number(double v) {
  char text[32];
  const auto [end, error] = std::to_chars(text, text + sizeof text, v);
  std::string s(text, end);
  if (const auto zero = s.find("e-0"); zero != s.npos) s.erase(zero + 2, 1);
  return s;
}

// A mapping whose keys the file chooses: names are those that read_tree() found there.
template <class T>
struct Patterns {
  std::vector<std::pair<std::string, T>>& all;
  Range<T> range;
  void fields(Fields& f) {
    for (auto& [name, value] : all) f(name, value, "of modules that match", range);
  }
};

template <class T>
bool positive(const std::vector<T>& values) {
  return !values.empty() && std::all_of(values.begin(), values.end(), [](T v) { return v > 0; });
}

}  // namespace

void SearchConfig::fields(Fields& f) {
  f("lr", lr, "learning rates");
  f("rank", rank, "ranks of adapters");
  f("batch_size", batch_size, "samples a step of a job");
  f("alpha", alpha, "LoRA's alpha: a multiple of the rank (2r), or a number");
  f("random", random, "combinations drawn by the seed; 0: all of them", {.min = 0, .max = 100'000});
  f.require(positive(lr), "lr", "learning rates are numbers above 0", "lr: [1e-4, 3e-4]");
  f.require(positive(rank) && *std::max_element(rank.begin(), rank.end()) <= 128, "rank", "ranks are 1 to 128",
            "rank: [16, 32]");
  f.require(positive(batch_size), "batch_size", "batch sizes are at least 1", "batch_size: [1, 2, 4]");
  f.require(alpha_of(alpha, 1).has_value(), "alpha", "'" + alpha + "' is no alpha", "alpha: 2r, or alpha: 16");
}

void LoraConfig::fields(Fields& f) {
  f("rslora", rslora, "scale alpha / sqrt(rank) in place of alpha / rank");
  f("dropout", dropout, "share of the adapters' input that is dropped in training", {.min = 0, .max = 0.99});
  constexpr const char* meaning =
      "modules that are adapted: a list of names or their ends after a dot, or one text: all-linear, or an expression "
      "that whole names match";
  expression ? f("targets", *expression, meaning) : f("targets", targets, meaning);
  f.require(expression ? !expression->empty() : !targets.empty(), "targets", "no module is named",
            "targets: [q_proj, v_proj]");
  constexpr const char* left_out = "modules that are not: likewise a list, or one expression";
  excluded ? f("exclude", *excluded, left_out) : f("exclude", exclude, left_out);
  Patterns<std::int64_t> ranks{rank_pattern, {.min = 1, .max = 128}};
  f.group("rank_pattern", ranks, "other ranks of modules, by expressions for the ends of names: {v_proj: 4}");
  Patterns<double> alphas{alpha_pattern, {.min = 1e-12, .max = 1e12}};
  f.group("alpha_pattern", alphas, "likewise other alphas: {v_proj: 8}");
  f.choice("init", init, {"default", "gaussian"}, "how A begins: uniform, or normal of std 1 / rank");
}

void JobTrainConfig::fields(Fields& f) {
  f("epochs", epochs, "passes over the data of each job", {.min = 1});
  f("accumulate", accumulate, "passes that a job's batch is cut into; its gradients are summed",
    {.min = 1, .max = 1024});
  f("weight_decay", weight_decay, "of AdamW", {.min = 0, .max = 10});
  f("beta1", beta1, "of AdamW", {.min = 0, .max = 0.9999});
  f("beta2", beta2, "of AdamW", {.min = 0, .max = 0.99999});
  f("eps", eps, "of AdamW", {.min = 0, .max = 1});
  f("clip_norm", clip_norm, "largest norm of a job's gradient; 0: any", {.min = 0});
  f("dpo_beta", dpo_beta, "beta of DPO", {.min = 1e-6, .max = 100});
  f("checkpointing", checkpointing, "keep each layer's input alone and run the layer again in backward");
  f.choice(
      "pad", pad, {"auto", "off", "longest"},
      "ids behind samples' ends, up to the task's longest, so that steps have one shape and are recorded; auto: where "
      "a GPU would wait for the host; never with dropout, accumulation or DPO");
  f.choice("loss_mask", loss_mask, {"completion", "full"}, "ids that count: the answers', or all");
}

void TaskConfig::fields(Fields& f) {
  f("model", model, "folder of the backbone, or its config.json where weights: random; the sweep's where empty");
  f("adapter", adapter,
    "folder of PEFT that every job goes on from, with its modules, of the search's rank and alpha; empty: new ones");
  f.choice("objective", objective, {"sft", "dpo"}, "next-token loss, or preference pairs");
  f("ranks", ranks, "ranks that the task runs on, beside other tasks; 0: all, one task after the other",
    {.min = 0, .max = 4096});
  constexpr const char* meaning = "arithmetic, a file of JSON lines, or of plain text (.txt), of which a list may be";
  const bool several = !data.texts.empty();
  several ? f("data", data.texts, meaning) : f("data", data.data, meaning);
  f.require(!several || !data.texts.empty(), "data", "names no file", "data: [a.txt, b.txt]");
  f("validation", data.validation, "file like data's to evaluate on; empty: validation_share of data");
  f("validation_share", data.validation_share, "of data that is held out", {.min = 0, .max = 0.9});
  f("template", data.chat_template, "plain, alpaca, chatml, qwen2, qwen2_5, qwen3, llama3, llama3_1, or auto");
  f("length", data.length, "longest sample in ids; of plain text each sample's", {.min = 8, .max = 1 << 20});
  std::int64_t level = data.level;
  f("level", level, "difficulty of arithmetic", {.min = 1, .max = 3});
  data.level = int(level);
  f("train", data.train, "samples of arithmetic", {.min = 1, .max = 100'000'000});
  f("held_out", data.held_out, "validation samples of arithmetic", {.min = 1, .max = 1'000'000});
  f("test", data.test, "questions for exact match: of arithmetic; of JSON lines, 0 unless said: so many held out",
    {.min = 0, .max = 1'000'000});
  f("test_file", data.test_file, "file of JSON lines of such questions, in place of test");
  f.group("search", search, "what this task tries; the sweep's where absent");
}

namespace {

struct Execution {
  SweepConfig& c;
  void fields(Fields& f) {
    f.choice(
        "arm", c.arm, {"grouped", "sequential", "loop", "wide"},
        "grouped: many jobs in one pass; sequential: one job at a time; loop, wide: other ways to run the adapters");
    f.choice("backend", c.backend, {"kernels", "grouped_mm", "bmm"}, "how grouped adapters are computed");
    f.choice(
        "parallel", c.parallel, {"auto", "gather", "pipeline"},
        "several ranks of a task: gather: each steps its own jobs and gathers the backbone's layers; pipeline: layers "
        "stay, and the jobs of all ranks fill a pipeline, between evaluations; auto: on GPUs what measured steps "
        "predict to be faster, else gather");
    f("slots", c.slots, "jobs of a rank at a time; 0: as memory allows", {.min = 0, .max = 4096});
  }
};
struct Memory {
  SweepConfig& c;
  void fields(Fields& f) {
    f("margin", c.memory_margin, "share of the capacity that jobs may fill", {.min = 0.01, .max = 1});
    f("capacity", c.memory_capacity, "bytes a rank; 0: the device's, and on a CPU no limit", {.min = 0});
  }
};
struct AdapterParallel {
  SweepConfig& c;
  void fields(Fields& f) { f("steal", c.steal, "a rank without jobs takes those that wait on others"); }
};
struct CheckpointKeys {
  SweepConfig& c;
  void fields(Fields& f) {
    f.resume_may_change(true);
    f("every", c.checkpoint_every, "passes between checkpoints; 0: none", {.min = 0});
  }
};
struct Tasks {
  SweepConfig& c;
  void fields(Fields& f) {
    for (auto& task : c.tasks) f.group(task.name, task, "a task: one model, data and search space");
  }
};

}  // namespace

void SweepConfig::fields(Fields& f) {
  f.choice("recipe", recipe, {"lora_sweep"}, "what the file describes");
  f("model", model, "folder of the backbone, or its config.json where weights: random");
  f.choice("weights", weights, {"file", "random"}, "the backbone's, or drawn by the seed: for studies of speed");
  f("pretrain", pretrain, "experiment beside this file that makes the backbone where its folder is missing");
  f("seed", seed, "of adapters, orders and draws", {.min = 0});
  f("threads", threads, "of a process; 0: as torch has it", {.min = 0, .max = 1024});
  f.choice("device", device, {"auto", "cpu", "cuda"}, "where it runs");
  f.choice("precision", precision, {"f32", "bf16", "fp8"},
           "of the backbone; fp8: bf16, and what is adapted in e4m3 with a scale a row");
  f("communicator", communicator, "between ranks");
  f.group("search", search, "what every task tries");
  f.group("lora", lora, "adapters");
  f.group("train", train, "a job's training");
  f.group("early_exit", early_exit, "which jobs go on");
  Execution execution{*this};
  f.group("execution", execution, "how jobs share passes");
  Memory memory{*this};
  f.group("memory", memory, "how many jobs a rank takes");
  AdapterParallel ap{*this};
  f.group("adapter_parallel", ap, "jobs on several ranks");
  CheckpointKeys checkpoint{*this};
  f.group("checkpoint", checkpoint, "state of the sweep");
  // A task's search begins as the sweep's, which has been read by now.
  for (auto& task : tasks) task.search = search;
  Tasks list{*this};
  f.group("tasks", list, "by name");
  // Last: settings are what stands before it.
  f.group("watchdog", watchdog,
          "a job that hangs ends with exit code 4 and a line that says where; a rank at work is waited for");
}

std::string document_keys() {
  SweepConfig sweep;
  sweep.tasks.resize(1);
  sweep.tasks[0].name = "NAME";
  return document([&](Fields& f) { sweep.fields(f); });
}

namespace {

// Keys of arithmetic beside a file of data; all of them as they are by default is a resolved file.
std::string ignored_keys(const TaskConfig& task, const config::Node& given) {
  if (task.data.data == "arithmetic") return {};
  const InstructionSpec usual, &d = task.data;
  const std::pair<const char*, bool> keys[] = {
      {"level", d.level != usual.level}, {"train", d.train != usual.train}, {"held_out", d.held_out != usual.held_out}};
  std::string list;
  bool resolved = true;
  for (const auto& [key, changed] : keys) {
    const bool there = given.find(key) != nullptr;
    resolved = resolved && there && !changed;
    if (there) list += (list.empty() ? "" : ", ") + std::string(key);
  }
  return resolved ? "" : list;
}

// What the schema of `lora:` takes from the file: names of modules, and what is one text.
void name_modules(LoraConfig& lora, const config::Node* in) {
  const auto names = [&](const char* key, auto& all, auto value) {
    const config::Node* node = in ? in->find(key) : nullptr;
    for (const auto& entry : node ? node->entries : std::vector<config::Entry>()) all.emplace_back(entry.key, value);
  };
  names("rank_pattern", lora.rank_pattern, std::int64_t(1));
  names("alpha_pattern", lora.alpha_pattern, 1.0);
  const auto is_text = [&](const char* key) {
    const config::Node* node = in ? in->find(key) : nullptr;
    return node && node->kind == config::Node::Kind::text;
  };
  if (is_text("targets")) lora.expression.emplace("all-linear");
  if (is_text("exclude")) lora.excluded.emplace();
}

// The schema lists the tasks that the file, whose tree is `root`, names.
SweepConfig read_tree(const Config& config, const config::Node& root) {
  SweepConfig sweep;
  name_modules(sweep.lora, root.find("lora"));
  const config::Node* tasks = root.find("tasks");
  for (const auto& [name, origin, value] : tasks ? tasks->entries : std::vector<config::Entry>()) {
    TaskConfig task;
    task.name = name;
    task.place = origin.place() + ": tasks." + name;
    if (const config::Node* data = value.find("data")) {
      if (data->kind == config::Node::Kind::list) task.data.texts.resize(1);
      if (data->text != "arithmetic") task.data.test = 0;
    }
    if (name.find_first_not_of("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != name.npos)
      throw UsageError(task.place, "a task's name is letters, digits, _ and -", "rename it: it names a folder");
    sweep.tasks.push_back(std::move(task));
  }
  if (sweep.tasks.empty())
    throw UsageError(config.place("tasks"), "no task is named", "tasks: {easy: {data: arithmetic, level: 1}}");
  const auto schema = [&](Fields& f) { sweep.fields(f); };
  // Printing visits the schema, which lets tasks' searches begin as the sweep's again: so reading comes last.
  sweep.resolved = config.print(schema, true);
  sweep.settings = config.print(schema, false);
  const auto watchdog = sweep.settings.rfind("\nwatchdog:");
  if (watchdog == sweep.settings.npos) throw Error(ExitCode::bug, "a sweep's settings", "do not end with watchdog");
  sweep.settings.resize(watchdog + 1);
  config.read(schema);
  const bool pairs = std::ranges::all_of(sweep.tasks, [](const TaskConfig& t) { return t.objective == "dpo"; });
  if (sweep.train.pad == "longest" && (sweep.lora.dropout > 0 || sweep.train.accumulate > 1 || pairs))
    throw UsageError(config.place("train.pad"), "no step is padded with dropout, accumulation or preference pairs",
                     "say auto, or leave it out");
  if (sweep.parallel == "pipeline" && sweep.precision == "fp8")
    throw UsageError(config.place("precision"), "stages of a pipeline are not made of FP8 codes",
                     "say execution.parallel: auto, or precision: bf16");
  if (sweep.weights == "random" && !sweep.pretrain.empty())
    throw UsageError(config.place("weights"), "are drawn, and pretrain makes a backbone", "leave one of them out");
  for (const auto& task : sweep.tasks)
    if (sweep.parallel == "pipeline" && (task.objective == "dpo" || task.ranks == 1))
      throw UsageError(task.place, task.ranks == 1 ? "one rank is no pipeline" : "preference pairs fill no pipeline",
                       "say execution.parallel: auto");
  for (auto& task : sweep.tasks) {
    if (task.model.empty()) task.model = sweep.model;
    if (task.model.empty())
      throw UsageError(task.place, "has no model", "add model: FOLDER, for all tasks or this one");
    if (!task.data.texts.empty()) task.data.data = task.data.texts[0];  // to begin an error
    task.ignored = ignored_keys(task, *tasks->find(task.name));
    task.data.seed = std::uint64_t(sweep.seed);
    task.data.pairs = task.objective == "dpo";
    task.data.full_loss = sweep.train.loss_mask == "full";
  }
  return sweep;
}

}  // namespace

void check_ignored(const SweepConfig& sweep) {
  for (const auto& task : sweep.tasks)
    if (!task.ignored.empty())
      throw UsageError(task.place, task.ignored + ": of data: arithmetic alone, and this task's is " + task.data.data,
                       "leave it out");
}

SweepConfig read_sweep(const std::string& path, const std::vector<std::string>& overrides) {
  return read_tree(Config::load(path, overrides), config::load_tree(path, overrides));
}

SweepConfig parse_sweep(const std::string& yaml, const std::string& place) {
  return read_tree(Config::parse(yaml, place), config::parse_tree(yaml, place, {}));
}

std::vector<std::string> later_keys(const std::string& settings, const SweepConfig* now) {
  const config::Node root = config::parse_tree(settings, "settings", {});
  std::vector<std::string> missing;
  const auto look = [&](const std::string& group, const std::string& key, const char* was, const std::string* value) {
    const config::Node* in = root.find(group);
    if (!(in && in->find(key)) && (!value || *value == "auto")) missing.push_back(group + "." + key + "=" + was);
  };
  look("train", "pad", "off", now ? &now->train.pad : nullptr);
  look("execution", "parallel", "gather", now ? &now->parallel : nullptr);
  // Before tasks had the key test_file, `test` said nothing of files.
  const config::Node* tasks = root.find("tasks");
  for (const auto& [name, origin, task] : tasks ? tasks->entries : std::vector<config::Entry>()) {
    const config::Node* data = task.find("data");
    if (data && data->text != "arithmetic" && !task.find("test_file")) missing.push_back("tasks." + name + ".test=0");
  }
  return missing;
}

SweepConfig begun_sweep(const std::string& settings, const std::string& place) {
  const auto later = later_keys(settings);
  return read_tree(Config::parse(settings, place, later), config::parse_tree(settings, place, later));
}

std::vector<Candidate> candidates(const SearchConfig& s, std::uint64_t seed, const std::string& place) {
  const auto all = std::int64_t(s.lr.size() * s.rank.size() * s.batch_size.size());
  if (s.random > all)
    throw UsageError(
        place, "search.random asks for " + std::to_string(s.random) + " of " + std::to_string(all) + " combinations",
        "lower it, or list more values");
  auto order = permutation(all, Rng(seed, "search"));
  order.resize(std::size_t(s.random ? s.random : all));
  std::sort(order.begin(), order.end());
  const std::size_t digits = std::to_string(order.size() - 1).size();
  std::vector<Candidate> list;
  for (const auto at : order) {
    Candidate c;
    c.batch_size = s.batch_size[std::size_t(at) % s.batch_size.size()];
    c.rank = s.rank[std::size_t(at) / s.batch_size.size() % s.rank.size()];
    c.lr = s.lr[std::size_t(at) / s.batch_size.size() / s.rank.size()];
    c.alpha = *alpha_of(s.alpha, c.rank);
    const std::string number = std::to_string(list.size());
    c.key = "lr" + short_number(c.lr) + "-r" + std::to_string(c.rank) + "-b" + std::to_string(c.batch_size);
    c.job = std::string(digits - number.size(), '0') + number + "-" + c.key;
    list.push_back(c);
  }
  return list;
}

}  // namespace trireme::sweep
