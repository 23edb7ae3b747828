// How much of the communication hides behind backward: 1 - (step - compute alone) / communication alone, ours and
// DDP's, each from the times of one round of blocks. The ranks that only compute meet after each step, or the time of
// one would be compared with that of the slowest. Meant for the network lab, whose bandwidth sets how long
// communication takes.
#include "bench/mlp_step.h"
#include "comm/error.h"

namespace trireme::bench {
namespace {

nlohmann::json run(const Options& o) {
  MlpArms arms(o, o.problem.empty() ? 64 : std::stoi(o.problem));
  Arm& step = arms.ours("trireme");
  Arm& compute = arms.ours("compute");
  Arm& comm = arms.ours("comm");
  Arm& off = arms.ours("no overlap");
  Arm& ddp_step = arms.ddp("view");
  Arm& ddp_compute = arms.ddp("compute");
  Arm& ddp_comm = arms.ddp("comm");
  arms.measure(3);
  auto rows = arms.rows();
  const auto add = [&](const char* name, Arm& s, Arm& c, Arm& t) {
    nlohmann::json row{{"arm", name}};
    if (s.skipped().empty() && c.skipped().empty() && t.skipped().empty()) {
      std::vector<double> hidden;
      for (std::size_t i = 0; i < s.blocks_ms().size(); ++i)
        hidden.push_back(1 - (s.blocks_ms()[i] - c.blocks_ms()[i]) / t.blocks_ms()[i]);
      row["overlap"] = quantile(hidden, 0.5);
      row["low"] = quantile(hidden, 0.25);
      row["high"] = quantile(hidden, 0.75);
      row["comm_to_compute"] = t.median_ms() / c.median_ms();
    }
    rows.push_back(row);
  };
  add("trireme overlap", step, compute, comm);
  add("trireme without overlap", off, compute, comm);
  add("ddp overlap", ddp_step, ddp_compute, ddp_comm);
  return rows;
}

const Benchmarks::Entry entry({"overlap",
                               "part of communication that backward hides, against DDP (--problem SAMPLES a rank)", run,
                               serve_mlp_step});

}  // namespace
}  // namespace trireme::bench
