// A stream beside the current one of a device: work there need not wait for what the caller enqueues meanwhile. Used
// by one thread at a time.
#pragma once
#include <functional>
#include <memory>

#include <ATen/core/Tensor.h>

namespace trireme {

class SideStream {
 public:
  explicit SideStream(at::Device device);
  ~SideStream();

  void run(const std::function<void()>& f);  // with this as the current stream
  void follow();                             // waits for all that is on the current stream
  void lead();                               // the current stream waits for all that is here
  void mark();
  void wait_host();  // for what was here at the mark

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace trireme
