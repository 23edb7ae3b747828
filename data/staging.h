// The way of batches to a GPU: pinned host memory, which worker threads fill, and device memory, to which it travels on
// a stream of its own while the GPU still works on the batch before.
#pragma once
#include "data/dataset.h"

#include <memory>

namespace trireme {

class Staging {
 public:
  explicit Staging(at::Device device);  // a GPU
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Host and device memory of one batch.
  class Slot : public Staged {
   public:
    virtual std::uint8_t* host() = 0;                 // pinned; filled before send()
    virtual at::Tensor send(std::int64_t bytes) = 0;  // u8 [bytes] on the device, once wait() was called
  };
  // At least `bytes`. Memory that a batch has left is used again, once the GPU is done with it: this waits for it. May
  // be called by any thread, and the slot given up by any, also after the Staging is gone.
  std::shared_ptr<Slot> take(std::int64_t bytes);

 private:
  struct Pool;
  std::shared_ptr<Pool> pool_;
};

}  // namespace trireme
