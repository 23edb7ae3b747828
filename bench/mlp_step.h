// The data-parallel MLP of several benchmarks: 1024-2048-2048-2048-10, plain SGD, one thread a rank, the same weights,
// batches and bucket sizes in our arms and in PyTorch's DistributedDataParallel over gloo.
#pragma once
#include "bench/bench.h"

namespace trireme::bench {

// Serves our arm o.arm with o.problem samples a rank: "trireme"; "no overlap"; "compute" (each rank for itself, nothing
// is sent); "comm" (the bytes of a step and nothing else); otherwise the name of a gradient hook.
void serve_mlp_step(const Options& o, Communicator& world);

// One run's arms, all on o.ranks ranks. The first one of ours must be ready before a peer starts: it writes what peers
// read.
class MlpArms {
 public:
  MlpArms(const Options& o, int batch_a_rank) : o_(o), batch_(batch_a_rank) {}
  Arm& ours(const std::string& arm);
  // ddp_step.py's: copy, view (gradients as bucket views), powersgd, bf16, compute, comm.
  Arm& ddp(const std::string& arm);
  void measure(int steps) { alternate(arms_, steps, o_.blocks); }
  // A row for each arm, with ratio = its time / that of the first arm.
  nlohmann::json rows() const;

 private:
  Arm& add(const std::string& name, const std::vector<std::string>& command, const std::string& folder);

  const Options& o_;
  int batch_;
  Scratch scratch_;
  std::vector<std::unique_ptr<Arm>> owned_;
  std::vector<Arm*> arms_;
};

}  // namespace trireme::bench
