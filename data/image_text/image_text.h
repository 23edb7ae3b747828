// Image-text pairs as training reads them: augmented, normalised pixels and tokens.
#pragma once
#include "data/dataset.h"
#include "data/image_text/broken.h"
#include "data/image_text/crop.h"
#include "data/image_text/pairs.h"
#include "data/image_text/view.h"
#include "data/staging.h"
#include "data/text/tokenizer.h"
#include "data/workers.h"

#include <functional>
#include <memory>

namespace trireme {

struct ImageTextOptions {
  int size = 224;              // S, pixels a side
  std::int64_t context = 32;   // tokens
  double crop_scale = 1;       // random crop keeps at least this share of the area; 1 = off
  double flip = 0;             // chance of a mirror image
  double keyword_dropout = 0;  // chance that a comma-separated part of a caption is left out (never all)
  std::uint64_t seed = 0;
  at::ScalarType type = at::kFloat;  // of finished pixels on the host
  at::Device device = at::kCPU;      // where they are wanted
  bool travel = false;               // decoded bytes travel and are finished where they are wanted; a GPU's always do
  int threads = 1;                   // that decode
  bool dct_scaling = true;           // JPEGs may be decoded at 1/2, 1/4 or 1/8, as long as a crop keeps S pixels a side
  double broken_share = 0.01;        // pictures of all that may be broken
  PixelStatistics statistics;
  // What evaluation, and training without crops, makes of a picture: S x S. Empty: the shorter side becomes S, then the
  // middle, bicubic. Thread safe.
  std::function<Image(const Image&)> square;
};

// Columns: `ids` [b,context] i64, `end` [b] i64 (position of EOT), both on the host; and either `image` [b,3,S,S],
// finished on the host, or, for a GPU, on the device: `bytes` u8 [b,R], a row the region of a picture that its crop
// sees (R: the largest, at most 6 S^2; what is larger is resized here), and `crops` u8 [b, sizeof(Crop)].
//
// Pixels are the same bit by bit whatever the number of threads or ranks, and whoever finishes them. A broken picture
// gives its row to the next one of the training split that can be read, and its caption.
class ImageTextDataset : public Dataset {
 public:
  ImageTextDataset(const Pairs& data, const Tokenizer& tokenizer, ImageTextOptions options);
  ~ImageTextDataset() override;
  std::int64_t size() const override { return data_.size(); }
  Batch read(std::span<const std::int64_t> ids, std::int64_t epoch) const override;

  // [b,3,S,S] of `type` on the device, of a batch or of some of its rows (columns narrowed alike). From the training
  // thread.
  at::Tensor pixels_of(const Batch& batch, at::ScalarType type) const;
  // Without augmentation, on the device; a broken picture is grey.
  at::Tensor pixels(std::span<const std::int64_t> ids, at::ScalarType type) const;

  // Broken pictures found since the last call, one line each. Any thread.
  std::vector<std::string> take_broken() const { return broken_->take(); }

 private:
  // A picture, what is seen of it, and what it is called.
  struct Row {
    Picture picture;
    Cut cut;
    std::string caption;
  };
  using MakeRow = std::function<Row(std::int64_t i)>;
  Row training_row(std::int64_t id, std::int64_t epoch) const;
  Row evaluation_row(std::int64_t id) const;
  void see_whole(Row& row, bool mirror) const;
  // Adds columns of b pictures, made by the workers. Returns the captions.
  std::vector<std::string> add_pictures(std::int64_t b, const MakeRow& make, at::ScalarType type, bool ahead,
                                        Batch& batch) const;
  void add_finished(std::int64_t b, const MakeRow& make, at::ScalarType type, Batch& batch) const;
  void add_bytes(std::int64_t b, const MakeRow& make, bool ahead, Batch& batch) const;

  const Pairs& data_;
  const Tokenizer& tokenizer_;
  const ImageTextOptions options_;
  const std::unique_ptr<Workers> workers_;
  const std::unique_ptr<Staging> staging_;  // null without a GPU
  const std::unique_ptr<BrokenPictures> broken_;
};

}  // namespace trireme
