#include "framework/nn/embedding.h"

#include "data/rng.h"
#include "framework/base/tensor.h"

#include <cmath>
#include <cstring>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>

namespace trireme::nn {
namespace {

constexpr double eps = 1e-10;  // of both Adagrads

template <class T>
void draw(at::Tensor& weight, std::uint64_t seed, const std::string& name) {
  const std::int64_t rows = weight.size(0), d = weight.size(1);
  const double bound = 1 / std::sqrt(double(rows));
  T* w = weight.data_ptr<T>();
  at::parallel_for(0, rows, 1024, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      Rng rng(seed, "init/" + name, std::uint64_t(r));
      for (std::int64_t k = 0; k < d; ++k) w[r * d + k] = T(bound * (2 * rng.uniform() - 1));
    }
  });
}

void initialise(at::Tensor weight, std::uint64_t seed, const std::string& name) {
  at::Tensor host = weight.is_cpu() ? weight : at::empty(weight.sizes(), weight.scalar_type());
  AT_DISPATCH_FLOATING_TYPES(host.scalar_type(), "initialise", [&] { draw<scalar_t>(host, seed, name); });
  if (!weight.is_cpu()) weight.copy_(host);
}

}  // namespace

std::int64_t EmbeddingTables::state_width(kernels::SparseRule rule, std::int64_t dim) {
  return rule == kernels::SparseRule::sgd ? 0 : rule == kernels::SparseRule::adagrad ? dim : 1;
}

EmbeddingTables::EmbeddingTables(std::vector<Table> tables, const std::vector<std::string>& names, std::int64_t dim,
                                 kernels::SparseRule rule, std::uint64_t seed, at::TensorOptions options)
    : tables_(std::move(tables)), dim_(dim), rule_(rule) {
  std::int64_t rows = 0;
  for (const Table& t : tables_) {
    bag_tables_.push_back({rows, t.rows, columns_, t.width, t.pooling == "mean", 1});
    rows += t.rows, columns_ += t.width;
  }
  all_ = at::empty({rows, dim}, options);
  if (rule == kernels::SparseRule::adagrad) all_state_ = at::zeros({rows, dim}, options);
  if (rule == kernels::SparseRule::rowwise_adagrad) all_state_ = at::zeros({rows}, options);
  for (std::size_t k = 0; k < tables_.size(); ++k) {
    const auto part = [&](const at::Tensor& t) { return t.narrow(0, bag_tables_[k].first, tables_[k].rows); };
    weights_.push_back(part(all_));
    initialise(weights_[k], seed, names[k]);
    weights_[k].requires_grad_();
    states_.push_back(all_state_.defined() ? part(all_state_) : at::Tensor());
  }
  publish();
}

void EmbeddingTables::publish() {
  const at::Tensor host = at::empty({std::int64_t(bag_tables_.size() * sizeof(kernels::BagTable))}, at::kByte);
  if (!bag_tables_.empty()) std::memcpy(host.mutable_data_ptr(), bag_tables_.data(), host.nbytes());
  published_ = to_device(host, all_.device());
}

kernels::Bags EmbeddingTables::bags_of(const at::Tensor& ids, std::int64_t b) const {
  return {static_cast<const kernels::BagTable*>(published_.const_data_ptr()),
          ids.const_data_ptr<std::int32_t>(),
          std::int64_t(tables_.size()),
          ids.size(0),
          b,
          columns_};
}

void EmbeddingTables::lookup(const at::Tensor& ids, const at::Tensor& out) const {
  AT_DISPATCH_FLOATING_TYPES(all_.scalar_type(), "lookup", [&] {
    kernels::embedding_lookup(
        {all_.const_data_ptr<scalar_t>(), dim_, bags_of(ids, out.size(2)), out.mutable_data_ptr<scalar_t>()},
        buffer_of(all_).place);
  });
}

at::Tensor EmbeddingTables::sort_memory(const at::Tensor& ids) const {
  std::size_t bytes = 0;
  kernels::embedding_update_scratch({ids.numel(), dim_, all_.dtype().itemsize(), &bytes}, buffer_of(all_).place);
  return at::empty({std::int64_t(bytes)}, all_.options().dtype(at::kByte));
}

void EmbeddingTables::sort(const at::Tensor& ids, std::int64_t b, const at::Tensor& memory) {
  bool changed = false;
  for (std::size_t k = 0; k < tables_.size(); ++k) {
    const std::int32_t trained = weights_[k].requires_grad();
    changed |= std::exchange(bag_tables_[k].trained, trained) != trained;
  }
  if (changed) publish();
  kernels::embedding_sort({bags_of(ids, b), dim_, all_.size(0), all_.dtype().itemsize(), memory.mutable_data_ptr()},
                          buffer_of(all_).place);
}

void EmbeddingTables::update(const at::Tensor& ids, const at::Tensor& gradient, double lr, const at::Tensor& skip,
                             const at::Tensor& device_lr, const at::Tensor& sorted) {
  const at::Tensor scratch = sorted.defined() ? sorted : sort_memory(ids);
  if (!sorted.defined()) sort(ids, gradient.size(2), scratch);
  const auto pointer = [](const at::Tensor& t) { return t.defined() ? t.const_data_ptr<float>() : nullptr; };
  AT_DISPATCH_FLOATING_TYPES(all_.scalar_type(), "update", [&] {
    kernels::embedding_update(
        {all_.mutable_data_ptr<scalar_t>(), all_state_.defined() ? all_state_.mutable_data_ptr<scalar_t>() : nullptr,
         dim_, all_.size(0), bags_of(ids, gradient.size(2)), gradient.const_data_ptr<scalar_t>(), rule_, lr, eps,
         pointer(device_lr), pointer(skip), scratch.mutable_data_ptr()},
        buffer_of(all_).place);
  });
}

}  // namespace trireme::nn
