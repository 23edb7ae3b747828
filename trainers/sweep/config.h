// The experiment of `trireme sweep`.
#pragma once
#include "data/text/instructions.h"
#include "framework/config/config.h"
#include "framework/config/watchdog.h"
#include "trainers/sweep/early_exit.h"

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace trireme::sweep {

// Values of which a task tries every combination, or `random` of them drawn by the seed.
struct SearchConfig {
  std::vector<double> lr = {1e-5, 5e-5, 2e-4, 3e-4, 5e-4};
  std::vector<std::int64_t> rank = {16, 32, 64}, batch_size = {1, 2, 4, 8};
  std::string alpha = "2r";  // a multiple of the rank ("2r", "r"), or a number
  std::int64_t random = 0;   // 0: the whole grid
  void fields(Fields&);
};

struct LoraConfig {
  bool rslora = false;
  double dropout = 0;
  // As PEFT has them (framework/formats/peft.h). expression, excluded: where `targets` or `exclude` is one text, in
  // place of the list.
  std::vector<std::string> targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  std::optional<std::string> expression, excluded;
  std::vector<std::string> exclude;
  std::vector<std::pair<std::string, std::int64_t>> rank_pattern;
  std::vector<std::pair<std::string, double>> alpha_pattern;
  std::string init = "default";
  void fields(Fields&);
};

struct JobTrainConfig {
  std::int64_t epochs = 3, accumulate = 1;
  double weight_decay = 0.01, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, clip_norm = 1, dpo_beta = 0.1;
  bool checkpointing = false;
  std::string loss_mask = "completion", pad = "auto";
  void fields(Fields&);
};

struct TaskConfig {
  TaskConfig() { data.test = 200; }  // of arithmetic
  std::string name;
  std::string model, adapter, objective = "sft";
  std::int64_t ranks = 0;  // 0: all
  InstructionSpec data;
  SearchConfig search;
  std::string place;    // in the file, to begin an error
  std::string ignored;  // keys of arithmetic that are given beside a file of data, comma-separated
  void fields(Fields&);
};

struct SweepConfig {
  std::string recipe = "lora_sweep", model, weights = "file", pretrain;
  std::int64_t seed = 2024, threads = 0;
  std::string device = "auto", precision = "f32", communicator = "auto";
  SearchConfig search;
  LoraConfig lora;
  JobTrainConfig train;
  EarlyExitConfig early_exit;
  std::string arm = "grouped", backend = "kernels", parallel = "auto";
  double memory_margin = 0.9, memory_capacity = 0;
  std::int64_t slots = 0, checkpoint_every = 200;
  bool steal = true;
  std::vector<TaskConfig> tasks;
  WatchdogConfig watchdog;
  std::string resolved, settings;  // as YAML: with where each value came from; without it and the watchdog
  void fields(Fields&);
};

// One configuration of a task's search space.
struct Candidate {
  std::string job;  // its name: the number in the task's list and the key, "07-lr3e-4-r16-b2"; names sort as the list
  double lr = 0, alpha = 0;
  std::int64_t rank = 0, batch_size = 0;
  std::string key = {};  // of its values alone: what its random numbers are keyed by
};

// Reads the file with key=value over it. Throws UsageError file:line.
SweepConfig read_sweep(const std::string& path, const std::vector<std::string>& overrides);
SweepConfig parse_sweep(const std::string& yaml, const std::string& place);
// From the settings that a sweep began with: keys that came later are as it was without them.
SweepConfig begun_sweep(const std::string& settings, const std::string& place);
// Of keys that came after these settings, as key=value what a sweep had without them; with `now`, of those alone that
// it leaves at auto.
std::vector<std::string> later_keys(const std::string& settings, const SweepConfig* now = nullptr);

// Throws UsageError where a task gives keys that nothing would look at. Of new sweeps: old ones go on.
void check_ignored(const SweepConfig& sweep);

// The schema as a Markdown table, with one task for all.
std::string document_keys();

// Every combination in the order lr, rank, batch size, the last running fastest; or a seeded draw of `random` of them,
// without repetition. Throws UsageError at `place`.
std::vector<Candidate> candidates(const SearchConfig& search, std::uint64_t seed, const std::string& place);

}  // namespace trireme::sweep
