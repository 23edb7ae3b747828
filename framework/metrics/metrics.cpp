#include "framework/metrics/metrics.h"

#include "comm/error.h"
#include "framework/io/file_io.h"
#include "framework/metrics/progress.h"
#include "framework/metrics/tensorboard.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>

#include <nlohmann/json.hpp>

namespace trireme {
namespace {

// Every line has these, in this order; others follow by name, evaluations last.
constexpr std::array<std::string_view, 14> standard_keys = {"epoch",         "loss",        "lr",
                                                            "samples_per_s", "step_ms",     "data_ms",
                                                            "forward_ms",    "backward_ms", "comm_exposed_ms",
                                                            "optimizer_ms",  "bytes_sent",  "bytes_uncompressed",
                                                            "mfu",           "memory_gib"};

void append_number(std::string& s, double v) {
  if (!std::isfinite(v)) {
    s += "null";
    return;
  }
  if (v == 0 && std::signbit(v)) {
    s += "-0.0";  // readers take "-0" for an integer
    return;
  }
  std::array<char, 32> text;
  s.append(text.data(), std::to_chars(text.data(), text.data() + text.size(), v).ptr);
}

void append_pair(std::string& s, const std::string& key, double v) {
  s += ", " + nlohmann::json(key).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + ": ";
  append_number(s, v);
}

double value_or_nan(const Record& r, std::string_view key) {
  const auto it = r.values.find(std::string(key));
  return it == r.values.end() ? std::numeric_limits<double>::quiet_NaN() : it->second;
}

std::string json_line(const Record& r) {
  std::string s = "{\"step\": " + std::to_string(r.step);
  for (const auto key : standard_keys) append_pair(s, std::string(key), value_or_nan(r, key));
  for (bool eval : {false, true})
    for (const auto& [key, value] : r.values)
      if (key.starts_with("eval/") == eval && key != "step" &&
          std::find(standard_keys.begin(), standard_keys.end(), key) == standard_keys.end())
        append_pair(s, key, value);
  return s + "}\n";
}

struct Line {
  std::string text;  // with its newline
  Record record;
};

std::vector<Line> read_lines(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw DataError(file, "cannot open");
  std::vector<Line> lines;
  std::string text;
  for (int number = 1; std::getline(in, text); ++number) {
    const bool last = in.eof();  // no newline: the writer may have died within this line
    const std::string where = file + ":" + std::to_string(number);
    const auto json = nlohmann::json::parse(text, nullptr, false);
    if (json.is_discarded() && last) break;
    const auto step = json.is_object() ? json.find("step") : json.end();
    if (!json.is_object() || step == json.end() || !step->is_number_unsigned())
      throw DataError(where, "not a JSON object with a whole number 'step'", "remove the line");
    Line line{text + "\n", {step->get<std::int64_t>(), {}}};
    for (const auto& [key, value] : json.items()) {
      if (key == "step") continue;
      if (!value.is_number() && !value.is_null()) throw DataError(where, "'" + key + "' is not a number or null");
      line.record.values[key] = value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
    }
    lines.push_back(std::move(line));
  }
  if (in.bad()) throw DataError(file, "cannot read");
  return lines;
}

AppendFile open_log(const std::string& run_dir, std::int64_t last_step) {
  const std::string file = run_dir + "/metrics.jsonl";
  std::error_code error;
  const auto size = std::filesystem::file_size(file, error);
  if (!error) {
    std::string kept;
    for (const auto& line : read_lines(file))
      if (line.record.step <= last_step) kept += line.text;
    if (kept.size() != size) replace_durably(system_io(), file, kept);
  }
  return AppendFile(file);
}

}  // namespace

struct Metrics::Impl {
  AppendFile log;
  EventFile events;
  std::optional<ProgressBar> bar;
  StepRate rate;
  ProgressState shown;
  std::vector<MetricChart> charts;

  void seen(std::int64_t step, double loss) {
    rate.add(step, StepRate::Clock::now());
    shown.step = step;
    shown.loss = loss;
    const double each = rate.seconds_per_step();
    shown.eta = each > 0 ? each * double(std::max<std::int64_t>(shown.total - step, 0)) : -1;
  }
  void print(std::string_view line) {
    if (bar) bar->clear();
    std::fwrite(line.data(), 1, line.size(), stdout);
    std::fputc('\n', stdout);
    std::fflush(stdout);
  }
};

Metrics::Metrics(const std::string& run_dir, std::int64_t last_step, std::int64_t total_steps, bool terminal,
                 const std::string& unit, const std::vector<MetricChart>& charts)
    : impl_(new Impl{open_log(run_dir, last_step), EventFile(run_dir, last_step), {}, {}, {}, charts}) {
  const int columns = terminal ? terminal_columns() : 0;
  if (columns > 0) impl_->bar.emplace(columns);
  constexpr double unknown = std::numeric_limits<double>::quiet_NaN();
  impl_->shown = {last_step, total_steps, unknown, unknown, unknown, -1, unit};
  impl_->rate.add(last_step, StepRate::Clock::now());
}

Metrics::Metrics() = default;
Metrics::~Metrics() = default;
Metrics::Metrics(Metrics&&) noexcept = default;
Metrics& Metrics::operator=(Metrics&&) noexcept = default;

void Metrics::log(const Record& r) {
  if (!impl_) return;
  impl_->log.write(json_line(r));
  impl_->events.scalars(r.step, r.values);
  if (r.values.contains("loss")) {
    impl_->seen(r.step, value_or_nan(r, "loss"));
    impl_->shown.lr = value_or_nan(r, "lr");
    impl_->shown.per_second = value_or_nan(r, "samples_per_s");
    impl_->shown.mfu = value_or_nan(r, "mfu");
    if (!impl_->bar) impl_->print(progress_line(impl_->shown));
  }
  if (const auto text = evaluation_text(r, impl_->charts); !text.empty()) impl_->print(text);
  if (impl_->bar) impl_->bar->draw(impl_->shown);
}

void Metrics::progress(std::int64_t step, double loss) {
  if (!impl_) return;
  // Not read from the device in this step: the last one that was stays.
  impl_->seen(step, std::isnan(loss) ? impl_->shown.loss : loss);
  if (impl_->bar) impl_->bar->draw(impl_->shown, step == impl_->shown.total);
}

void Metrics::message(std::string_view line) {
  if (!impl_) return;
  impl_->print(line);
  if (impl_->bar) impl_->bar->draw(impl_->shown, true);
}

void Metrics::flush() {
  if (!impl_) return;
  impl_->log.sync();
  impl_->events.sync();
}

std::vector<Record> read_metrics(const std::string& file) {
  std::vector<Record> records;
  for (auto& line : read_lines(file)) records.push_back(std::move(line.record));
  return records;
}

}  // namespace trireme
