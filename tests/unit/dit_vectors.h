// A small diffusion transformer of tests/reference/make_dit_vectors.py with its inputs and diffusers' outputs.
#pragma once
#include "framework/formats/safetensors.h"
#include "framework/models/dit/block_cache.h"
#include "framework/models/dit/denoiser.h"
#include "tests/unit/reference_files.h"

#include <cmath>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>

namespace trireme::test {

// The vectors are another program's f32, and MKL rounds by the kind of CPU: here in one way on all. It reads this at its
// first product.
inline const bool products_alike = ::setenv("MKL_CBWR", "COMPATIBLE", 0) == 0;

// TRIREME_DIT_VECTORS: a folder of the same format, instead of the committed one.
inline std::string dit_vectors(const std::string& name) {
  const char* other = std::getenv("TRIREME_DIT_VECTORS");
  return other ? std::string(other) + "/" + name : trireme::test::reference_file("dit/" + name);
}

// The largest error, in deviations of the truth.
inline double error(const at::Tensor& a, const at::Tensor& truth) {
  if (a.sizes() != truth.sizes()) return NAN;
  const at::Tensor t = truth.to(at::kDouble);
  return ((a.to(at::kDouble) - t).abs().max() / t.std()).item<double>();
}

inline bool same(const at::Tensor& a, const at::Tensor& b) { return a.equal(b); }

struct DitCase {
  explicit DitCase(const std::string& name, at::ScalarType type = at::kFloat)
      : model(denoiser_from_folder(dit_vectors(name), at::kCPU, type)),
        file(dit_vectors(name) + "/vectors.safetensors") {
    const auto get = [&](const char* n) { return file.has(n) ? file.tensor(n).to(type) : at::Tensor(); };
    x = get("x");
    t = file.tensor("t");
    c = {get("text"), get("pooled"), file.has("guidance") ? file.tensor("guidance") : at::Tensor(), get("image"),
         get("image_tokens")};
  }
  at::Tensor run(const DitHooks& hooks = {}) const {
    const at::NoGradGuard none;
    return model->forward(x, t, c, hooks);
  }
  std::unique_ptr<Denoiser> model;
  Safetensors file;
  at::Tensor x, t;
  Conditioning c;
};

// Streams between blocks, as a block cache sees them.
struct StreamWatch : BlockCache {
  std::optional<BlockStreams> before_blocks(const BlockStreams& x, const std::function<at::Tensor()>&) override {
    in = x;
    return {};
  }
  std::optional<BlockStreams> after_first_block(const BlockStreams&, const BlockStreams& x) override {
    first = x;
    return {};
  }
  void after_blocks(const BlockStreams&, const BlockStreams&, const BlockStreams& x) override { out = x; }
  BlockStreams attention(std::int64_t layer, const std::function<BlockStreams()>& run) override {
    layers.push_back(layer);
    return run();
  }
  BlockStreams in, first, out;
  std::vector<std::int64_t> layers;
};

}  // namespace trireme::test
