// `trireme scale`: one experiment on several numbers of ranks; what a step's time is made of on each, and a model of
// it. Strong scaling keeps the batch of a step, weak scaling the batch of a rank. Files in the folder:
// ranks_N/{measured.json, config.resolved.yaml}, scale.json, scale.html. What was timed is labelled measured, what the
// model says modelled, and beyond the largest measured number of ranks also extrapolated.
#include "framework/command.h"

#include "comm/error.h"
#include "framework/experiment.h"
#include "framework/io/file_io.h"
#include "framework/io/folder_lock.h"
#include "trainers/launch.h"
#include "trainers/ranks.h"
#include "trainers/scale/measure.h"
#include "trainers/scale/study.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>

#include <nlohmann/json.hpp>

namespace trireme::scale {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Options : MeasureOptions {  // folder: set in the ranks that it starts
  std::vector<int> ranks;
  bool weak = false;
  std::string out;       // empty: runs/scale-<yaml stem>
  std::string launcher;  // what starts {ranks} ranks of a program, e.g. "srun --mpi=pmix -n {ranks}"; empty: mpirun
};

std::vector<std::string> launcher_words(const std::string& launcher, int ranks) {
  std::istringstream in(launcher);
  std::vector<std::string> words;
  for (std::string word; in >> word;) {
    for (auto at = word.find("{ranks}"); at != std::string::npos; at = word.find("{ranks}"))
      word.replace(at, 7, std::to_string(ranks));
    words.push_back(word);
  }
  return words;
}

std::vector<std::string> command_of_ranks(const Options& o, int ranks, std::int64_t batch, const std::string& folder) {
  std::vector<std::string> command = o.launcher.empty() ? mpirun_prefix(ranks) : launcher_words(o.launcher, ranks);
  command.insert(command.end(), {fs::read_symlink("/proc/self/exe").string(), "scale", o.file});
  command.insert(command.end(), o.overrides.begin(), o.overrides.end());
  command.insert(command.end(), {"batch_size=" + std::to_string(batch), "--ranks", std::to_string(ranks), "--steps",
                                 std::to_string(o.steps), "--measure", folder});
  return command;
}

// Starts the ranks. Returns what rank 0 wrote, or throws; a failure of theirs is told already: `code` is not 0 then.
json run_ranks(const Options& o, int ranks, std::int64_t batch, const std::string& folder, int& code) {
  std::error_code failed;
  fs::create_directories(folder, failed);
  if (failed) throw DataError(folder, "cannot be made: " + failed.message(), "choose another --out");
  fs::remove(folder + "/measured.json", failed);
  std::cerr << "scale: " << ranks << (ranks == 1 ? " rank" : " ranks") << ", batch " << batch << std::endl;
  code = launch_command(ranks, command_of_ranks(o, ranks, batch, folder), OnStop::end);
  if (code == int(ExitCode::killed))
    throw Error(ExitCode::killed, "scale", "stopped by a signal before it was done", "the same command starts over");
  if (code) return {};
  std::ifstream in(folder + "/measured.json");
  json found = json::parse(in, nullptr, false);
  if (found.is_discarded())
    throw DataError(folder + "/measured.json", "was not written by rank 0", "the folder must be visible to all nodes");
  if (found.at("ranks") != ranks)
    throw CommError("scale",
                    "the launcher started " + found.at("ranks").dump() + " ranks, not " + std::to_string(ranks),
                    "--launcher needs {ranks}");
  return found;
}

int run(const Options& o) {
  const Experiment experiment(Config::load(o.file, o.overrides));  // a mistake is told once, before any rank starts
  const std::string out = o.out.empty() ? "runs/scale-" + fs::path(o.file).stem().string() : o.out;
  std::vector<int> counts = o.ranks;
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  std::error_code failed;
  fs::create_directories(out, failed);
  if (failed) throw DataError(out, "cannot be made: " + failed.message(), "choose another --out");
  const FolderLock lock(out);  // two studies in one folder would mix their figures
  if (!lock.warning().empty()) std::cerr << "trireme: warning: " << lock.warning() << std::endl;
  std::vector<Measured> measured;
  std::string place;  // with the largest number of ranks
  for (const int n : counts) {
    const auto batch = experiment.train.batch_size * (o.weak ? n : 1);
    if (batch % n != 0)
      throw UsageError(experiment.config.place("batch_size"),
                       std::to_string(batch) + " is not divisible by " + std::to_string(n) + " ranks",
                       "choose a multiple of every number of ranks, or --weak");
    int code = 0;
    const json found = run_ranks(o, n, batch, out + "/ranks_" + std::to_string(n), code);
    if (code) return code;
    measured.push_back(measured_of(found));
    place = found.at("place");
  }
  Study study = make_study(std::move(measured), o.weak);
  study.title = o.file;
  for (const auto& text : o.overrides) study.title += " " + text;
  const char* lab = std::getenv("TRIREME_LAB");
  study.setting =
      place + "; " +
      (lab ? lab : std::to_string(std::thread::hardware_concurrency()) + " cores on the node that started it");
  print_table(study);
  replace_durably(system_io(), out + "/scale.json", to_json(study).dump(1) + "\n");
  replace_durably(system_io(), out + "/scale.html", page(study));
  std::cout << "report: " << out << "/scale.html" << std::endl;
  return 0;
}

const Commands::Entry registered(
    {"scale", "scaling study: one experiment on several numbers of ranks, and a model of it",
     [](CommandOptions& command) {
       const auto o = std::make_shared<Options>();
       command.experiment(o->file, o->overrides);
       command.numbers("--ranks", o->ranks, "numbers of ranks, e.g. 1,2,4", {1, 100000}, command.required);
       command.flag("--weak", o->weak, "batch_size is that of a rank, not of all");
       command.number("--steps", o->steps, "timed steps", {1, 1000000});
       command.text("--out", o->out, "folder (default runs/scale-<yaml stem>)");
       command.text("--launcher", o->launcher,
                    "what starts {ranks} ranks (default mpirun), e.g. 'srun --mpi=pmix -n {ranks}'");
       command.text("--measure", o->folder, "", command.hidden);  // of the ranks that it starts
       return [o](const CommandLine&) {
         if (o->folder.empty()) return run(*o);
         return on_ranks([&](Communicator& world, int local) { return measure(*o, world, local); });
       };
     }});

}  // namespace
}  // namespace trireme::scale
