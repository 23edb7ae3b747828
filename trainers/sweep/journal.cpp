#include "trainers/sweep/journal.h"

#include "comm/error.h"
#include "trainers/launch.h"
#include "trainers/sweep/live_table.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>

#include <nlohmann/json.hpp>

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
    : folder_(std::move(folder)),
      task_(std::move(task)),
      live_(std::make_unique<LiveLines>()),
      begun_(std::chrono::steady_clock::now()) {
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

void Journal::refused(const std::string& job) {
  if (folder_.empty()) return;
  const std::string line = ordered_json{{"job", job}, {"step", 0}, {"too_large", true}}.dump() + "\n";
  losses_ += line;
  write("losses.jsonl", line);
}

void Journal::decided(const Decision& d) {
  if (folder_.empty()) return;
  const std::string line = d.json() + "\n";
  decisions_ += line;
  ++decided_;
  write("decisions.jsonl", line);
}

// Best so far, jobs by phase, exits by reason, time left: what comes last may find no room.
std::string Journal::headline(const Roster& roster, double seconds) {
  std::map<std::string, int> count, reasons;
  double done = 0, all = 0;
  for (const auto& j : roster.jobs()) {
    ++count[phase_name(j.phase)];
    if (const auto& e = roster.exits().job(j.load.job); !e.reason.empty()) ++reasons[e.reason];
    const bool over = j.phase == Roster::Phase::exited;
    all += double((over ? j.step : j.total_steps) * j.load.batch_size);
    done += double(j.step * j.load.batch_size);
  }
  std::string line = task_ + ":";
  if (const auto best = leader(roster); best >= 0) {
    const std::string& job = roster.jobs()[std::size_t(best)].load.job;
    char text[64];
    std::snprintf(text, sizeof text, " best %.4f ", roster.exits().job(job).best);
    line += text + job + ",";
  }
  for (const auto& [name, n] : count) line += " " + std::to_string(n) + " " + name + ",";
  if (!reasons.empty()) {
    line.back() = ' ';
    line += "(";
    for (const auto& [reason, n] : reasons) line += std::to_string(n) + " " + reason + ", ";
    line.resize(line.size() - 2);
    line += "),";
  }
  const double share = all > 0 ? done / all : 1;
  if (share_begun_ < 0) share_begun_ = share;
  if (share > share_begun_ + 0.01)
    line += " at most " + duration(seconds * (1 - share) / (share - share_begun_)) + " left,";
  line.pop_back();
  return line;
}

void Journal::progress(const Roster& roster, bool now) {
  const auto time = std::chrono::steady_clock::now();
  if (folder_.empty() || (!now && time - told_ < std::chrono::seconds(2))) return;
  told_ = time;
  const TerminalSize terminal = launched_rank() == 0 ? terminal_size() : TerminalSize{};
  const bool live = terminal.columns > 0 && !now;
  const std::string line = headline(roster, std::chrono::duration<double>(time - begun_).count());
  // mpirun passes so much at once: between two pieces another rank may write.
  const std::size_t whole = launched_ranks() ? 4096 : std::size_t(-1);
  if (live) return live_->draw(live_table(line, roster, terminal.columns, terminal.rows - 1, whole));
  live_->clear();
  std::cerr << line << std::endl;
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
