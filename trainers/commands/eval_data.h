// What `trireme eval` asks a model: pictures with their captions and classes, from any data that it reads.
#pragma once
#include "data/image_text/open_pairs.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace trireme {

struct EvalSpec {
  PairsSpec source;
  bool may_be_set = true;            // its one file may be a folder in CLIP_benchmark's layout
  std::int64_t max_per_caption = 0;  // of the training split; 0: all
  std::string split;  // held_out, train or all; empty: `prepared_split` of a prepared file, of other data all
  std::string prepared_split = "held_out";
  std::string classes, templates;  // files, one name or template a line; empty: what the data says

  std::string name() const;  // for messages
};

// What an experiment holds out, as its YAML says; of a run, config.resolved.yaml. DataError: it does not say.
EvalSpec data_of_config(const std::string& file);
EvalSpec data_of_run(const std::string& run);

struct EvalData {
  std::string name;  // as the user calls it
  std::string what;  // "455 pairs (held_out) of FILE"
  std::int64_t size = 0;
  std::function<Picture(std::int64_t)> picture;    // of [0, size); thread safe
  std::vector<std::vector<std::string>> captions;  // of each picture; empty: there are none
  std::vector<std::int64_t> labels;                // class of each picture; empty: there are none
  std::vector<std::string> classes, templates;     // names by number
  std::vector<std::string> notes;                  // what was left out, a line each
  double broken_share = 0.01;                      // of pictures that cannot be decoded
  std::function<std::string()> identity;           // Pairs::identity; old prepared files are read through for it
  std::vector<std::string> files;                  // that it lies in: real paths, sorted
  bool is_set = false;                             // in CLIP_benchmark's layout: it has no parts
};

// DataError, UsageError with the cure: nothing there, a tar that is cut short, no picture in the split, as many names
// as there are no classes.
EvalData open_eval_data(const EvalSpec& spec);

// What a probe is fitted to, never what it is tested on: where `file` is the tested data, its train part, and `tested`
// and `data` become the held-out part. UsageError: they cannot be told apart.
EvalData open_probe_data(const std::string& file, EvalSpec& tested, EvalData& data);

}  // namespace trireme
