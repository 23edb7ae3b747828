// One of our arms in memory: a recipe with its configuration, its session, and a few fixed batches that the peer gets
// too.
#pragma once
#include "bench/bench.h"
#include "framework/experiment.h"
#include "framework/session.h"

namespace trireme::bench {

class OwnSession {
 public:
  // Collective. Reads `batches` global batches of consecutive training samples.
  OwnSession(Experiment& run, Communicator& world, int batches);
  // Rank 0 writes initial weights and all global batches for the peer: tensors by name, and `batch.K.COLUMN`.
  void write(const std::string& file, const std::map<std::string, std::string>& metadata = {});
  // From now on the columns of the batches lie on the session's device.
  void move_batches();
  // Collective: one training step on the next batch, as the loop takes it. Does not read a device.
  void advance();
  double step();  // the same, -> the global loss
  Session& session() { return session_; }
  std::size_t reduced_bytes() const { return session_.reduced_bytes(); }

 private:
  Experiment& run_;
  Communicator& world_;
  Session session_;
  std::vector<Batch> global_, mine_;
  std::int64_t step_ = 0;
};

}  // namespace trireme::bench
