#include "framework/models/dit/token_set.h"

#include "comm/error.h"
#include "framework/base/tensor.h"
#include "framework/kernels/attention_merge.h"

#include <atomic>

#include <ATen/ATen.h>

namespace trireme {
namespace {

// i64 [B, K] as an index of dimension 1 of x [B, N, ...].
at::Tensor index_like(const at::Tensor& rows, const at::Tensor& x) {
  std::vector<std::int64_t> view(std::size_t(x.dim()), 1), sizes = x.sizes().vec();
  view[0] = sizes[0] = rows.size(0);
  view[1] = sizes[1] = rows.size(1);
  return rows.view(view).expand(sizes);
}

// Text and chosen image tokens of keys and values into [B, M + N, H, d]; text `begins` or ends the rows.
void put_into(const TokenSet::KeysValues& cache, const TokenSet::KeysValues& x, const at::Tensor& places,
              std::int64_t text, bool begins) {
  const std::int64_t tokens = cache.k.size(1) - text, image = x.k.size(1) - text;
  // A device's choice is not read back.
  if (x.k.is_cpu() && places.numel() &&
      (*places.min().const_data_ptr<std::int64_t>() < 0 || *places.max().const_data_ptr<std::int64_t>() >= tokens))
    throw UsageError("sparse forward", "a chosen token is none of the picture's " + std::to_string(tokens),
                     "choose rows of its grid");
  const std::int64_t size = cache.k.element_size(), bytes = cache.k.size(2) * cache.k.size(3) * size;
  const auto side_by_side = [&](const at::Tensor& t) {
    return t.stride(3) == 1 && t.stride(2) == t.size(3) && t.stride(1) * size % 16 == 0 &&
           t.stride(0) * size % 16 == 0 && reinterpret_cast<std::uintptr_t>(t.const_data_ptr()) % 16 == 0;
  };
  if (bytes % 16 || !side_by_side(cache.k) || !side_by_side(cache.v) || !side_by_side(x.k) || !side_by_side(x.v) ||
      x.k.strides() != x.v.strides() || cache.k.scalar_type() != x.k.scalar_type()) {
    const at::Tensor all = places.size(0) == x.k.size(0) ? places : places.repeat({x.k.size(0) / places.size(0), 1});
    for (const auto& [to, from] : {std::pair{cache.k, x.k}, {cache.v, x.v}}) {
      at::Tensor(to.narrow(1, begins ? text : 0, tokens))
          .scatter_(1, index_like(all, from.narrow(1, begins ? text : 0, image)),
                    from.narrow(1, begins ? text : 0, image));
      to.narrow(1, begins ? 0 : tokens, text).copy_(from.narrow(1, begins ? 0 : image, text));
    }
    return;
  }
  const auto source = [](const at::Tensor& t) { return static_cast<const unsigned char*>(t.const_data_ptr()); };
  const auto target = [](const at::Tensor& t) { return static_cast<unsigned char*>(t.mutable_data_ptr()); };
  const kernels::PutRowsJob job{{source(x.k), source(x.v)},
                                {target(cache.k), target(cache.v)},
                                places.const_data_ptr<std::int64_t>(),
                                x.k.size(0),
                                places.size(0),
                                begins ? text : 0,
                                image,
                                begins ? 0 : text,
                                tokens,
                                bytes,
                                x.k.stride(0) * size,
                                x.k.stride(1) * size,
                                cache.k.stride(0) * size,
                                cache.k.stride(1) * size};
  kernels::put_rows(job, buffer_of(places).place);
}

}  // namespace

TokenSet::TokenSet(Keys keys) : keys_(keys) { moved(); }

void TokenSet::moved() {
  static std::atomic<std::int64_t> last{0};
  memory_ = ++last;
}

void TokenSet::choose(const at::Tensor& active) {
  sparse_ = true;
  if (active_.defined() && active_.sizes() == active.sizes() && active_.device() == active.device()) {
    active_.copy_(active);
    return;
  }
  active_ = active.to(at::kLong).clone(at::MemoryFormat::Contiguous);
  moved();
}

at::Tensor TokenSet::rows(std::int64_t batch) const {
  const std::int64_t n = active_.size(0);
  if (batch % n)
    throw UsageError("sparse forward",
                     "a batch of " + std::to_string(batch) + " with tokens chosen for " + std::to_string(n),
                     "choose tokens of every picture");
  return batch == n ? active_ : active_.repeat({batch / n, 1});
}

at::Tensor TokenSet::gather(const at::Tensor& x) const {
  return is_dense() ? x : x.gather(1, index_like(rows(x.size(0)), x));
}

RopeTable TokenSet::gather(const RopeTable& table, std::int64_t batch) const {
  if (is_dense() || !table.cos.defined()) return table;
  const at::Tensor at = rows(batch);
  const auto pick = [&](const at::Tensor& t) {
    return t.dim() == 2 ? t.index_select(0, at.reshape(-1)).view({at.size(0), at.size(1), t.size(1)}) : gather(t);
  };
  return {pick(table.cos), pick(table.sin)};
}

at::Tensor TokenSet::scatter(const at::Tensor& x, std::int64_t tokens) const {
  if (is_dense()) return x;
  auto sizes = x.sizes().vec();
  sizes[1] = tokens;
  return at::zeros(sizes, x.options()).scatter(1, index_like(rows(x.size(0)), x), x);
}

TokenSet::KeysValues TokenSet::update(std::int64_t layer, const at::Tensor& k, const at::Tensor& v, std::int64_t text,
                                      bool text_first) {
  const std::int64_t begin = text_first ? text : 0;
  Layer& l = cache_[layer];
  if (is_dense()) {
    if (!l.all.k.defined() || l.all.k.sizes() != k.sizes() || l.all.k.scalar_type() != k.scalar_type()) {
      l = {{at::empty(k.sizes(), k.options()), at::empty(v.sizes(), v.options())}};
      moved();
    }
    l.image_begin = begin;
    l.text = text;
    l.all.k.copy_(k);
    l.all.v.copy_(v);
    return l.all;
  }
  if (!l.all.k.defined() || l.all.k.size(0) != k.size(0) || l.text != text)
    throw UsageError("sparse forward", "no dense forward of this batch came before it", "compute all tokens first");
  rows(k.size(0));  // refuses a batch that the choice does not fit
  put_into(l.all, {k, v}, active_, text, text_first);
  return l.all;
}

void TokenSet::rescale_keys(const at::Tensor& factor) {
  for (auto& [layer, l] : cache_) {
    const at::Tensor k = l.all.k.narrow(1, l.image_begin, l.all.k.size(1) - l.text);
    at::Tensor f = factor.repeat_interleave(2, -1);
    if (f.dim() == 2) f = f.unsqueeze(1);
    k.copy_(k * f);
  }
}

void TokenSet::clear() {
  cache_.clear();
  sparse_ = false;
  moved();
}

std::int64_t TokenSet::bytes() const {
  std::int64_t total = 0;
  for (const auto& [layer, l] : cache_) total += std::int64_t(l.all.k.nbytes() + l.all.v.nbytes());
  return total;
}

}  // namespace trireme
