// Features of many images and texts, encoded by all ranks together.
#pragma once
#include "comm/communicator.h"
#include "data/text/tokenizer.h"
#include "framework/models/clip.h"

#include <functional>
#include <span>
#include <string>

namespace trireme {

// What encodes; all of it outlives the encoder.
class ClipEncoder {
 public:
  // fused: as nn::Clip takes it. context: tokens of a text.
  ClipEncoder(Communicator& comm, const nn::Clip& model, const Tokenizer& tokenizer, std::int64_t context, bool fused,
              at::Device device)
      : comm_(comm), model_(model), tokenizer_(tokenizer), context_(context), fused_(fused), device_(device) {}

  // Normalised pixels [m, 3, s, s] of images [first, first + m), of the parameters' type, on any device.
  using Pixels = std::function<at::Tensor(std::int64_t first, std::int64_t m)>;

  // [n, d] on the device, unit length. Collective: each rank encodes whole chunks, so that all get the same bits on any
  // number of ranks.
  at::Tensor images(std::int64_t n, const Pixels& pixels) const;
  at::Tensor texts(std::span<const std::string> texts) const;

  Communicator& comm() const { return comm_; }

 private:
  at::Tensor by_ranks(std::int64_t n, const Pixels& encode) const;

  Communicator& comm_;
  const nn::Clip& model_;
  const Tokenizer& tokenizer_;
  std::int64_t context_;
  bool fused_;
  at::Device device_;
};

}  // namespace trireme
