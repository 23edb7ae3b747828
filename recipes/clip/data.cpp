#include "recipes/clip/data.h"

#include "comm/error.h"
#include "data/image_text/open_pairs.h"
#include "data/image_text/prepared.h"
#include "framework/base/agree.h"

namespace trireme::fastclip {
namespace {

PairsSpec spec_of(const DataConfig& data, std::int64_t image_size) {
  PairsSpec spec;
  spec.files = data.files.empty() ? std::vector<std::string>{data.file} : data.files;
  spec.weights = data.weights;
  spec.eval_file = data.eval_file;
  spec.index_key = data.index_key;
  spec.image_column = data.image_column, spec.caption_column = data.caption_column;
  spec.held_out = data.held_out, spec.broken_share = data.broken_share;
  spec.image_size = int(image_size);
  return spec;
}

void check(const Pairs& pairs, const DataConfig& data, std::int64_t image_size) {
  if (const auto* file = dynamic_cast<const ImageTextData*>(&pairs); file && file->image_size() < image_size)
    throw UsageError("model.image_size",
                     "is " + std::to_string(image_size) + " but " + file->path() + " holds " +
                         std::to_string(file->image_size()) + " pixels",
                     "prepare the data at the model's size");
  if (pairs.train_ids(data.max_per_caption).empty())
    throw DataError(pairs.path(), "has no pairs to train on", "lower data.held_out");
}

}  // namespace

std::unique_ptr<Pairs> open_data(const DataConfig& data, std::int64_t image_size, Context& c) {
  std::unique_ptr<Pairs> pairs;
  const auto open = [&] {
    pairs = open_pairs(spec_of(data, image_size));
    check(*pairs, data, image_size);
  };
  for (const bool first : {true, false})
    agree(c.comm("control"), first == (c.rank() == 0) ? attempt(open) : std::nullopt);
  return pairs;
}

std::vector<std::string> captions_of(const Pairs& pairs, const std::vector<std::int64_t>& ids) {
  constexpr std::size_t most = 1000000;
  const std::size_t n = std::min(ids.size(), most);
  std::vector<std::string> captions;
  for (std::size_t i = 0; i < n; ++i) captions.push_back(pairs.caption(ids[i * ids.size() / n]));
  return captions;
}

}  // namespace trireme::fastclip
