#include "recipes/clip/data.h"

#include "comm/error.h"
#include "data/image_text/open_pairs.h"
#include "framework/base/apart.h"

#include <atomic>
#include <iostream>

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
  spec.part = data.part, spec.eval_part = data.eval_part;
  spec.image_size = int(image_size);
  return spec;
}

}  // namespace

Split split_of(const Pairs& pairs, const DataConfig& data) {
  const PairsSpec spec = spec_of(data, 0);
  return {train_ids_of(pairs, spec, data.max_per_caption), held_out_ids_of(pairs, spec)};
}

namespace {

void check(const Pairs& pairs, const DataConfig& data, std::int64_t image_size) {
  for (const int size : pairs.prepared_sizes())
    if (size > 0 && size < image_size)
      throw UsageError(
          "model.image_size",
          "is " + std::to_string(image_size) + " but " + pairs.path() + " holds " + std::to_string(size) + " pixels",
          "prepare the data at the model's size");
  const auto [train, held_out] = split_of(pairs, data);
  if (train.empty())
    throw DataError(pairs.path(), "has no pairs to train on",
                    data.part.empty() ? "lower data.held_out" : "widen data.part");
}

}  // namespace

std::unique_ptr<Pairs> open_data(const DataConfig& data, std::int64_t image_size, Context& c) {
  std::unique_ptr<Pairs> pairs;
  std::atomic<std::size_t> done{0}, shards{0};
  PairsSpec spec = spec_of(data, image_size);
  spec.progress = [&](std::size_t d, std::size_t s) { done = d, shards = s; };
  const std::function<void()> open = [&] {
    pairs = open_pairs(spec);
    check(*pairs, data, image_size);
  };
  int seconds = 0;
  const auto tell = [&] {
    if (c.rank() == 0 && ++seconds % 10 == 0 && shards > 0)
      std::cerr << "reading tars for their index: " + std::to_string(done) + " of " + std::to_string(shards) + "\n"
                << std::flush;
  };
  for (const bool first : {true, false}) {
    Communicator& comm = c.comm("control");
    agree(comm, attempt_apart(comm, first == (c.rank() == 0) ? open : nullptr, tell));
  }
  return pairs;
}

ImageTextOptions dataset_options(const DataConfig& data, const nn::ClipConfig& model, const Preprocess& preprocess,
                                 bool prepared, const Context& c) {
  ImageTextOptions o;
  for (std::size_t i = 0; i < 3; ++i)
    o.statistics.mean[i] = preprocess.mean[i], o.statistics.std_dev[i] = preprocess.std[i];
  if (!prepared && (preprocess.resize_mode != "shortest" || preprocess.interpolation == "bilinear"))
    o.square = [preprocess](const Image& in) { return preprocess.square(in); };
  o.size = int(model.image_size), o.context = model.context;
  o.crop_scale = data.crop_scale, o.flip = data.flip;
  o.keyword_dropout = data.keyword_dropout, o.seed = std::uint64_t(c.config().seed);
  o.type = c.param_type(), o.device = c.device();
  // A rank's share of the cores, as for operators: where a GPU trains, decoding is what is left for them.
  o.threads = data.threads ? int(data.threads) : c.device().is_cuda() ? c.cores() : 1;
  o.dct_scaling = data.dct_scaling, o.broken_share = data.broken_share;
  return o;
}

std::vector<std::string> captions_of(const Pairs& pairs, const std::vector<std::int64_t>& ids) {
  constexpr std::size_t most = 1000000;
  const std::size_t n = std::min(ids.size(), most);
  std::vector<std::string> captions;
  for (std::size_t i = 0; i < n; ++i) captions.push_back(pairs.caption(ids[i * ids.size() / n]));
  return captions;
}

}  // namespace trireme::fastclip
