#include "framework/kernels/embedding.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace trireme::kernels {
namespace {

template <class T>
void pooled_row(const BagTable& t, const std::int32_t* ids, const T* rows, std::int64_t d, T* out) {
  if (t.width == 1 && ids[0] >= 0) {
    std::memcpy(out, rows + ids[0] * d, std::size_t(d) * sizeof(T));
    return;
  }
  std::fill_n(out, d, T(0));
  const T share = share_of<T>(t, ids);
  for (std::int64_t w = 0; w < t.width; ++w) {
    if (ids[w] < 0) continue;
    const T* row = rows + ids[w] * d;
    for (std::int64_t k = 0; k < d; ++k) out[k] = fused(share, row[k], out[k]);
  }
}

template <class T>
void lookup_on_host(const LookupJob<T>& job) {
  constexpr std::int64_t at_once = 256, ahead = 8;
  const Bags& bags = job.bags;
#pragma omp parallel for collapse(3) schedule(static) if (bags.size() * job.d > 16384)
  for (std::int64_t r = 0; r < bags.blocks; ++r)
    for (std::int64_t k = 0; k < bags.count; ++k)
      for (std::int64_t begin = 0; begin < bags.b; begin += at_once) {
        const BagTable& t = bags.tables[k];
        const T* rows = job.rows + t.first * job.d;
        for (std::int64_t i = begin; i < std::min(bags.b, begin + at_once); ++i) {
          const std::int32_t* ids = bags.of(r, t, i);
          // Rows of a large table are far apart.
          if (i + ahead < bags.b && ids[ahead * t.width] >= 0) __builtin_prefetch(rows + ids[ahead * t.width] * job.d);
          pooled_row(t, ids, rows, job.d, job.out + ((r * bags.count + k) * bags.b + i) * job.d);
        }
      }
}

std::size_t hash(std::int32_t id) { return std::size_t(std::uint32_t(id) * 2654435769u); }

struct Asked {
  std::int32_t block, sample;
};

// The distinct ids that a batch asks of one table, and for each who asks, in order. Keeps its memory.
class DistinctIds {
 public:
  void find(const Bags& bags, std::int64_t table);
  std::int64_t count() const { return std::int64_t(ids_.size()); }
  const std::vector<std::int32_t>& ids() const { return ids_; }      // by first appearance
  const std::vector<std::int64_t>& begin() const { return begin_; }  // count() + 1 entries into places()
  const std::vector<Asked>& places() const { return places_; }

 private:
  std::int32_t number_of(std::int32_t id);
  std::vector<std::int32_t> ids_, of_place_;
  std::vector<Asked> places_;
  std::vector<std::int64_t> begin_, next_;
  std::vector<std::int64_t> slots_;  // hash table: id and its number, -1: free
};

std::int32_t DistinctIds::number_of(std::int32_t id) {
  if (id < 0) return -1;
  const std::size_t mask = slots_.size() - 1;
  std::size_t at = hash(id) & mask;
  while (slots_[at] >= 0 && std::int32_t(slots_[at] >> 32) != id) at = (at + 1) & mask;
  if (slots_[at] < 0) {
    slots_[at] = std::int64_t(id) << 32 | std::int64_t(ids_.size());
    ids_.push_back(id);
    begin_.push_back(0);
  }
  const auto number = std::int32_t(slots_[at] & 0xffffffff);
  ++begin_[std::size_t(number) + 1];
  return number;
}

void DistinctIds::find(const Bags& bags, std::int64_t table) {
  const BagTable& t = bags.tables[table];
  std::size_t size = 64;
  while (size < std::size_t(bags.blocks * bags.b * t.width) * 2) size *= 2;
  slots_.assign(size, -1);
  ids_.clear(), of_place_.clear();
  begin_.assign(1, 0);
  for (std::int64_t r = 0; r < bags.blocks; ++r) {
    const std::int32_t* ids = bags.of(r, t, 0);
    for (std::int64_t i = 0; i < bags.b * t.width; ++i) of_place_.push_back(number_of(ids[i]));
  }
  for (std::size_t i = 1; i < begin_.size(); ++i) begin_[i] += begin_[i - 1];
  places_.resize(std::size_t(begin_.back()));
  next_.assign(begin_.begin(), begin_.end() - 1);
  const std::int32_t* number = of_place_.data();
  for (std::int64_t r = 0; r < bags.blocks; ++r)
    for (std::int64_t i = 0; i < bags.b; ++i)
      for (std::int64_t w = 0; w < t.width; ++w, ++number)
        if (*number >= 0) places_[std::size_t(next_[std::size_t(*number)]++)] = {std::int32_t(r), std::int32_t(i)};
}

// g [d] = the gradients of places [begin, end): from zero for each piece, then over the pieces. `part`: [d] beside it.
template <class T>
void sum_gradients(const UpdateJob<T>& job, std::int64_t table, const Asked* begin, const Asked* end, T* g, T* part) {
  const Bags& bags = job.bags;
  const BagTable& t = bags.tables[table];
  std::fill_n(g, job.d, T(0));
  for (bool first = true; begin < end; first = false) {
    T* to = first ? g : part;
    if (!first) std::fill_n(part, job.d, T(0));
    for (const Asked* stop = begin + std::min<std::int64_t>(piece, end - begin); begin < stop; ++begin) {
      const T* from = job.gradient + ((begin->block * bags.count + table) * bags.b + begin->sample) * job.d;
      const T share = share_of<T>(t, bags.of(begin->block, t, begin->sample));
      for (std::int64_t i = 0; i < job.d; ++i) to[i] = fused(share, from[i], to[i]);
    }
    if (!first)
      for (std::int64_t i = 0; i < job.d; ++i) g[i] += part[i];
  }
}

template <class T>
void update_row(const UpdateJob<T>& job, const RowStep<T>& step, std::int64_t row, const T* g) {
  T* w = job.rows + row * job.d;
  T* m = job.rule == SparseRule::adagrad ? job.state + row * job.d : nullptr;
  T now = 0;
  if (job.rule == SparseRule::rowwise_adagrad) now = job.state[row] = row_state(g, job.d, job.state[row]);
  for (std::int64_t i = 0; i < job.d; ++i) update_element(step, job.rule, g[i], w[i], m ? m + i : nullptr, now);
}

template <class T>
void update_on_host(const UpdateJob<T>& job) {
  if (job.skip && *job.skip != 0) return;
  const RowStep<T> step{job.device_lr ? T(*job.device_lr) : T(job.lr), T(job.eps)};
#pragma omp parallel if (job.bags.places() * job.d > 16384)
  {
    static thread_local DistinctIds distinct;
    std::vector<T> sum(static_cast<std::size_t>(2 * job.d));
    T* g = sum.data();
#pragma omp for schedule(dynamic, 1)
    for (std::int64_t t = 0; t < job.bags.count; ++t) {
      const BagTable& table = job.bags.tables[t];
      if (!table.trained) continue;
      distinct.find(job.bags, t);
      for (std::int64_t u = 0; u < distinct.count(); ++u) {
        const auto k = static_cast<std::size_t>(u);
        const Asked* places = distinct.places().data();
        sum_gradients(job, t, places + distinct.begin()[k], places + distinct.begin()[k + 1], g, g + job.d);
        update_row(job, step, table.first + distinct.ids()[k], g);
      }
    }
  }
}

}  // namespace

constinit Kernel<UpdateScratchJob> embedding_update_scratch("embedding update",
                                                            [](const UpdateScratchJob& job) { *job.bytes = 0; });
constinit Kernel<SortJob> embedding_sort("embedding sort", [](const SortJob&) {});
constinit Kernel<LookupJob<float>> embedding_lookup_f32("embedding lookup", lookup_on_host<float>);
constinit Kernel<LookupJob<double>> embedding_lookup_f64("embedding lookup", lookup_on_host<double>);
constinit Kernel<UpdateJob<float>> embedding_update_f32("embedding update", update_on_host<float>);
constinit Kernel<UpdateJob<double>> embedding_update_f64("embedding update", update_on_host<double>);

}  // namespace trireme::kernels
