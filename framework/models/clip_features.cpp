#include "framework/models/clip_features.h"

#include "framework/base/tensor.h"

namespace trireme {
namespace {

constexpr std::int64_t chunk = 128;

}  // namespace

at::Tensor ClipEncoder::by_ranks(std::int64_t n, const Pixels& encode) const {
  const std::int64_t chunks = (n + chunk - 1) / chunk, part = (chunks + comm_.size() - 1) / comm_.size() * chunk;
  const std::int64_t first = std::min(n, part * comm_.rank()), last = std::min(n, first + part);
  const auto options = at::TensorOptions(device_).dtype(model_.log_scale().scalar_type());
  at::Tensor mine = at::zeros({part, model_.embed_dim()}, options);
  for (std::int64_t i = first; i < last; i += chunk) {
    const std::int64_t m = std::min(chunk, last - i);
    mine.narrow(0, i - first, m).copy_(encode(i, m));
  }
  at::Tensor all = at::empty({part * comm_.size(), model_.embed_dim()}, options);
  comm_.all_gather(buffer_of(mine), buffer_of(all)).wait();
  return all.narrow(0, 0, n);
}

at::Tensor ClipEncoder::images(std::int64_t n, const Pixels& pixels) const {
  return by_ranks(
      n, [&](std::int64_t first, std::int64_t m) { return model_.encode_image(pixels(first, m).to(device_), fused_); });
}

at::Tensor ClipEncoder::texts(std::span<const std::string> texts) const {
  return by_ranks(std::int64_t(texts.size()), [&](std::int64_t first, std::int64_t m) {
    at::Tensor lengths;
    const at::Tensor ids = tokenizer_.encode_batch(texts.subspan(first, m), context_, &lengths), end = lengths - 1;
    return model_.encode_text(ids.to(device_), {end.const_data_ptr<std::int64_t>(), std::size_t(m)}, fused_);
  });
}

}  // namespace trireme
