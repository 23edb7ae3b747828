// What a method may put in the place of a denoiser's blocks, or of their attention. The model calls it within a
// forward; a cache that reuses nothing leaves the forward bit-identical.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>

#include <ATen/core/Tensor.h>

namespace trireme {

// Tokens of the two streams between blocks or what one layer's attention adds to them: [B, N, D] and [B, M, D]. text is
// undefined where the text is no stream (Wan).
struct BlockStreams {
  at::Tensor image, text;
};

// Used by one forward at a time.
class BlockCache {
 public:
  virtual ~BlockCache() = default;
  // Before the first block. A value goes to the final layer, and no block runs. modulated() makes what the first
  // block's attention would read of the image: LayerNorm, then shift and scale (Wan: the projected time embedding).
  virtual std::optional<BlockStreams> before_blocks(const BlockStreams& in,
                                                    const std::function<at::Tensor()>& modulated) {
    return {};
  }
  // After the first block: a value goes to the final layer, and no other block runs.
  virtual std::optional<BlockStreams> after_first_block(const BlockStreams& in, const BlockStreams& out) { return {}; }
  // What the self- or joint attention of a layer gives after its output projection, before its gate; a single block of
  // Flux, whose projection also takes the MLP: the attention alone, both streams in `image` or as the layout has them.
  virtual BlockStreams attention(std::int64_t layer, const std::function<BlockStreams()>& run) { return run(); }
  // After the last block, if it ran: first_out is what the first block gave.
  virtual void after_blocks(const BlockStreams& in, const BlockStreams& first_out, const BlockStreams& out) {}
};

}  // namespace trireme
