// A CLIP model from a file system: MODEL on the command line.
#pragma once
#include "data/text/tokenizer.h"
#include "framework/models/clip.h"
#include "framework/models/preprocess.h"

#include <optional>
#include <string>

namespace trireme {

// Which weights of a run. An OpenCLIP folder has one kind only.
struct ClipWeights {
  std::string step = "newest";  // or best, or a number
  bool average = true;          // the running average, which evaluation saw, where the run keeps one
};

class ClipModel {
 public:
  ClipModel(const nn::ClipConfig& config, const Preprocess& preprocess, std::optional<Tokenizer> tokenizer,
            const std::string& path, at::Device device, at::ScalarType type);

  const nn::Clip& clip() const { return clip_; }
  const nn::ClipConfig& config() const { return clip_.config(); }
  const Preprocess& preprocess() const { return preprocess_; }
  // UsageError with the cure where neither MODEL nor the user brought one.
  const Tokenizer& tokenizer() const;
  bool has_tokenizer() const { return tokenizer_.has_value(); }
  const std::vector<Param>& parameters() const { return parameters_.all(); }  // with buffers, by OpenCLIP's names
  bool fused() const { return device_.is_cpu(); }
  at::Device device() const { return device_; }

  // pixels [n, 3, s, s], ids [n, context] on the host -> [n, d] there, unit length; `rows` at a time.
  at::Tensor embed_pixels(const at::Tensor& pixels, std::int64_t rows = 64) const;
  at::Tensor embed_ids(const at::Tensor& ids, std::int64_t rows = 64) const;  // pooled at each row's first largest id
  at::Tensor embed_texts(std::span<const std::string> texts, std::int64_t rows = 64) const;

 private:
  std::string path_;
  at::Device device_;
  at::ScalarType type_;
  Preprocess preprocess_;
  std::optional<Tokenizer> tokenizer_;
  nn::Parameters parameters_;
  nn::Clip clip_;
};

// `path`: a run folder of fastclip, or a folder with open_clip_config.json and weights. `tokenizer_file`: a CLIP merges
// file, before the model's own. `type`: f32 or f64. DataError naming what is missing, left over or of another shape,
// before memory is taken for it; UsageError for weights other than the default of a folder.
ClipModel load_clip(const std::string& path, at::Device device, at::ScalarType type,
                    const std::string& tokenizer_file = {}, const ClipWeights& weights = {});

}  // namespace trireme
