// The program `trireme`: command line, one catch, exit codes.
#include "comm/error.h"
#include "comm/local/fake.h"
#include "comm/mpi/mpi.h"
#include "comm/local/self.h"
#include "framework/metrics/metrics.h"
#include "bench/command.h"
#include "trainers/commands/data.h"
#include "trainers/commands/doctor.h"
#include "trainers/launch.h"
#include "trainers/loop.h"
#include "trainers/scale/study.h"
#include "trainers/stop.h"
#include "trainers/commands/submit.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <functional>
#include <iostream>
#include <new>
#include <optional>
#include <thread>

#include <CLI/CLI.hpp>
#include <c10/util/Exception.h>

#include <malloc.h>
#include <unistd.h>

namespace trireme {
namespace {

struct Failed {
  int code;
  std::string why;
};

// Any exception as an exit code and one line.
Failed describe(std::exception_ptr e) {
  try {
    std::rethrow_exception(e);
  } catch (const Error& x) {
    return {int(x.code()), x.what()};
  } catch (const std::bad_alloc&) {
    return {int(ExitCode::memory), "out of memory; use a smaller batch or model, or raise accumulate"};
  } catch (const c10::OutOfMemoryError& x) {
    return {int(ExitCode::memory), std::string("out of device memory: ") + x.what_without_backtrace()};
  } catch (const c10::Error& x) {
    const std::string text = x.what_without_backtrace();
    if (text.find("can't allocate memory") != std::string::npos)
      return {int(ExitCode::memory), "out of memory; use a smaller batch or model, or raise accumulate"};
    return {int(ExitCode::bug), "bug: " + text.substr(0, text.find('\n'))};
  } catch (const std::exception& x) {
    return {int(ExitCode::bug), std::string("bug: ") + x.what()};
  } catch (...) {
    return {int(ExitCode::bug), "bug: unknown exception"};
  }
}

// An error that all ranks share is told by rank 0, whose end lets mpirun end the others meanwhile (it takes a second);
// another rank's own error by that rank, later.
void let_rank_0_speak() {
  if (launched_rank() == 0) return;
  std::signal(SIGTERM, SIG_DFL);
  std::this_thread::sleep_for(std::chrono::milliseconds(2500));
}

int print_failure(const Failed& f) {
  let_rank_0_speak();
  std::cerr << "trireme: error: " << f.why << std::endl;
  return f.code;
}

// `work(world, ranks on this node)` on this process alone or as one rank of the job that it was started in.
int on_ranks(const std::function<int(Communicator&, int)>& work) {
  if (const int tasks = tasks_alone()) {
    if (launched_rank() != 0) return int(ExitCode::usage);  // one of them says it
    throw UsageError("launch",
                     "srun started " + std::to_string(tasks) + " tasks that MPI cannot connect: each would train alone",
                     "use srun --mpi=pmix, or mpirun");
  }
  catch_stop_signals();
  announce_ready();
  if (!launched_ranks()) {
    const auto self = make_self();
    return work(*self, 1);
  }
  MpiWorld mpi;
  int code = 0;
  try {
    if (mpi.world().size() != launched_ranks())
      throw UsageError("launch",
                       "this is one of " + std::to_string(launched_ranks()) + " tasks but MPI finds " +
                           std::to_string(mpi.world().size()) + " ranks: each task would train alone",
                       "use srun --mpi=pmix, or mpirun");
    code = work(mpi.world(), mpi.node_size());
  } catch (...) {
    const Failed f = describe(std::current_exception());
    let_rank_0_speak();
    mpi.abort(f.code, f.why);
  }
  mpi.finalize();
  return code;
}

// `trireme train`, on this process or as the parent of its ranks.
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

// The experiment that a subcommand works on. submit also takes key=a,b,c.
template <class Options>
void add_experiment(CLI::App* command, Options& o) {
  command->add_option("file", o.file, "experiment, a YAML file")->required();
  command->add_option("overrides", o.overrides, "key=value, over the file's values");
}

int run(int argc, char** argv) {
  CLI::App app{"Trireme: distributed training on MPI"};
  app.set_version_flag("--version", "trireme " TRIREME_VERSION);
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::simple);

  TrainOptions train_options;
  auto* train = app.add_subcommand("train", "train a recipe; the same command again resumes");
  add_experiment(train, train_options);
  train->add_option("--ranks", train_options.ranks, "start this many MPI ranks")->check(CLI::Range(1, 100000));
  train->add_option("--out", train_options.out, "run folder (default runs/<yaml stem>)");
  train->add_flag("--dry-run", train_options.dry_run,
                  "build everything for one of --ranks ranks, print memory, bytes and collectives");
  train->add_flag("--print-config", train_options.print_config,
                  "print the configuration and where each value came from");
  train->add_flag("--fresh", train_options.fresh, "rename an existing run folder and start over");

  DataOptions data_options;
  auto* data = app.add_subcommand("data", "prepare a data set");
  data->add_option("name", data_options.name, "openclipart, emoji or folder")->required();
  data->add_option("--out", data_options.out, "prepared file");
  data->add_option("--size", data_options.size, "pixels a side")->check(CLI::Range(8, 1024));
  data->add_option("--from", data_options.from, "folder: your images, or a CSV of filepath,title");
  data->add_flag("--force", data_options.force, "prepare again");

  bench::Options bench_options;
  auto* bench = app.add_subcommand("bench", "one benchmark with its peer arm");
  bench->add_option("name", bench_options.name, "which; a wrong name lists them")->required();
  bench->add_flag("--json", bench_options.json, "one JSON object on stdout");
  bench->add_option("--blocks", bench_options.blocks, "timed blocks of each arm")->check(CLI::Range(1, 1000));
  bench->add_option("--ranks", bench_options.ranks, "ranks of an arm (comm)")->check(CLI::Range(2, 1024));
  bench->add_option("--problem", bench_options.problem, "a part of it, e.g. all_reduce:1048576 of comm");
  bench->add_option("--serve", bench_options.serve)->group("");  // of the processes that a benchmark starts
  bench->add_option("--arm", bench_options.arm)->group("");

  SubmitOptions submit_options;
  auto* submit =
      app.add_subcommand("submit", "train as a Slurm job; key=a,b,c makes a job array; options of sbatch go after --");
  add_experiment(submit, submit_options);
  submit->add_option("--nodes", submit_options.nodes, "nodes")->check(CLI::Range(1, 100000));
  submit->add_option("--ranks-per-node", submit_options.ranks_per_node, "ranks on each node")
      ->check(CLI::Range(1, 10000));
  submit->add_option("--time", submit_options.time, "time limit, such as 30 (minutes) or 1-12:00:00");
  submit->add_option("--partition", submit_options.partition, "partition of the cluster");
  submit->add_option("--out", submit_options.out, "run folder (default runs/<yaml stem>); of a sweep's task K: OUT.K");
  submit->add_option("--requeues", submit_options.requeues, "how often it may queue itself again")
      ->check(CLI::Range(0, 1000000));
  submit->add_flag("--print", submit_options.print, "show the batch script, submit nothing");

  ScaleOptions scale_options;
  auto* scale =
      app.add_subcommand("scale", "scaling study: one experiment on several numbers of ranks, and a model of it");
  add_experiment(scale, scale_options);
  scale->add_option("--ranks", scale_options.ranks, "numbers of ranks, e.g. 1,2,4")
      ->delimiter(',')
      ->required()
      ->check(CLI::Range(1, 100000));
  scale->add_flag("--weak", scale_options.weak, "batch_size is that of a rank, not of all");
  scale->add_option("--steps", scale_options.steps, "timed steps")->check(CLI::Range(1, 1000000));
  scale->add_option("--out", scale_options.out, "folder (default runs/scale-<yaml stem>)");
  scale->add_option("--launcher", scale_options.launcher,
                    "what starts {ranks} ranks (default mpirun), e.g. 'srun --mpi=pmix -n {ranks}'");
  scale->add_option("--measure", scale_options.measure)->group("");  // of the ranks that it starts

  std::vector<std::string> runs;
  std::string report_out = "report.html";
  auto* report = app.add_subcommand("report", "one HTML page for one or more runs");
  report->add_option("runs", runs, "run folders")->required();
  report->add_option("--out", report_out, "file to write");

  auto* doctor_command = app.add_subcommand("doctor", "what was found, what is missing and how to get it");

  std::vector<std::string> known;
  for (const auto* command : app.get_subcommands({})) known.push_back(command->get_name());
  if (argc > 1 && argv[1][0] != '-' && std::find(known.begin(), known.end(), argv[1]) == known.end()) {
    const std::string near = nearest(argv[1], known);
    throw UsageError("command line", "unknown command '" + std::string(argv[1]) + "'",
                     (near.empty() ? "" : "did you mean " + near + "? ") + "see trireme --help");
  }
  try {
    // The words after `submit ... --` are sbatch's.
    const auto end = argc > 1 && argv[1] == std::string_view("submit")
                         ? std::find(argv, argv + argc, std::string_view("--"))
                         : argv + argc;
    if (end != argv + argc) submit_options.sbatch.assign(end + 1, argv + argc);
    app.parse(int(end - argv), argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    throw UsageError("command line", e.what(), "see trireme --help");
  }
  if (*train) return train_command(train_options, {argv + 1, argv + argc});
  if (*data) return data_command(data_options);
  if (*submit) return submit_command(submit_options);
  if (*bench) {
    if (bench_options.serve.empty()) return bench_command(bench_options);
    return on_ranks([&](Communicator& world, int) { return bench_serve(bench_options, world); });
  }
  if (*scale) {
    if (scale_options.measure.empty()) return scale_command(scale_options);
    return on_ranks([&](Communicator& world, int local) { return scale_measure(scale_options, world, local); });
  }
  if (*report) {
    write_report(runs, report_out);
    std::cout << "report: " << report_out << std::endl;
    return 0;
  }
  if (*doctor_command) return doctor();
  return 0;
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  // Activations are freed and taken again every step: returning them to the system would cost a page fault each.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  int code = 0;
  try {
    code = trireme::run(argc, argv);
  } catch (...) {
    code = trireme::print_failure(trireme::describe(std::current_exception()));
  }
#ifdef __SANITIZE_ADDRESS__
  return code;  // leaks are looked for at a normal exit
#else
  // Destructors of torch's global objects have crashed after a good run (torch_cuda linked): skip them.
  std::cout.flush();
  std::fflush(nullptr);
  _exit(code);
#endif
}
