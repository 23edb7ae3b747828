// Gradient hooks: step time of the MLP with compressed gradients, against none and against DDP's own hooks. Only over a
// network that is the limit does compression pay: run it in tests/net/lab.
#include "bench/mlp_step.h"

namespace trireme::bench {
namespace {

nlohmann::json run(const Options& o) {
  MlpArms arms(o, o.problem.empty() ? 16 : std::stoi(o.problem));
  arms.ours("trireme");
  for (const char* hook : {"bf16", "int8", "top_k", "powersgd"}) arms.ours(hook);
  for (const char* peer : {"view", "bf16", "powersgd"}) arms.ddp(peer);
  arms.measure(3);
  return arms.rows();
}

const Benchmarks::Entry entry({"compression",
                               "gradient hooks against none and against DDP's (--problem SAMPLES a rank)", run,
                               serve_mlp_step});

}  // namespace
}  // namespace trireme::bench
