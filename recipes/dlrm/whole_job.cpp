#include "recipes/dlrm/whole_job.h"

#include "comm/error.h"
#include "data/workers.h"
#include "framework/kernels/embedding.h"
#include "recipes/dlrm/combine.h"

#include <algorithm>
#include <thread>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme::dlrm {
namespace {

// Coded bytes of one table over all batches.
double coded_bytes(const std::string& codec, const std::vector<at::Tensor>& batches, std::size_t table, double bound,
                   int ranks, bool shared) {
  BoundedOptions options;
  options.codec = codec;
  const Bounded bounded(options);
  const auto n = std::size_t(batches[0].size(1) / ranks), d = std::size_t(batches[0].size(2));
  std::vector<std::uint8_t> out(bounded.max_bytes(n, d) * std::size_t(ranks));
  std::vector<std::uint64_t> sizes(static_cast<std::size_t>(ranks));
  double bytes = 0;
  for (const auto& batch : batches) {
    const at::Tensor rows = batch[std::int64_t(table)].contiguous();
    std::vector<TableChunk> chunks(sizes.size());
    for (std::size_t k = 0; k < chunks.size(); ++k) {
      TableChunk& c = chunks[k];
      c.rows = rows.const_data_ptr<float>() + k * n * d, c.n = n, c.dim = d;
      c.bound = float(bound), c.scope = std::uint32_t(shared ? 0 : k);
    }
    bounded.encode(chunks, {out.data(), out.size(), DType::u8}, {sizes.data(), sizes.size(), DType::i64});
    for (const std::uint64_t s : sizes) bytes += double(s) + 8;
  }
  return bytes;
}

}  // namespace

at::Tensor pooled_rows(const Table& table, const at::Tensor& weight, const at::Tensor& ids) {
  const at::Tensor rows = weight.to(at::kFloat).contiguous(), own = ids.contiguous();
  if (own.numel() > 0 && own.max().item<std::int64_t>() >= rows.size(0))
    throw DataError("table " + table.name,
                    "has " + std::to_string(rows.size(0)) + " rows in this run, and a sample asks for row " +
                        std::to_string(own.max().item<std::int64_t>()),
                    "prepare the data anew, or name a run on it");
  const std::int64_t n = own.size(0), d = rows.size(1);
  const kernels::BagTable bags{0, rows.size(0), 0, table.width, table.pooling == "mean", 0};
  at::Tensor out = at::empty({n, d}, at::kFloat);
  kernels::embedding_lookup({rows.const_data_ptr<float>(),
                             d,
                             {&bags, own.const_data_ptr<std::int32_t>(), 1, 1, n, table.width},
                             out.mutable_data_ptr<float>()},
                            Place{});
  return out;
}

Looked look_up(const Shape& shape, const std::map<std::string, at::Tensor>& weights, const at::Tensor& rows,
               const at::Tensor& dense, const at::Tensor& label) {
  nn::Parameters params = nn::Parameters::unset(at::kFloat, at::kCPU);
  const Model model(shape, params);
  for (const auto& p : params.all()) {
    const auto found = weights.find(p.name);
    if (found == weights.end() || found->second.sizes() != p.value.sizes())
      throw DataError("RUN", "has no " + p.name + " of this model", "name a run of dlrm");
    p.value.detach().copy_(found->second);
  }
  const at::Tensor leaf = rows.detach().clone().requires_grad_();
  const at::Tensor logits = model.top(model.bottom(dense), leaf, at::arange(shape.tables));
  const at::Tensor loss = at::binary_cross_entropy_with_logits(logits, label);
  const auto gradients = torch::autograd::grad({loss}, {leaf});
  return {rows, gradients[0]};
}

at::Tensor combined_for(const at::Tensor& gradients, const at::Tensor& ids, const std::vector<std::int64_t>& widths,
                        int ranks) {
  const std::int64_t n = ids.size(0) / ranks;
  at::Tensor all = at::empty_like(gradients);
  Combiner combiner;
  Grouping grouping(widths);
  for (std::int64_t r = 0; r < ranks; ++r) {
    std::vector<at::Tensor> own;  // as a rank sends them
    for (const auto& table : ids.narrow(0, r * n, n).split_with_sizes(widths, 1)) own.push_back(table.flatten());
    combiner.prepare(grouping(at::cat(own).view({1, -1}), n), gradients.size(2));
    all.narrow(1, r * n, n).copy_(combiner.combined(gradients.narrow(1, r * n, n)));
  }
  return all;
}

double coded_ratio(const at::Tensor& chunks, const std::vector<std::string>& codecs,
                   const std::vector<double>& bounds) {
  double sum = 0;
  for (std::size_t t = 0; t < codecs.size(); ++t) sum += coded_bytes(codecs[t], {chunks}, t, bounds[t], 1, false);
  return double(chunks.numel()) * 4 / sum;
}

std::map<std::string, double> whole_job(const std::vector<at::Tensor>& batches, const std::vector<double>& bounds,
                                        int ranks, bool shared) {
  double plain = 0;
  for (const auto& b : batches) plain += double(b.size(1) / ranks * ranks * b.size(0) * b.size(2)) * 4;
  const std::vector<std::string> codecs{"vector_lz", "huffman",  "packed",     "dedup_sparse", "dedup_huffman",
                                        "auto",      "smallest", "int8_row32", "int4"};
  std::map<std::string, std::vector<double>> bytes;
  for (const auto& codec : codecs) bytes[codec].resize(bounds.size());
  Workers workers(std::clamp(int(std::thread::hardware_concurrency()), 1, 64));
  workers.each(std::int64_t(codecs.size() * bounds.size()), [&](std::int64_t i) {
    const std::string& codec = codecs[std::size_t(i) / bounds.size()];
    const std::size_t t = std::size_t(i) % bounds.size();
    bytes.at(codec)[t] = coded_bytes(codec, batches, t, bounds[t], ranks, shared);
  });
  std::vector<double>& better = bytes["vector_lz or huffman"];
  for (std::size_t t = 0; t < bounds.size(); ++t)
    better.push_back(std::min(bytes["vector_lz"][t], bytes["huffman"][t]));
  std::map<std::string, double> ratios;
  for (const auto& [codec, of_table] : bytes) {
    double sum = 0;
    for (const double b : of_table) sum += b;
    ratios[codec] = plain / sum;
  }
  return ratios;
}

}  // namespace trireme::dlrm
