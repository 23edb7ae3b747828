// How a training step's time depends on the number of ranks: a latency and a bandwidth for messages (Hockney's model),
// fitted to collectives timed alone, and compute time linear in the samples of a rank.
#pragma once
#include <cstdint>
#include <vector>

namespace trireme::scale {

// One collective timed alone on `ranks` ranks: it sends `messages` messages and `bytes` bytes a rank.
struct Exchange {
  int ranks = 0;
  double buffer_bytes = 0, messages = 0, bytes = 0, seconds = 0;
};

// t = messages * alpha + bytes / beta, by least squares of the relative error; alpha >= 0, beta > 0.
struct Link {
  double alpha = 0;  // s
  double beta = 0;   // bytes/s
  double seconds(double messages, double bytes) const { return messages * alpha + bytes / beta; }
};
Link fit_link(const std::vector<Exchange>& exchanges);

// Messages and bytes that one rank sends in an all-reduce of `buffer_bytes`.
double all_reduce_messages(int ranks);
double all_reduce_bytes(int ranks, double buffer_bytes);

// Mean times of a step, in ms, over its ranks.
struct Spread {
  double min = 0, mean = 0, max = 0;
};

// What was measured on one number of ranks.
struct Measured {
  int ranks = 0;
  double batch = 0;                                    // samples of all ranks in a step
  double step_ms = 0;                                  // median over steps of the slowest rank's time
  Spread data, forward, backward, exposed, optimizer;  // exposed: communication that backward did not hide
  double calls = 0, bytes = 0;                         // collectives, and bytes that a rank sends, in a step
  std::vector<Exchange> exchanges;

  // Time of a step that is not waiting for other ranks.
  double local_ms() const { return data.mean + forward.mean + backward.mean + optimizer.mean; }
};

struct Prediction {
  int ranks = 0;
  double local_ms = 0, comm_ms = 0, exposed_ms = 0;
  double step_ms() const { return local_ms + exposed_ms; }
};

class Model {
 public:
  // Fits to all of `measured`; at least one of them has more than one rank. `weak`: the batch grows with the ranks.
  Model(const std::vector<Measured>& measured, bool weak);

  Prediction predict(int ranks) const;
  const Link& link() const { return link_; }
  double hidden() const { return hidden_; }  // share of the backward time that hides communication

 private:
  bool weak_;
  Link link_;
  double batch_ = 0;                    // of one rank (weak) or of all (strong)
  double local_ = 0, local_slope_ = 0;  // ms, ms a sample of a rank
  double whole_ = 0, whole_slope_ = 0;  // bytes sent over (n-1)/n, and its growth a rank
  double calls_ = 0, hidden_ = 0, backward_share_ = 0;
};

// Speed relative to perfect scaling from `one`: 1 is perfect.
double efficiency(const Measured& one, int ranks, double batch, double step_ms);

}  // namespace trireme::scale
