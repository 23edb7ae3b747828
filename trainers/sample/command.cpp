// `trireme sample`: draws pictures and videos with a diffusion transformer.
#include "framework/command.h"

#include "trainers/launch.h"
#include "trainers/ranks.h"
#include "trainers/sample/config.h"
#include "trainers/sample/run.h"

#include <filesystem>
#include <iostream>
#include <memory>

namespace trireme::sample {
namespace {

struct SampleOptions : SampleRun {
  int ranks = 0;
  bool print_config = false;
};

int sample_command(SampleOptions o, const CommandLine& line) {
  if (o.print_config) {
    std::cout << read_job(o.file, o.overrides).resolved;
    return 0;
  }
  if (o.out.empty()) o.out = "runs/" + std::filesystem::path(o.file).stem().string();
  if (const int ranks = ranks_to_start(o.ranks)) {
    read_job(o.file, o.overrides);  // a mistake is told once, before any rank starts
    return launch_ranks(ranks, line.words);
  }
  return on_ranks([&](Communicator& world, int local) { return run_sample(o, world, local); });
}

const Commands::Entry registered({"sample",
                                  "pictures and videos from a diffusion transformer; the same command again resumes",
                                  [](CommandOptions& command) {
                                    const auto o = std::make_shared<SampleOptions>();
                                    command.experiment(o->file, o->overrides);
                                    command.number("--ranks", o->ranks, "start this many MPI ranks", {1, 100000});
                                    command.text("--out", o->out, "folder of the pictures (default runs/<yaml stem>)");
                                    command.flag("--print-config", o->print_config,
                                                 "print the configuration and where each value came from");
                                    command.flag("--fresh", o->fresh, "rename an existing folder and start over");
                                    return [o](const CommandLine& line) { return sample_command(*o, line); };
                                  }});

}  // namespace
}  // namespace trireme::sample
