// Pictures or videos with prompts, as flow matching reads them.
#pragma once
#include "data/dataset.h"
#include "data/image_text/pairs.h"
#include "data/workers.h"
#include "recipes/dit_scenes/config.h"

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace trireme::dit {

// Where samples come from. Thread safe.
class Source {
 public:
  virtual ~Source() = default;
  virtual std::int64_t size() const = 0;
  virtual std::string caption(std::int64_t id) const = 0;
  virtual void draw(std::int64_t id, std::span<std::uint8_t> planes) const = 0;  // [3, frames, side, side]
  virtual std::vector<std::int64_t> train_ids() const = 0;
  virtual std::vector<std::int64_t> held_out_ids() const = 0;  // captions of these are in no training sample
  virtual std::string identity() const = 0;                    // of what is trained on
};

// UsageError or DataError with the cure: no such set, or of fewer pixels than `side`.
std::unique_ptr<Source> open_source(const DataConfig& data, std::uint64_t seed, std::int64_t side);

// A scene's frame `frame` of `frames`: its objects move in a straight line that the scene's number draws.
Scene moved(Scene scene, std::uint64_t seed, std::uint64_t i, std::int64_t frame, std::int64_t frames, double motion);

// Columns: `image` u8 [b, 3, frames, side, side]; `prompt` i64 [b, tokens], of padding alone where the prompt is
// dropped; `sigma` f32 [b]. All keyed by (seed, epoch, id).
class FlowDataset : public Dataset {
 public:
  struct Options {
    std::int64_t side = 64, frames = 1;
    double drop = 0.1;
    std::uint64_t seed = 0;
    int threads = 1;
  };
  // All must outlive it.
  FlowDataset(const Source& source, const PromptVocabulary& vocabulary, LevelConfig levels, Options options);
  std::int64_t size() const override { return source_.size(); }
  Batch read(std::span<const std::int64_t> ids, std::int64_t epoch) const override;

 private:
  const Source& source_;
  const PromptVocabulary& vocabulary_;
  const LevelConfig levels_;
  const Options options_;
  const std::unique_ptr<Workers> workers_;
};

}  // namespace trireme::dit
