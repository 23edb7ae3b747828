#include "trainers/sweep/replay.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/json.h"
#include "trainers/sweep/verb.h"

#include <iostream>
#include <optional>

namespace trireme::sweep {
namespace {

using nlohmann::json;

class Replay {
 public:
  Replay(std::string file, const std::vector<std::string>& overrides) : file_(std::move(file)), overrides_(overrides) {}

  void line(std::string_view text) {
    ++line_;
    if (text.find_first_not_of(" \t\r") == text.npos) return;
    json o = parse_json(text);
    if (!o.is_object()) bad(o.is_discarded() ? "is no JSON" : "is no JSON object");
    if (!exits_)
      header(o);
    else
      losses(o);
  }

  std::vector<Decision> finish() {
    if (!exits_) bad("has no first line with \"task\" and \"total_steps\"");
    return std::move(decisions_);
  }

 private:
  struct Progress {
    Average average;
    std::int64_t train_step = -1, val_step = -1;
  };

  std::string where() const { return file_ + ":" + std::to_string(std::max<std::size_t>(line_, 1)); }
  [[noreturn]] void bad(const std::string& what) const {
    throw DataError(where(), what,
                    R"(first {"task", "total_steps": {"job": 100}}, then {"job", "step", "train_loss" or "val_loss"})");
  }

  void header(json& o) {
    const auto task = o.find("task"), steps = o.find("total_steps");
    if (task == o.end() || !task->is_string()) bad("the first line has no \"task\", a name");
    if (steps == o.end() || !steps->is_object() || steps->empty()) bad("the first line has no \"total_steps\", by job");
    for (const auto& [job, n] : steps->items()) {
      if (!n.is_number_integer() || n.get<double>() < 1 || n.get<double>() > 1e12)
        bad("total_steps of job '" + job + "' is no whole number from 1 on");
      total_steps_[job] = n.get<std::int64_t>();
    }
    const json too_large = o.value("too_large", json::array());
    for (const char* key : {"task", "total_steps", "too_large"}) o.erase(key);
    Config::parse(o.dump(), file_, overrides_).read([&](Fields& f) { config_.fields(f); });
    exits_.emplace(config_, total_steps_);
    if (!too_large.is_array()) bad("\"too_large\" is no list of jobs");
    for (const auto& job : too_large) {
      if (!job.is_string() || !total_steps_.contains(job.get<std::string>()))
        bad("\"too_large\" names a job that is not in total_steps");
      refuse(job.get<std::string>());
    }
  }

  void refuse(const std::string& job) {
    if (progress_.contains(job)) bad("job '" + job + "' has begun, and is too large");
    if (exits_->job(job).state == EarlyExit::State::exited) bad("job '" + job + "' has ended, and is too large again");
    take(exits_->refuse(job));
  }

  void take(std::vector<Decision> decisions) {
    for (auto& d : decisions) decisions_.push_back(std::move(d));
  }

  // The value at the key: none if the line lacks it, NaN for null.
  std::optional<double> loss(const json& o, const char* key) const {
    const auto found = o.find(key);
    if (found == o.end()) return {};
    if (found->is_null()) return std::numeric_limits<double>::quiet_NaN();
    if (!found->is_number()) bad(std::string(key) + " is neither a number nor null");
    return found->get<double>();
  }

  void losses(const json& o) {
    const auto job = o.find("job"), at = o.find("step");
    if (job == o.end() || !job->is_string()) bad("has no \"job\", a name");
    const std::string name = job->get<std::string>();
    if (!total_steps_.contains(name)) bad("job '" + name + "' is not in total_steps");
    const std::int64_t total = total_steps_[name];
    if (at == o.end() || !at->is_number_integer() || at->get<double>() < 0 || at->get<double>() > double(total))
      bad("\"step\" of job '" + name + "' is no whole number from 0 to " + std::to_string(total));
    const auto step = at->get<std::int64_t>();
    if (o.value("too_large", json()) == true) return refuse(name);
    const auto train = loss(o, "train_loss"), val = loss(o, "val_loss");
    if (!train && !val) bad("has neither \"train_loss\" nor \"val_loss\"");
    Progress& p = progress_[name];
    if ((train && step <= p.train_step) || (val && step <= p.val_step) || (train && step < p.val_step))
      bad("step " + std::to_string(step) + " of job '" + name + "' does not come after the one before it");
    if (train) {
      p.train_step = step;
      p.average.add(*train, config_.ema_alpha);
    }
    if (!val) return;
    p.val_step = step;
    take(exits_->evaluate(name, step, p.average.begun ? &p.average.value : nullptr, *val));
  }

  std::string file_;
  const std::vector<std::string>& overrides_;
  std::size_t line_ = 0;
  EarlyExitConfig config_;
  std::map<std::string, std::int64_t> total_steps_;
  std::map<std::string, Progress> progress_;
  std::optional<EarlyExit> exits_;
  std::vector<Decision> decisions_;
};

int decide(const std::vector<std::string>& words) {
  if (words.empty())
    throw UsageError("sweep decide", "no file is given", "trireme sweep decide FILE.jsonl [key=value ...]");
  for (const auto& d : replay(words[0], {words.begin() + 1, words.end()})) std::cout << d.json() << "\n";
  return 0;
}

const Verbs::Entry registered({"decide", "FILE.jsonl [key=value ...]: what early exit decides on a file of losses",
                               decide});

}  // namespace

std::vector<Decision> replay(const std::string& file, const std::vector<std::string>& overrides) {
  const auto bytes = read_file(file, std::int64_t(1) << 32);
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  Replay r(file, overrides);
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    r.line(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return r.finish();
}

}  // namespace trireme::sweep
