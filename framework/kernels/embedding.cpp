#include "framework/kernels/embedding.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace trireme::kernels {
namespace {

const std::int32_t* bag_of(const Bags& b, std::int64_t n) {
  return b.ids + n / b.block * b.stride + n % b.block * b.width;
}

template <class T>
T* row_of(const SampleRows<T>& r, std::int64_t n, std::int64_t d) {
  return r.data + n / r.block * r.stride + n % r.block * d;
}

// 1, or the share of one id in the mean of its bag.
template <class T>
T share(const Bags& b, std::int64_t n) {
  if (!b.mean) return T(1);
  const std::int32_t* ids = bag_of(b, n);
  std::int64_t count = 0;
  for (std::int64_t w = 0; w < b.width; ++w) count += ids[w] >= 0;
  return T(1) / T(std::max<std::int64_t>(1, count));
}

template <class T>
void pooled_row(const T* table, std::int64_t d, const Bags& bags, std::int64_t n, T* out) {
  const std::int32_t* ids = bag_of(bags, n);
  if (bags.width == 1 && ids[0] >= 0) {
    std::memcpy(out, table + std::int64_t(ids[0]) * d, std::size_t(d) * sizeof(T));
    return;
  }
  std::fill_n(out, d, T(0));
  const T scale = share<T>(bags, n);
  for (std::int64_t w = 0; w < bags.width; ++w) {
    if (ids[w] < 0) continue;
    const T* row = table + std::int64_t(ids[w]) * d;
    for (std::int64_t k = 0; k < d; ++k) out[k] += scale * row[k];
  }
}

std::size_t hash(std::int32_t id) { return std::size_t(std::uint32_t(id) * 2654435769u); }

}  // namespace

template <class T>
void embedding_lookup(const T* table, std::int64_t d, const Bags& bags, SampleRows<T> out) {
#pragma omp parallel for schedule(static) if (bags.n * d > 16384)
  for (std::int64_t n = 0; n < bags.n; ++n) {
    if (bags.width == 1 && n + 8 < bags.n) {  // rows of a large table are far apart
      const std::int32_t ahead = bag_of(bags, n + 8)[0];
      if (ahead >= 0) __builtin_prefetch(table + std::int64_t(ahead) * d);
    }
    pooled_row(table, d, bags, n, row_of(out, n, d));
  }
}

void DistinctIds::find(const Bags& bags) {
  const std::int64_t places = bags.n * bags.width;
  std::size_t size = 64;
  while (size < std::size_t(places) * 2) size *= 2;
  slots_.assign(size, -1);
  ids_.clear();
  of_place_.resize(std::size_t(places));
  begin_.assign(1, 0);
  for (std::int64_t n = 0, p = 0; n < bags.n; ++n) {
    const std::int32_t* ids = bag_of(bags, n);
    for (std::int64_t w = 0; w < bags.width; ++w, ++p) {
      const std::int32_t id = ids[w];
      if (id < 0) {
        of_place_[std::size_t(p)] = -1;
        continue;
      }
      std::size_t at = hash(id) & (size - 1);
      while (slots_[at] >= 0 && std::int32_t(slots_[at] >> 32) != id) at = (at + 1) & (size - 1);
      if (slots_[at] < 0) {
        slots_[at] = std::int64_t(id) << 32 | std::int64_t(ids_.size());
        ids_.push_back(id);
        begin_.push_back(0);
      }
      const auto number = std::int32_t(slots_[at] & 0xffffffff);
      of_place_[std::size_t(p)] = number;
      ++begin_[std::size_t(number) + 1];
    }
  }
  for (std::size_t i = 1; i < begin_.size(); ++i) begin_[i] += begin_[i - 1];
  places_.resize(std::size_t(begin_.back()));
  std::vector<std::int64_t> next(begin_.begin(), begin_.end() - 1);
  for (std::int64_t p = 0; p < places; ++p)
    if (const std::int32_t number = of_place_[std::size_t(p)]; number >= 0)
      places_[std::size_t(next[std::size_t(number)]++)] = std::int32_t(p);
}

template <class T>
void embedding_update(T* table, T* state, std::int64_t d, const Bags& bags, const DistinctIds& distinct,
                      SampleRows<const T> gradient, SparseRule rule, double lr, double eps) {
  const auto& begin = distinct.begin();
  const auto& places = distinct.places();
  const T rate = T(lr), small = T(eps);
#pragma omp parallel if (std::int64_t(places.size()) * d > 16384)
  {
    std::vector<T> sum(static_cast<std::size_t>(d));
    T* g = sum.data();
#pragma omp for schedule(dynamic, 64)
    for (std::int64_t u = 0; u < distinct.count(); ++u) {
      std::fill_n(g, d, T(0));
      for (std::int64_t k = begin[std::size_t(u)]; k < begin[std::size_t(u) + 1]; ++k) {
        const std::int64_t n = places[std::size_t(k)] / bags.width;
        const T* from = row_of(gradient, n, d);
        const T scale = share<T>(bags, n);
        for (std::int64_t i = 0; i < d; ++i) g[i] += scale * from[i];
      }
      const std::int64_t id = distinct.ids()[std::size_t(u)];
      T* w = table + id * d;
      if (rule == SparseRule::sgd) {
        for (std::int64_t i = 0; i < d; ++i) w[i] -= rate * g[i];
      } else if (rule == SparseRule::adagrad) {
        T* m = state + id * d;
        for (std::int64_t i = 0; i < d; ++i) {
          m[i] += g[i] * g[i];
          w[i] -= rate * g[i] / (std::sqrt(m[i]) + small);
        }
      } else {
        T squares = 0;
        for (std::int64_t i = 0; i < d; ++i) squares += g[i] * g[i];
        state[id] += squares / T(d);
        const T step = rate / (std::sqrt(state[id]) + small);
        for (std::int64_t i = 0; i < d; ++i) w[i] -= step * g[i];
      }
    }
  }
}

#define TRIREME_INSTANTIATE(T)                                                                               \
  template void embedding_lookup(const T*, std::int64_t, const Bags&, SampleRows<T>);                        \
  template void embedding_update(T*, T*, std::int64_t, const Bags&, const DistinctIds&, SampleRows<const T>, \
                                 SparseRule, double, double);
TRIREME_INSTANTIATE(float)
TRIREME_INSTANTIATE(double)

}  // namespace trireme::kernels
