// `trireme scale`: its options, and the two sides it runs on.
#include "framework/command.h"

#include "trainers/options.h"
#include "trainers/ranks.h"
#include "trainers/scale/study.h"

namespace trireme {
namespace {

const Commands::Entry registered(
    {"scale", "scaling study: one experiment on several numbers of ranks, and a model of it", [](CLI::App& command) {
       const auto o = std::make_shared<ScaleOptions>();
       add_experiment(command, *o);
       command.add_option("--ranks", o->ranks, "numbers of ranks, e.g. 1,2,4")
           ->delimiter(',')
           ->required()
           ->check(CLI::Range(1, 100000));
       command.add_flag("--weak", o->weak, "batch_size is that of a rank, not of all");
       command.add_option("--steps", o->steps, "timed steps")->check(CLI::Range(1, 1000000));
       command.add_option("--out", o->out, "folder (default runs/scale-<yaml stem>)");
       command.add_option("--launcher", o->launcher,
                          "what starts {ranks} ranks (default mpirun), e.g. 'srun --mpi=pmix -n {ranks}'");
       command.add_option("--measure", o->measure)->group("");  // of the ranks that it starts
       return [o](const CommandLine&) {
         if (o->measure.empty()) return scale_command(*o);
         return on_ranks([&](Communicator& world, int local) { return scale_measure(*o, world, local); });
       };
     }});

}  // namespace
}  // namespace trireme
