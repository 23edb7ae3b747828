// The experiment of `trireme sample`.
#pragma once
#include "framework/config/watchdog.h"
#include "framework/sampler.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace trireme::sample {

// One arm: everything that its pictures follow from.
struct SampleConfig {
  std::string arm;  // its name; of a file without arms the method's
  std::string model, weights = "file", method = "plain", embeds, negative, mu_mode = "auto", sequence = "none",
                     compare_to;
  std::string device = "auto", precision = "f32", communicator = "auto", graph = "auto";
  std::int64_t seed = 0, steps = 28, count = 1, frames = 1, batch = 1, save_every = 0, threads = 0;
  std::int64_t ranks_per_picture = 0, held_out = 0, held_out_seed = 2024;
  std::vector<std::int64_t> size = {64, 64};  // height and width in pixels
  double guidance = 1, shift = 1, fps = 8, memory_capacity = 0;
  bool guidance_parallel = false, latents = false;
  WatchdogConfig watchdog;
  std::vector<std::string> prompts, methods;
  std::map<std::string, std::vector<std::string>> arms;      // name to key=value
  std::map<std::string, std::unique_ptr<Sampler>> samplers;  // those that the file names
  std::string place;                                         // of the method's keys, to begin an error
  void fields(Fields&);

  std::string settings;  // as YAML
};

struct SampleJob {
  std::vector<SampleConfig> arms;  // at least one
  std::string resolved, settings;  // of the file, as YAML, with and without where each value came from
};

// Reads the file with key=value over it. Throws UsageError file:line.
SampleJob read_job(const std::string& path, const std::vector<std::string>& overrides);

// Keys in which an arm differs from what `file`, one that its settings were written to, says: of those that change its
// pictures.
std::vector<std::string> differing_settings(const SampleConfig& arm, const std::string& yaml, const std::string& file);

// The schema as a Markdown table, with all methods.
std::string document_keys();

}  // namespace trireme::sample
