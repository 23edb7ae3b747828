// Data-parallel step of the MLP: our session and reducer against PyTorch's DistributedDataParallel over gloo.
#include "bench/mlp_step.h"

namespace trireme::bench {
namespace {

nlohmann::json run(const Options& o) {
  nlohmann::json rows = nlohmann::json::array();
  for (const int batch : {16, 128}) {
    MlpArms arms(o, batch);
    arms.ours("trireme");
    for (const char* peer : {"copy", "view"}) arms.ddp(peer);
    arms.measure(10);
    for (const auto& row : arms.rows()) rows.push_back(row);
  }
  return rows;
}

const Benchmarks::Entry entry({"ddp_step", "data-parallel MLP step (--ranks N) against PyTorch DDP over gloo", run,
                               serve_mlp_step});

}  // namespace
}  // namespace trireme::bench
