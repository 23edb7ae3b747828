// `trireme check FILE`: what a recipe promises, run. A few steps on each number of ranks give equal losses; a run that
// goes on from its checkpoint in the middle ends in the same bits. Files in the folder: ranks_N/ and resumed/, run
// folders.
#include "comm/error.h"
#include "data/file.h"
#include "framework/command.h"
#include "framework/experiment.h"
#include "framework/io/folder_lock.h"
#include "framework/io/manifest.h"
#include "framework/report/run.h"
#include "trainers/launch.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <tuple>

namespace trireme {
namespace {

namespace fs = std::filesystem;

struct CheckOptions {
  std::string file, out;
  std::vector<std::string> overrides;
  std::vector<int> ranks{1, 2, 4};
  int steps = 8;
};

// Sums in another order differ by rounding, and training carries that on.
double tolerance(const std::string& precision) { return precision == "f64" ? 1e-10 : precision == "f32" ? 1e-4 : 2e-2; }

// A run's exit code; its own messages come through.
int train(const CheckOptions& o, int ranks, const std::string& folder) {
  std::vector<std::string> words{"train", o.file};
  words.insert(words.end(), o.overrides.begin(), o.overrides.end());
  words.insert(words.end(), {"steps=" + std::to_string(o.steps), "epochs=0", "log_every=1", "eval_every=0",
                             "checkpoint.every=" + std::to_string(o.steps / 2), "checkpoint.keep=2", "--out", folder});
  words.insert(words.end(), {"--ranks", std::to_string(ranks)});
  std::fprintf(stderr, "check: %s\n", folder.c_str());
  const int code = launch_ranks(ranks, words, OnStop::end);
  if (code == int(ExitCode::killed))
    throw Error(ExitCode::killed, "check", "stopped by a signal before it was done", "the same command starts over");
  return code;
}

std::vector<double> losses(const std::string& folder, int steps) {
  const Curve curve = read_runs({folder}).front().curve("loss");
  if (int(curve.y.size()) != steps)
    throw DataError(folder + "/metrics.jsonl",
                    "has " + std::to_string(curve.y.size()) + " finite losses of " + std::to_string(steps),
                    "a loss that is not finite cannot be compared");
  return curve.y;
}

// Every tensor of the last checkpoint: name, rank and checksum.
auto bits(const std::string& folder, int steps) {
  char name[32];
  std::snprintf(name, sizeof name, "/ckpt/step_%08d", steps);
  const std::string path = folder + name + "/manifest.json";
  const auto text = read_file(path, 1 << 30);
  std::vector<std::tuple<std::string, int, std::uint32_t>> all;
  for (const auto& t : Manifest::parse({reinterpret_cast<const char*>(text.data()), text.size()}, path).tensors)
    all.emplace_back(t.name, t.rank, t.crc32c);
  std::sort(all.begin(), all.end());
  return all;
}

bool tell(bool good, const std::string& line) {
  std::printf("%s  %s\n", good ? "holds " : "BROKEN", line.c_str());
  return good;
}

bool equal_losses(const CheckOptions& o, const std::string& out, const std::string& precision) {
  const auto first = losses(out + "/ranks_" + std::to_string(o.ranks.front()), o.steps);
  double largest = 0;
  for (const double l : first) largest = std::max(largest, std::abs(l));
  bool good = true;
  for (std::size_t i = 1; i < o.ranks.size(); ++i) {
    const auto other = losses(out + "/ranks_" + std::to_string(o.ranks[i]), o.steps);
    double worst = 0;
    for (std::size_t s = 0; s < other.size(); ++s) worst = std::max(worst, std::abs(other[s] - first[s]));
    char line[160];
    std::snprintf(line, sizeof line, "losses of %d and %d ranks: %.2g of the largest apart, %.0e allowed in %s",
                  o.ranks.front(), o.ranks[i], worst / largest, tolerance(precision), precision.c_str());
    good &= tell(worst <= tolerance(precision) * largest, line);
  }
  return good;
}

int check(CheckOptions o) {
  const Experiment experiment(Config::load(o.file, o.overrides));  // a mistake is told once, before any rank starts
  std::sort(o.ranks.begin(), o.ranks.end());
  o.ranks.erase(std::unique(o.ranks.begin(), o.ranks.end()), o.ranks.end());
  const std::string out = o.out.empty() ? "runs/check-" + fs::path(o.file).stem().string() : o.out;
  std::error_code failed;
  fs::create_directories(out, failed);
  if (failed) throw DataError(out, "cannot be made: " + failed.message(), "choose another --out");
  const FolderLock lock(out);
  const std::string last = out + "/ranks_" + std::to_string(o.ranks.back()), resumed = out + "/resumed";
  for (const int n : o.ranks) {
    const std::string folder = out + "/ranks_" + std::to_string(n);
    fs::remove_all(folder, failed);
    if (const int code = train(o, n, folder)) return code;
  }
  fs::remove_all(resumed, failed);
  fs::copy(last, resumed, fs::copy_options::recursive);
  char end[32];
  std::snprintf(end, sizeof end, "/ckpt/step_%08d", o.steps);
  fs::remove_all(resumed + end);
  if (const int code = train(o, o.ranks.back(), resumed)) return code;
  bool good = equal_losses(o, out, experiment.train.precision);
  good &= tell(bits(last, o.steps) == bits(resumed, o.steps),
               "a run on " + std::to_string(o.ranks.back()) + " ranks that goes on from step " +
                   std::to_string(o.steps / 2) + " ends in the same bits");
  if (!good) throw Error(ExitCode::bug, o.file, "a promise is broken", "see above; lossy hooks keep no equal losses");
  return 0;
}

const Commands::Entry registered({"check",
                                  "a recipe's promises, run: equal losses on any number of ranks, resume to the bit",
                                  [](CommandOptions& command) {
                                    const auto o = std::make_shared<CheckOptions>();
                                    command.experiment(o->file, o->overrides);
                                    command.numbers("--ranks", o->ranks, "numbers of ranks", {1, 100000});
                                    command.number("--steps", o->steps, "steps of each run", {2, 1000000});
                                    command.text("--out", o->out,
                                                 "folder of its runs (default runs/check-<yaml stem>)");
                                    return [o](const CommandLine&) { return check(*o); };
                                  }});

}  // namespace
}  // namespace trireme
