// Causal attention over a flat batch of tokens, [T, ...], in which samples of different lengths follow each other and
// never see each other.
#pragma once
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme::nn {

// Where the tokens of samples lie, on one device. Made once for each composition of a batch.
struct SampleLayout {
  struct Group {  // samples of about one length, padded to the longest
    std::int64_t samples, length;
    at::Tensor rows;  // i64 [samples * length]: the token there; undefined: all tokens in their order
  };
  std::vector<std::int64_t> lengths;
  std::vector<Group> groups;
  at::Tensor positions;  // i64 [T], from 0 in each sample
  at::Tensor places;     // i64 [T]: of a token, among the groups' rows; undefined with one group without padding
};

// lengths: above 0.
SampleLayout sample_layout(std::vector<std::int64_t> lengths, at::Device device);

// q [T, heads, d], k and v [T, kv_heads, d], of one type -> [T, heads * d]. Head i uses kv head i * kv_heads / heads.
at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const SampleLayout& layout,
                            double scale);

// Keys and values of tokens that are past, for decoding. A sample's own tokens from position 0.
struct KvCache {
  std::int64_t capacity = 0;          // positions a sample can have
  std::vector<std::int64_t> lengths;  // tokens of each sample so far
  std::vector<at::Tensor> k, v;       // by layer [samples, capacity, kv_heads, d], zeros where nothing is yet
};

// Room for at least that many positions a sample, and then for twice as many as before.
void reserve(KvCache& cache, std::int64_t positions);

// Of one pass of new tokens: news[i] >= 0 more of sample i.
struct CachedLayout {
  std::int64_t samples, longest, total;  // samples; the most new tokens of one; the most tokens of one, with the past
  at::Tensor positions;                  // i64 [T]
  at::Tensor slots;                      // i64 [T]: rows of the cache's [samples * capacity, kv_heads, d]
  at::Tensor rows, places;               // as in SampleLayout, padded to `longest`
  at::Tensor mask;                       // bool [samples, 1, longest, total]: seen
};
CachedLayout cached_layout(const KvCache& cache, const std::vector<std::int64_t>& news, at::Device device);

// Appends k and v to the layer's cache, and attends over it. `lengths` of the cache stay as they are.
at::Tensor cached_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, KvCache& cache,
                            std::size_t layer, const CachedLayout& layout, double scale);

}  // namespace trireme::nn
