#include "trainers/sweep/journal.h"

#include "comm/error.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>

#include <nlohmann/json.hpp>

#include <unistd.h>

namespace trireme::sweep {
namespace {

using nlohmann::ordered_json;

ordered_json number(double v) { return std::isfinite(v) ? ordered_json(v) : ordered_json(); }

std::string loss_line(const std::string& job, std::int64_t step, const char* key, double loss) {
  ordered_json o{{"job", job}, {"step", step}};
  o[key] = number(loss);
  return o.dump() + "\n";
}

std::string duration(double seconds) {
  const auto s = std::int64_t(seconds + 0.5);
  return s < 100 ? std::to_string(s) + " s" : std::to_string(s / 60) + " min";
}

}  // namespace

Journal::Journal(std::string folder, std::string task, const std::string& header)
    : folder_(std::move(folder)), task_(std::move(task)), begun_(std::chrono::steady_clock::now()) {
  restore(nlohmann::json{{"losses", header + "\n"}, {"decisions", ""}, {"decided", 0}}.dump());
}

void Journal::write(const char* file, const std::string& line) {
  std::ofstream out(folder_ + "/" + file, std::ios::app);
  out << line;
  if (!out.flush()) throw DataError(folder_ + "/" + file, "could not be written", "make room on the disk");
}

void Journal::losses(const std::string& job, std::int64_t first, const std::vector<double>& train, std::int64_t step,
                     double v) {
  if (folder_.empty()) return;
  std::string text;
  for (const double l : train) text += loss_line(job, ++first, "train_loss", l);
  text += loss_line(job, step, "val_loss", v);
  losses_ += text;
  write("losses.jsonl", text);
}

void Journal::decided(const Decision& d) {
  if (folder_.empty()) return;
  const std::string line = d.json() + "\n";
  decisions_ += line;
  ++decided_;
  write("decisions.jsonl", line);
}

void Journal::progress(const Roster& roster, bool now) {
  const auto time = std::chrono::steady_clock::now();
  if (folder_.empty() || (!now && time - told_ < std::chrono::seconds(2))) return;
  told_ = time;
  std::map<std::string, int> count, reasons;
  double done = 0, all = 0;
  std::string best;
  double loss = std::numeric_limits<double>::infinity();
  for (const auto& j : roster.jobs()) {
    static const char* const names[] = {"queued", "running", "at the cut", "parked", "done", "exited"};
    ++count[names[int(j.phase)]];
    const auto& e = roster.exits().job(j.load.job);
    if (!e.reason.empty()) ++reasons[e.reason];
    if (e.best < loss && e.reason != "diverging" && e.reason != "underperforming") loss = e.best, best = j.load.job;
    const bool over = j.phase == Roster::Phase::exited;
    all += double((over ? j.step : j.total_steps) * j.load.batch_size);
    done += double(j.step * j.load.batch_size);
  }
  std::string line = task_ + ":";
  for (const auto& [name, n] : count) line += " " + std::to_string(n) + " " + name + ",";
  if (!reasons.empty()) {
    line.back() = ' ';
    line += "(";
    for (const auto& [reason, n] : reasons) line += std::to_string(n) + " " + reason + ", ";
    line.resize(line.size() - 2);
    line += "),";
  }
  if (!best.empty()) {
    char text[64];
    std::snprintf(text, sizeof text, " best %.4f ", loss);
    line += text + best + ",";
  }
  const double share = all > 0 ? done / all : 1, seconds = std::chrono::duration<double>(time - begun_).count();
  if (share_begun_ < 0) share_begun_ = share;
  if (share > share_begun_ + 0.01)
    line += " at most " + duration(seconds * (1 - share) / (share - share_begun_)) + " left,";
  line.back() = ' ';
  const bool terminal = isatty(STDERR_FILENO);
  std::cerr << (terminal ? "\r\033[K" : "") << line << (terminal && !now ? "" : "\n") << std::flush;
}

std::string Journal::save() const {
  return nlohmann::json{{"losses", losses_}, {"decisions", decisions_}, {"decided", decided_}}.dump();
}

void Journal::restore(const std::string& text) {
  if (folder_.empty()) return;
  const auto all = nlohmann::json::parse(text);
  losses_ = all.at("losses").get<std::string>();
  decisions_ = all.at("decisions").get<std::string>();
  decided_ = all.at("decided").get<std::int64_t>();
  replace_durably(system_io(), folder_ + "/losses.jsonl", losses_);
  replace_durably(system_io(), folder_ + "/decisions.jsonl", decisions_);
}

bool saved_in(const std::string& folder) {
  std::error_code ignored;
  return std::filesystem::exists(folder + "/ckpt", ignored) && !std::filesystem::is_empty(folder + "/ckpt", ignored);
}

}  // namespace trireme::sweep
