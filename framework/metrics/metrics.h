// What a run tells: metrics.jsonl, TensorBoard events, the console line or progress bar, the Chrome trace.
// Rank 0 only; the other ranks hold a Metrics that does nothing.
#pragma once
#include "framework/metrics/charts.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

// One line of metrics.jsonl. Keys of design section 6 and `eval/...`; non-finite values are written as null.
struct Record {
  std::int64_t step = 0;  // finished optimizer steps, from 1
  std::map<std::string, double> values;
};

class Metrics {
 public:
  // Opens the run folder for appending; lines with step > last_step (a step that a resumed run will redo) are
  // dropped. total_steps: for the ETA. terminal: progress bar with ETA on stderr, else plain lines on stdout;
  // evaluations are always lines, laid out by `charts`. unit: what samples_per_s counts ("pairs").
  Metrics(const std::string& run_dir, std::int64_t last_step, std::int64_t total_steps, bool terminal,
          const std::string& unit = "samples", const std::vector<MetricChart>& charts = {});
  Metrics();  // does nothing
  ~Metrics();
  Metrics(Metrics&&) noexcept;
  Metrics& operator=(Metrics&&) noexcept;

  // JSONL, TensorBoard and console line. With the kernel before it returns. Throws DataError (disk full).
  void log(const Record&);
  // Moves the progress bar; cheap enough for every step (drawn at most 10 times a second). NaN: not known in this step.
  void progress(std::int64_t step, double loss);
  // A line for the user that does not tear the progress bar.
  void message(std::string_view line);
  // Everything on disk (fsync); called before exit and before a checkpoint commits.
  void flush();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Reads metrics.jsonl back; a torn last line is ignored. Throws DataError with file and line.
std::vector<Record> read_metrics(const std::string& file);

}  // namespace trireme
