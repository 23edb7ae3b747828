#include "framework/models/clip_evaluate.h"

#include "framework/base/tensor.h"

namespace trireme::fastclip {
namespace {

constexpr std::int64_t chunk = 128;

// Encodes items [0, n) by ranks, each a contiguous part padded to equal length, and gathers all n rows.
template <class F>
at::Tensor encode_by_ranks(Communicator& comm, std::int64_t n, std::int64_t width, at::TensorOptions options,
                           const F& encode) {
  const std::int64_t part = (n + comm.size() - 1) / comm.size();
  const std::int64_t first = std::min(n, part * comm.rank()), last = std::min(n, first + part);
  at::Tensor mine = at::zeros({part, width}, options);
  for (std::int64_t i = first; i < last; i += chunk) {
    const std::int64_t m = std::min(chunk, last - i);
    mine.narrow(0, i - first, m).copy_(encode(i, m));
  }
  at::Tensor all = at::empty({part * comm.size(), width}, options);
  comm.all_gather(buffer_of(mine), buffer_of(all)).wait();
  return all.narrow(0, 0, n);
}

// Share of rows of `scores` [n, m] whose `k` best columns hold a hit (`hits` [n, m] bool).
double recall(const at::Tensor& scores, const at::Tensor& hits, std::int64_t k) {
  const at::Tensor top = std::get<1>(scores.topk(std::min(k, scores.size(1)), 1));
  return hits.gather(1, top).any(1).to(at::kDouble).mean().item<double>();
}

// Expected recall of a random ranking: the chance that none of k draws without replacement is one of h hits.
double chance(std::int64_t candidates, std::int64_t hits, std::int64_t k) {
  double miss = 1;
  for (std::int64_t i = 0; i < std::min(k, candidates); ++i)
    miss *= std::max<double>(0, double(candidates - hits - i)) / double(candidates - i);
  return 1 - miss;
}

// What the images are ranked against: distinct captions, and a prompt for each class.
struct Candidates {
  std::vector<std::string> captions, prompts;
  std::vector<std::int64_t> caption, label;  // of each image
  std::vector<std::int64_t> images_of;       // each caption
};

Candidates candidates_of(const Pairs& data, std::span<const std::int64_t> ids) {
  Candidates all;
  std::map<std::int64_t, std::int64_t> caption_of, class_of;  // number in the data -> candidate
  for (const auto id : ids) {
    const auto [c, new_caption] = caption_of.emplace(data.caption_id(id), std::int64_t(all.captions.size()));
    if (new_caption) {
      all.captions.push_back(data.caption(id));
      all.images_of.push_back(0);
    }
    ++all.images_of[c->second];
    all.caption.push_back(c->second);
    const std::int64_t cls = data.class_id(id);
    const auto [f, new_class] = class_of.emplace(cls, std::int64_t(all.prompts.size()));
    if (new_class) all.prompts.push_back("a picture of " + (cls < 0 ? "something" : data.classes().at(cls)));
    all.label.push_back(f->second);
  }
  return all;
}

// scores [images, captions]
void add_retrieval(std::map<std::string, double>& metrics, const at::Tensor& scores, const Candidates& candidates) {
  const std::int64_t n = scores.size(0), m = scores.size(1);
  const at::Tensor own = at::tensor(candidates.caption, at::kLong).to(scores.device()).unsqueeze(1);
  const at::Tensor hits = at::zeros_like(scores, at::kBool).scatter(1, own, true);
  for (const std::int64_t k : {1, 5, 10}) {
    const std::string r = "_r" + std::to_string(k);
    metrics["image_to_text" + r] = recall(scores, hits, k);
    metrics["text_to_image" + r] = recall(scores.t().contiguous(), hits.t().contiguous(), k);
    metrics["chance" + r] = chance(m, 1, k);
    double sum = 0;
    for (const auto count : candidates.images_of) sum += chance(n, count, k);
    metrics["text_to_image_chance" + r] = sum / double(m);
  }
}

}  // namespace

std::map<std::string, double> evaluate_clip(Communicator& comm, const nn::Clip& model, bool fused,
                                            const Pairs& data, const ImageTextDataset& dataset,
                                            const Tokenizer& tokenizer, std::int64_t context,
                                            std::span<const std::int64_t> ids, at::Device device) {
  if (ids.empty()) return {};
  const Candidates candidates = candidates_of(data, ids);
  const auto n = std::int64_t(ids.size()), m = std::int64_t(candidates.captions.size()),
             classes = std::int64_t(candidates.prompts.size());
  const at::Tensor t = model.log_scale();
  const auto type = t.scalar_type();
  const auto options = at::TensorOptions(device).dtype(type);
  const auto embed_text = [&](const std::vector<std::string>& texts) {
    return [&](std::int64_t i, std::int64_t count) {
      at::Tensor lengths;
      const at::Tensor tokens = tokenizer.encode_batch({texts.data() + i, std::size_t(count)}, context, &lengths);
      const at::Tensor end = lengths - 1;
      return model.encode_text(tokens.to(device), {end.const_data_ptr<std::int64_t>(), std::size_t(count)}, fused);
    };
  };
  const auto width = model.embed_dim();
  const at::Tensor images = encode_by_ranks(comm, n, width, options, [&](std::int64_t i, std::int64_t count) {
    return model.encode_image(dataset.pixels(ids.subspan(i, count), type), fused);
  });
  const at::Tensor texts = encode_by_ranks(comm, m, width, options, embed_text(candidates.captions));
  const at::Tensor classifier = encode_by_ranks(comm, classes, width, options, embed_text(candidates.prompts));

  std::map<std::string, double> metrics;
  add_retrieval(metrics, at::matmul(images, texts.t()), candidates);
  const at::Tensor predicted = at::matmul(images, classifier.t()).argmax(1);
  metrics["zero_shot_top1"] =
      (predicted == at::tensor(candidates.label, at::kLong).to(device)).to(at::kDouble).mean().item<double>();
  metrics["zero_shot_chance"] = 1 / double(classes);
  return metrics;
}

}  // namespace trireme::fastclip
