// Diffusion transformers: the velocity of a latent on its way from noise to a picture or a video (rectified flow).
// Layouts and names of weights are those of diffusers.
#pragma once
#include "comm/registry.h"
#include "framework/models/dit/hooks.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json_fwd.hpp>

namespace trireme {

// What a picture is drawn from, of the model's type and on its device.
struct Conditioning {
  at::Tensor text;          // [B, M, text_width]
  at::Tensor pooled;        // [B, pooled_width]; undefined: the layout has none
  at::Tensor guidance;      // f32 [B]; of a guidance-distilled model
  at::Tensor image;         // [B, C', F, H, W], appended to the channels of x (image to video); or undefined
  at::Tensor image_tokens;  // [B, I, width of the picture encoder], keys of Wan's cross-attention; or undefined
  at::Tensor modulation{};  // [B, n]: of Denoiser::modulations() at the forward's t; or undefined: it is made there
};

struct Grid {  // of tokens
  std::int64_t frames = 1, rows = 0, columns = 0;
  std::int64_t tokens() const { return frames * rows * columns; }
};

// Where a grid lies on its canvas, in tokens. Positions count modulo `wrap` where that is not 0.
struct Offsets {
  std::int64_t frames = 0, rows = 0, columns = 0;
  Grid wrap = {0, 0, 0};
};

struct DenoiserInfo {
  std::string layout;  // flux, sd3, wan, hunyuan_video
  bool joint_text = true, text_first = true;
  std::int64_t channels = 0;                 // of a latent
  std::int64_t patch = 2, patch_frames = 1;  // latent pixels and frames a token
  std::int64_t heads = 0, head_dim = 0, layers = 0;
  std::vector<std::int64_t> rope_axes;  // channels of the axes frame, row, column; empty: no rotation
  double theta = 1e4;
  std::int64_t text_width = 0, pooled_width = 0;  // 0: none
  bool distilled_guidance = false;
  std::int64_t image_channels = 0;  // of Conditioning::image
  // From the folder's trireme.json, or the layout's own.
  std::int64_t base_side = 64;     // tokens a side it was trained for
  std::int64_t base_text = 512;    // text tokens
  std::int64_t latent_factor = 8;  // pixels a side of a latent's pixel
};

// One tensor of a model.
struct DitWeight {
  // matrix: normal, of deviation std. gate: the same in random_denoiser, 0 where training begins (adaLN-Zero, arXiv
  // 2212.09748).
  enum Kind : std::uint8_t { matrix, gate, one, zero };
  std::string name;  // of diffusers
  std::vector<std::int64_t> shape;
  Kind kind = matrix;
  double std = 0.02;
};
// Where a weight comes from: a tensor of that shape, of one type and device for all.
using DitWeights = std::function<at::Tensor(const DitWeight&)>;

// One per rank; not thread-safe.
class Denoiser {
 public:
  virtual ~Denoiser() = default;
  virtual const DenoiserInfo& info() const = 0;
  // x [B, C, F, H, W] (F = 1: a picture) of the model's type, t f32 [B]: sigma in [0, 1], 1 is noise -> velocity of x's
  // shape and type. Differentiable in the weights and x. UsageError: shapes that are not the model's, hooks it has not.
  virtual at::Tensor forward(const at::Tensor& x, const at::Tensor& t, const Conditioning& condition,
                             const DitHooks& hooks = {}) = 0;
  // What forwards make of the time and the condition alone, [S, B, n] for t f32 [S]: each takes what is its own as
  // Conditioning::modulation, and weights that serve nothing else (FLUX: 6.4 of 24 GB) are read once for all of them.
  // Undefined: the layout makes nothing of the kind, or it would take more than 128 MiB.
  virtual at::Tensor modulations(const at::Tensor& /*t*/, const Conditioning& /*condition*/) { return {}; }
  // The model's own tables, on its device; RopeTable undefined: nothing there is rotated.
  virtual RopeTables rope(const Grid& grid, std::int64_t text_tokens, const Offsets& offsets = {}) const = 0;
  // Every tensor, shared with the model, in the order in which they were asked for.
  virtual std::vector<std::pair<std::string, at::Tensor>> weights() const = 0;
  // What config.json says, trireme.json's values under "trireme".
  virtual const nlohmann::json& config() const = 0;

  at::Device device() const;
  at::ScalarType dtype() const;
  // UsageError: not whole tokens.
  Grid grid(at::IntArrayRef latent) const;
};

// By "_class_name" of config.json. A layout registers itself:
//   const DenoiserLayouts::Entry registered("FluxTransformer2DModel", [](const nlohmann::json& c, const DitWeights& w)
//   {...});
using DenoiserLayouts = Factories<Denoiser, const nlohmann::json&, const DitWeights&>;

// UsageError: config asks for what no layout here has.
std::unique_ptr<Denoiser> make_denoiser(const nlohmann::json& config, const DitWeights& source);
// A transformer folder of diffusers: config.json, one safetensors file or shards with an index, and perhaps
// trireme.json. DataError with file and tensor; every tensor is used once and none is left over. Without a type: the
// one that holds all tensors as they are. `each`: called after each of them.
std::unique_ptr<Denoiser> denoiser_from_folder(const std::string& folder, at::Device device,
                                               std::optional<at::ScalarType> dtype,
                                               const std::function<void()>& each = {});
// Is the path such a folder, by its config.json? DataError: the folder of a whole pipeline, which holds one.
bool is_denoiser_folder(const std::string& path);
// Drawn on the device, equal for one seed on one kind of device.
std::unique_ptr<Denoiser> random_denoiser(const nlohmann::json& config, std::uint64_t seed, at::Device device,
                                          at::ScalarType dtype);
// What diffusers loads again, in files of at most `shard_bytes`; trireme.json with what the config has under "trireme".
void export_denoiser(const Denoiser& model, const std::string& folder, std::int64_t shard_bytes);

}  // namespace trireme
