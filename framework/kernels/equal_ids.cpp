#include "framework/kernels/equal_ids.h"

#include <algorithm>

namespace trireme::kernels {
namespace {

// One table of one block: slots hold the first sample of each id.
void one_table(const Bags& bags, std::int64_t block, std::int64_t table, std::int32_t* first, float* times,
               std::int32_t* slots, std::int64_t mask) {
  const BagTable& t = bags.tables[table];
  const auto before = static_cast<std::int32_t>(table * bags.b);
  std::fill_n(times, bags.b, 0.0f);
  std::fill_n(slots, mask + 1, -1);
  for (std::int64_t i = 0; i < bags.b; ++i) {
    const std::int32_t* ids = bags.of(block, t, i);
    first[i] = -1;
    if (!asks(ids, t.width)) continue;
    auto from = static_cast<std::int32_t>(i);
    if (t.width == 1) {
      std::int64_t at = mixed(static_cast<std::uint32_t>(*ids)) & mask;
      while (slots[at] >= 0 && *bags.of(block, t, slots[at]) != *ids) at = (at + 1) & mask;
      if (slots[at] < 0) slots[at] = from;
      from = slots[at];
    }
    first[i] = before + from;
    times[from] += 1;
  }
}

void on_host(const EqualIdsJob& job) {
  const Bags& bags = job.bags;
  auto* slots = static_cast<std::int32_t*>(job.scratch);
  const std::int64_t mask = equal_ids_slots(bags.b) - 1;
  for (std::int64_t k = 0; k < bags.blocks * bags.count; ++k)
    one_table(bags, k / bags.count, k % bags.count, job.first + k * bags.b, job.times + k * bags.b, slots, mask);
}

}  // namespace

constinit Kernel<EqualIdsJob> equal_ids("equal_ids", on_host);

}  // namespace trireme::kernels
