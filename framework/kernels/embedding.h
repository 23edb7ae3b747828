// Embedding bags on the host, f32 and f64: lookup, and updates of the rows that a batch touched. Sums go in the order
// of the samples, so results do not depend on the number of threads or ranks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace trireme::kernels {

// Rows of width d, one a sample, that lie in equal blocks of `block` samples, the blocks `stride` elements apart:
// sample n is at data + n / block * stride + n % block * d.
template <class T>
struct SampleRows {
  T* data;
  std::int64_t block, stride;
};

// ids [n, width], each in [0, rows) or -1: no id. The ids of block k of samples begin at ids + k * stride.
struct Bags {
  const std::int32_t* ids;
  std::int64_t n, width, block, stride;
  bool mean;  // the mean of a bag in place of its sum
};

// out[sample] = pooled rows of the table [rows, d].
template <class T>
void embedding_lookup(const T* table, std::int64_t d, const Bags& bags, SampleRows<T> out);

// The distinct ids of a batch, and for each the places of `ids` where it stands, ascending. Keeps its memory.
class DistinctIds {
 public:
  void find(const Bags& bags);
  std::int64_t count() const { return std::int64_t(ids_.size()); }
  const std::vector<std::int32_t>& ids() const { return ids_; }        // by first appearance
  const std::vector<std::int64_t>& begin() const { return begin_; }    // count() + 1 entries into places()
  const std::vector<std::int32_t>& places() const { return places_; }  // sample * width + place in the bag

 private:
  std::vector<std::int32_t> ids_, places_, of_place_;
  std::vector<std::int64_t> begin_;
  std::vector<std::int64_t> slots_;  // hash table: id and its number, -1: free
};

enum class SparseRule : std::uint8_t { sgd, adagrad, rowwise_adagrad };

// Sums the gradients of each distinct id, then one update of its row: sgd w -= lr g; adagrad m += g^2,
// w -= lr g / (sqrt(m) + eps); rowwise_adagrad the same with m += mean(g^2), one number a row. state: [rows, d], [rows]
// or null.
template <class T>
void embedding_update(T* table, T* state, std::int64_t d, const Bags& bags, const DistinctIds& distinct,
                      SampleRows<const T> gradient, SparseRule rule, double lr, double eps);

}  // namespace trireme::kernels
