// A stream beside the current one of a device: work there need not wait for what the caller enqueues meanwhile. Used
// from one thread.
#pragma once
#include <utility>

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>

namespace trireme::dlrm {

class SideStream {
 public:
  explicit SideStream(at::Device device);

  // Runs `f` with this as the current stream.
  template <class F>
  void run(F&& f) {
    const c10::StreamGuard guard(stream_);
    std::forward<F>(f)();
  }
  void follow();  // waits for all that is on the current stream
  void lead();    // the current stream waits for all that is here
  void mark() { marked_.record(stream_); }
  void wait_host() const { marked_.synchronize(); }  // for what was here at the mark

 private:
  c10::Stream current() const;
  c10::Stream stream_;
  c10::Event marked_, order_;
};

}  // namespace trireme::dlrm
