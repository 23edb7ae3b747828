// What a method of sampling is (`trireme sample`, YAML key `method`). The engine owns prompts, noise, the loop over
// steps, Euler's step, pictures, reports and resuming; a method says which levels are passed and what the velocity is.
//
// A batch is on all ranks of `SampleContext::comm()`: each holds the same x, calls the same members in the same order
// and must come to the same velocity, to the bit. Noise follows from a picture's seed, never from a rank.
#pragma once
#include "comm/archive.h"
#include "comm/communicator.h"
#include "comm/registry.h"
#include "framework/config/config.h"
#include "framework/models/dit/denoiser.h"
#include "framework/models/dit/flow_schedule.h"
#include "framework/models/dit/hooks.h"
#include "framework/models/dit/latents.h"
#include "framework/models/dit/level_modulations.h"

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>
#include <nlohmann/json_fwd.hpp>

namespace trireme {

struct Prompt {
  std::string text;
  std::uint64_t seed = 0;
  std::int64_t index = 0;  // of the picture in the whole job
};

// One batch of pictures on their way.
struct Sampling {
  std::vector<Prompt> prompts;
  Conditioning condition, no_condition;  // the latter's text undefined: no guidance
  double guidance = 1;
  at::Tensor x;                // f32 [B, C, F, H, W], latents
  std::vector<double> sigmas;  // steps + 1, the last 0
  std::int64_t step = 0;       // the one about to be taken: sigmas[step] -> sigmas[step + 1]
  Grid grid;                   // tokens of x

  std::int64_t steps() const { return std::int64_t(sigmas.size()) - 1; }
  double sigma() const { return sigmas[std::size_t(step)]; }
};

// Unit normal values, a pure function of (seed, draw, element). f32 on `device`. draw 0: where a picture begins; other
// numbers are a method's own. Several prompts: stacked along a new first dimension.
at::Tensor drawn_noise(std::uint64_t seed, std::uint64_t draw, at::IntArrayRef shape, at::Device device);
at::Tensor drawn_noise(const std::vector<Prompt>& prompts, std::uint64_t draw, at::IntArrayRef shape,
                       at::Device device);

// What a method sees of the job. One per rank; outlives the method.
class SampleContext {
 public:
  SampleContext(Communicator& ranks, Denoiser& model, const LatentCodec& codec, at::Device device, at::ScalarType type)
      : device(device), dtype(type), ranks_(ranks), model_(model), codec_(codec) {}

  Communicator& comm() { return ranks_; }  // the ranks that share a picture; size 1: this one alone
  Denoiser& model() { return model_; }
  const LatentCodec& codec() const { return codec_; }
  const at::Device device;
  const at::ScalarType dtype;  // the model computes in it; x stays f32

  // The job's settings.
  std::int64_t steps = 28, height = 0, width = 0, frames = 1;  // pixels; frames of latents
  FlowShift shift;
  SequenceParallel* parallel = nullptr;  // guided() hands it on where hooks name no other
  // Ranks that compute the two halves of guidance beside each other: this one's half is its rank (0: conditional).
  Communicator* halves = nullptr;
  LevelModulations* modulations = nullptr;  // guided() takes what they make for all levels of a picture at once

  std::function<void(std::string_view line)> message = [](std::string_view) {};  // for the user, from rank 0
  // A value of this step for the report: one series a name ("active_share").
  std::function<void(std::string_view name, double value)> record = [](std::string_view, double) {};

 private:
  Communicator& ranks_;
  Denoiser& model_;
  const LatentCodec& codec_;
};

// Velocity at level sigma, f32 of x's shape: conditional and unconditional halves in one batch, v = vu + g (vc - vu);
// without no_condition or with guidance 1 the conditional one alone. x may be a part of the canvas: conditions are used
// as they are.
at::Tensor guided(SampleContext& context, const Sampling& s, const at::Tensor& x, double sigma,
                  const DitHooks& hooks = {});

// A picture of what a method did, for the sheet: f32 [B, rows, columns] in [0, 1], shown grey below the pictures.
struct SampleMap {
  std::string name;
  at::Tensor values;
};

// What a rank will hold of one picture beside the weights, known before a weight is read.
struct SampleMemory {
  std::int64_t tokens = 0;         // of the picture's part that one forward sees
  std::int64_t cached_layers = 0;  // whose keys and values of all tokens are kept
  std::int64_t canvases = 0;       // f32, of the latent's size, that are kept
  bool batched = true;             // pictures of a batch share a forward, whose tokens ranks may share
  std::int64_t parts = 1;          // else: of a picture, of so many tokens each
  std::int64_t parts_at_once = 1;  // in one forward, of any pictures
};

class Sampler {
 public:
  virtual ~Sampler() = default;
  // Its keys, under its own name.
  virtual void fields(Fields&) {}
  // Once, after the model is loaded: what cannot work is refused here (UsageError, on all ranks).
  virtual void setup(SampleContext&) {}
  // `grid`: of the whole picture.
  virtual SampleMemory memory(const DenoiserInfo&, const Grid& grid) const { return {.tokens = grid.tokens()}; }
  // How many ranks work on one picture where the file says nothing: 1, or 0 for all.
  virtual std::int64_t ranks_per_picture() const { return 1; }
  // x is noise of the size asked for. Sets sigmas, and may replace x, grid and step. By default flow_sigmas with the
  // job's shift. No forward is made here: the engine saves and stops between steps.
  virtual void begin(Sampling& s, SampleContext& context);
  // Steps of a batch whose schedule has so many, and those that this one has taken: more than s.step where stepped()
  // has turned it back.
  virtual std::int64_t steps_in_all(std::int64_t steps) const { return steps; }
  virtual std::int64_t steps_taken(const Sampling& s) const { return s.step; }
  // f32 of x's shape, guidance applied. By default guided().
  virtual at::Tensor velocity(Sampling& s, SampleContext& context);
  // After Euler's step, which has counted s.step up. May begin another pass: replace x and grid, and turn step back.
  virtual void stepped(Sampling&, SampleContext&) {}
  // What changes later steps, for save_every: visited after stepped(), and after begin() when it is restored.
  virtual void state(Archive&) {}
  // True: caches of tokens are not saved, so the engine saves only after a step for which this says so.
  virtual bool may_save(const Sampling&) const { return true; }
  // Of the batch that is done: counts, shares; an object.
  virtual nlohmann::json report() const;
  virtual std::vector<SampleMap> maps() const { return {}; }
};

using Samplers = Factories<Sampler>;

}  // namespace trireme
