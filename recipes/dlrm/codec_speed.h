// How small rows get with a codec, and how fast it is where they lie.
#pragma once
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme::dlrm {

struct CodecSpeed {
  double ratio = 0;               // f32 bytes by coded bytes, headers counted
  double encode = 0, decode = 0;  // GB/s of f32; on the host of one thread
};

// batches: f32 [n, d] each, contiguous, all of one shape on one device; each is a chunk with its own range. All in one
// call, as an exchange codes its tables: `chunks` of them, batch after batch, over again where there are fewer. The
// best of a few passes. bound: relative. UsageError: a codec that the device lacks.
CodecSpeed measure_codec(const std::string& codec, const std::vector<at::Tensor>& batches, double bound,
                         std::size_t chunks);

}  // namespace trireme::dlrm
