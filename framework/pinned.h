// Host memory from which copies to a GPU need no wait: a few buffers in turn, each pinned once and used again when the
// GPU has read it. Pinning costs more than the copy of a batch.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

// Used by one thread.
class PinnedBuffers {
 public:
  explicit PinnedBuffers(at::Device device);  // where copies go; a CPU: plain memory takes the same way
  ~PinnedBuffers();
  PinnedBuffers(PinnedBuffers&&) noexcept;
  PinnedBuffers& operator=(PinnedBuffers&&) noexcept;

  // from[i] to to[i], of equal shapes and types; from on the host, to on the device and contiguous. In the order of the
  // device's current stream. Waits for the device only where all buffers are still to be read.
  void copy(const std::vector<at::Tensor>& from, const std::vector<at::Tensor>& to);

  // Of all of them in this process, since it began.
  static std::int64_t made();

 private:
  struct Piece;
  Piece& next(std::int64_t bytes);
  at::Device device_;
  std::vector<std::unique_ptr<Piece>> buffers_;
  std::size_t turn_ = 0;
};

}  // namespace trireme
