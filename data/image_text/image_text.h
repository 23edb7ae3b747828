// Image-text pairs as training reads them: augmented, normalised pixels and tokens.
#pragma once
#include "data/dataset.h"
#include "data/image_text/prepared.h"
#include "data/text/tokenizer.h"

namespace trireme {

struct ImageTextOptions {
  std::int64_t context = 32;   // tokens
  double crop_scale = 1;       // random crop keeps at least this share of the area; 1 = off
  double flip = 0;             // chance of a mirror image
  double keyword_dropout = 0;  // chance that a comma-separated part of a caption is left out (never all)
  std::uint64_t seed = 0;
  at::ScalarType type = at::kFloat;
};

// Columns: `image` [b,3,S,S], `ids` [b,context] i64, `end` [b] i64 (position of EOT).
class ImageTextDataset : public Dataset {
 public:
  ImageTextDataset(const ImageTextData& data, const Tokenizer& tokenizer, ImageTextOptions options)
      : data_(data), tokenizer_(tokenizer), options_(options) {}
  std::int64_t size() const override { return data_.size(); }
  Batch read(std::span<const std::int64_t> ids, std::int64_t epoch) const override;
  // Without augmentation.
  at::Tensor pixels(std::span<const std::int64_t> ids) const;

 private:
  const ImageTextData& data_;
  const Tokenizer& tokenizer_;
  ImageTextOptions options_;
};

}  // namespace trireme
