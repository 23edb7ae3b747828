// `trireme train`: trains a recipe on this process, or as the parent of its ranks.
#include "comm/error.h"
#include "comm/local/fake.h"
#include "framework/command.h"
#include "trainers/launch.h"
#include "trainers/loop.h"
#include "trainers/ranks.h"

namespace trireme {
namespace {

int train_command(const TrainOptions& options, const std::vector<std::string>& arguments) {
  const int found = launched_ranks();
  if (options.print_config) {
    print_config(options);
    return 0;
  }
  if (found && options.ranks && options.ranks != found)
    throw UsageError("--ranks " + std::to_string(options.ranks),
                     "this job was started with " + std::to_string(found) + " ranks",
                     "leave --ranks out under mpirun and srun");
  if (!found && options.ranks > 1 && options.dry_run) return train(options, *make_fake(0, options.ranks), 1);
  if (!found && options.ranks > 1) {
    check_config(options);  // a mistake is told once, before any rank starts
    return launch_ranks(options.ranks, arguments);
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
