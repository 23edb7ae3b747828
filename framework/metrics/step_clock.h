// Where the time of steps goes: on a CPU as the host sees it, on a GPU as the device's stream does, which the host only
// fills. Used by the training thread.
#pragma once
#include "comm/device.h"

#include <array>
#include <cstdint>
#include <memory>

#include <ATen/core/Tensor.h>

namespace trireme {

// ms. exposed: waiting for gradients that backward did not hide. replayed: whole steps that the host did not enqueue
// piece by piece, and that have no phases. data: on a GPU, how long it had nothing to do between
// two steps, since the host came late with the batch; NaN on a CPU, and where no two steps followed each other.
struct StepTimes {
  double forward = 0, backward = 0, exposed = 0, optimizer = 0, replayed = 0, data = 0;
};

class StepClock {
 public:
  explicit StepClock(at::Device device);  // on a GPU: of the current stream, into the trace too
  StepClock(const StepClock&) = delete;

  enum class Phase : std::uint8_t { forward, backward, exposed, optimizer, replayed };
  void begin();                       // of a step
  void pause();                       // what comes before the next step is none: an evaluation, a checkpoint
  void end(Phase phase);              // it lasted since begin() or since the last end()
  void hold(bool on) { held_ = on; }  // while it is: phases end unseen
  // Sums over the steps since the last call; on a GPU it waits for them.
  StepTimes take();

 private:
  std::array<std::int64_t, 6> sums_{};  // ns
  std::int64_t steps_ = 0, waits_ = 0;  // begun; of these, right after another
  bool running_ = false;                // on a GPU: since the last step's end
  bool held_ = false;
  std::int64_t last_ = 0;
  std::unique_ptr<StreamTimer> device_;
};

}  // namespace trireme
