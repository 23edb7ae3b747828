// A pipeline filled with different adapters: mLoRA (arXiv 2312.02515), a job's samples at a time, and LoRAFusion (arXiv
// 2510.00206), micro-batches of several jobs whose adapters lie side by side in one product.
//
// Rank s of P holds layers [s L / P, (s + 1) L / P) of the backbone and of every adapter. In a tick a rank takes one
// pack forward and another backward, and hands both on to its neighbours. Of a pack, ticks after it began:
//   s              forward on rank s
//   2 P - 2 - s    backward on rank s; after a step's last pack the sum of squares of its gradients goes down with it
//   2 P - 3 + s    that sum, of all layers by now, has come up to rank s (to rank 0 in tick 2 P - 2): the jobs' update
// A job's next step begins 2 P - 1 ticks after its last pack did: ranks have no time without work where other jobs fill
// these, and clipping by the norm of all layers costs no tick.
#pragma once
#include "comm/communicator.h"
#include "framework/adapter_step.h"
#include "trainers/sweep/parallel.h"

#include <functional>
#include <limits>
#include <map>
#include <vector>

namespace trireme::sweep {

class AdapterPipeline {
 public:
  struct Pack {
    AdapterBatch batch;  // counts: of the jobs' whole batches. Without rows: nothing is to do
    bool ends = true;    // the last of its jobs' step
  };
  // The pack of a step and place, the same on all ranks, asked once each, in the order in which they begin.
  using Source = std::function<Pack(std::int64_t step, std::int64_t place)>;
  static constexpr std::int64_t no_end = std::numeric_limits<std::int64_t>::max() / 4;

  // stage: this rank's layers, to which `store` is attached; it runs with checkpointing. ranks: at least two, used for
  // nothing else. All must outlive it.
  AdapterPipeline(CausalLm& stage, nn::AdapterStore& store, nn::AdapterOptimizer& optimizer, Communicator& ranks);

  // What it is filled with from now on, so many steps of it; while it is empty.
  void fill(PipelineShape shape, Source source, std::int64_t steps = no_end);
  void tick();   // collective
  void drain();  // collective: what is under way ends, and nothing begins
  void run();    // collective: all steps
  std::int64_t period() const { return pipeline_period(shape_, ranks_.size()); }  // ticks a step of all jobs
  std::int64_t bytes_sent() const { return sent_; }                               // of this rank, so far
  // Called on the last rank with a job's mean loss of each step, f32 on the device.
  void on_loss(std::function<void(std::int64_t slot, at::Tensor loss)> f) { heard_ = std::move(f); }

 private:
  struct Flight {
    Pack pack;
    at::Tensor in, out, dy, dx;  // out: on the last rank the tokens' losses
    at::Tensor squares;          // f64 [jobs]: of layers above, then with this rank's, then of all
  };
  struct Part {  // of a message
    at::Tensor* value = nullptr;
    std::vector<std::int64_t> shape;
    at::ScalarType type = at::kDouble;
    std::int64_t bytes() const;
  };
  Flight* at(std::int64_t delay);  // the pack that began so many ticks ago; null: none
  Part squares_of(Flight* f) const;
  Part activations_of(Flight* f, at::Tensor Flight::*value) const;
  void begin();
  void forward(Flight& f);
  void backward(Flight& f);
  void lose(Flight& f);
  void update(const Flight& f);
  void exchange();
  bool last() const { return ranks_.rank() == ranks_.size() - 1; }

  CausalLm& stage_;
  nn::AdapterStore& store_;
  nn::AdapterOptimizer& optimizer_;
  Communicator& ranks_;
  PipelineShape shape_;
  Source source_;
  std::function<void(std::int64_t, at::Tensor)> heard_;
  std::map<std::int64_t, Flight> flights_;  // by the tick in which they began
  at::Tensor losses_;                       // f32 [slots], of steps under way
  std::int64_t tick_ = 0, steps_ = 0, sent_ = 0;
};

}  // namespace trireme::sweep
