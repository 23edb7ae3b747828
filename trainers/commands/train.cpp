// `trireme train`: trains a recipe on this process, or as the parent of its ranks.
#include "comm/local/fake.h"
#include "framework/command.h"
#include "trainers/launch.h"
#include "trainers/loop.h"
#include "trainers/ranks.h"

namespace trireme {
namespace {

int train_command(const TrainOptions& options, const std::vector<std::string>& arguments) {
  if (options.print_config) {
    print_config(options);
    return 0;
  }
  const int ranks = ranks_to_start(options.ranks);
  if (ranks && options.dry_run) return train(options, *make_fake(0, ranks), 1);
  if (ranks) {
    check_config(options);  // a mistake is told once, before any rank starts
    return launch_ranks(ranks, arguments);
  }
  return on_ranks([&](Communicator& world, int local) { return train(options, world, local); });
}

const Commands::Entry registered(
    {"train", "train a recipe; the same command again resumes", [](CommandOptions& command) {
       const auto o = std::make_shared<TrainOptions>();
       command.experiment(o->file, o->overrides);
       command.number("--ranks", o->ranks, "start this many MPI ranks", {1, 100000});
       command.text("--out", o->out, "run folder (default runs/<yaml stem>)");
       command.flag("--dry-run", o->dry_run,
                    "build everything for one of --ranks ranks, print memory, bytes and collectives");
       command.flag("--print-config", o->print_config, "print the configuration and where each value came from");
       command.flag("--fresh", o->fresh, "rename an existing run folder and start over");
       return [o](const CommandLine& line) { return train_command(*o, line.words); };
     }});

}  // namespace
}  // namespace trireme
