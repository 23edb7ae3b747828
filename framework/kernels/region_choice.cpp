#include "framework/kernels/region_choice.h"

#include <algorithm>
#include <functional>
#include <vector>

namespace trireme::kernels {
namespace {

using namespace region_choice;

void complexity_host(const ComplexityJob& job) {
  const std::int64_t n = job.pixels();
  for (std::int64_t b = 0; b < job.batch; ++b) {
    for (std::int64_t p = 0; p < n; ++p) means(job, b, p, job.map(b, 0)[p], job.map(b, 3)[p]);
    for (std::int64_t p = 0; p < n; ++p) stencils(job, job.map(b, 0), p, job.map(b, 1)[p], job.map(b, 2)[p]);
    for (int k = 0; k < 3; ++k) {
      std::uint32_t most = 0, least = 0;
      for (std::int64_t p = 0; p < n; ++p) {
        const std::uint32_t bits = bits_of(job.map(b, k + 1)[p]);
        most = std::max(most, bits), least = std::max(least, ~bits);
      }
      job.extremes(b, k)[0] = most, job.extremes(b, k)[1] = least;
    }
    for (std::int64_t p = 0; p < n; ++p) job.out[b * n + p] = combined(job, b, p);
  }
}

void region_places_host(const RegionPlacesJob& job) {
  for (std::int64_t b = 0; b < job.batch; ++b) {
    std::vector<std::vector<std::uint32_t>> values(std::size_t(job.regions[b]));
    const std::int64_t* labels = job.labels + b * job.pixels;
    for (std::int64_t p = 0; p < job.pixels; ++p)
      values[std::size_t(labels[p])].push_back(counted(job.complexity[b * job.pixels + p]));
    std::vector<std::int64_t> order;
    for (std::size_t r = 0; r < values.size(); ++r) {
      auto& all = values[r];
      if (all.empty()) continue;
      const std::int64_t most = kept(std::ssize(all), job.q);
      std::nth_element(all.begin(), all.begin() + (most - 1), all.end(), std::greater<>());
      std::int64_t sum = 0;
      for (std::int64_t i = 0; i < most; ++i) sum += std::int64_t(all[std::size_t(i)]);
      job.score(b)[r] = double(sum) / double(most);
      order.push_back(std::int64_t(r));
    }
    std::stable_sort(order.begin(), order.end(), [&](auto x, auto y) { return job.score(b)[x] > job.score(b)[y]; });
    std::int32_t* place = job.whole(b, 1);
    for (std::size_t i = 0; i < order.size(); ++i) place[order[i]] = std::int32_t(i);
    for (std::int64_t p = 0; p < job.pixels; ++p) job.places[b * job.pixels + p] = float(place[labels[p]]);
  }
}

void first_keys_host(const FirstKeysJob& job) {
  std::vector<std::uint32_t> keys(std::size_t(job.n)), some;
  for (std::int64_t b = 0; b < job.batch; ++b) {
    std::transform(job.keys + b * job.n, job.keys + (b + 1) * job.n, keys.begin(), ordered);
    some = keys;
    std::nth_element(some.begin(), some.begin() + (job.count - 1), some.end());
    const std::uint32_t last = some[std::size_t(job.count - 1)];
    std::int64_t alike = job.count - std::ranges::count_if(keys, [&](auto key) { return key < last; });
    std::int64_t* out = job.chosen + b * job.count;
    for (std::int64_t i = 0; i < job.n; ++i)
      if (keys[std::size_t(i)] < last || (keys[std::size_t(i)] == last && alike-- > 0)) *out++ = i;
  }
}

}  // namespace

constinit Kernel<ComplexityJob> complexity("complexity", complexity_host);
constinit Kernel<RegionPlacesJob> region_places("region_places", region_places_host);
constinit Kernel<FirstKeysJob> first_keys("first_keys", first_keys_host);

}  // namespace trireme::kernels
