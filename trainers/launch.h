// `--ranks N`: starts N MPI ranks of this program and speaks for them.
#pragma once
#include <string>
#include <vector>

namespace trireme {

// Ranks this process was launched with by mpirun, srun or another starter; 0 when it was started alone, also in a step
// of one task (an interactive one is a shell).
int launched_ranks();
// How many ranks `--ranks asked` is to start; 0: none, this process is one of its job's or alone. UsageError: that job
// has another size.
int ranks_to_start(int asked);
// Tasks of an srun step in which nothing connects them (srun without --mpi=pmix); 0 in every other case. Some MPI
// libraries make each of them a world of one rank without a word.
int tasks_alone();
// This process's rank among them, known before MPI is; 0 when it was started alone.
int launched_rank();
// Tells the parent, if launch_ranks() is that, that this rank now catches its signals.
void announce_ready();

// mpirun and its options, to be followed by a program.
std::vector<std::string> mpirun_prefix(int ranks);
// The command line that starts `arguments` (without the program) on `ranks` ranks of this program.
std::vector<std::string> mpirun_command(int ranks, const std::vector<std::string>& arguments);

// What a stop request (trainers/stop.h) means for ranks: SIGUSR1, so that they save and leave (mpirun itself would kill
// them a second after SIGTERM), or their end.
enum class OnStop { save, end };

// Runs `arguments` (without the program) on `ranks` ranks through mpirun and returns the job's exit code. Who insists
// on a stop, or asks for one with OnStop::end, ends the job: 130. mpirun's banners are hidden; a rank that died is
// named in one line, exit code 4. Readers of stdout and stderr may go away.
int launch_ranks(int ranks, const std::vector<std::string>& arguments, OnStop on_stop = OnStop::save);
// The same with a command line of its own, which must start `ranks` ranks.
int launch_command(int ranks, std::vector<std::string> command, OnStop on_stop = OnStop::save);

}  // namespace trireme
