#include "recipes/dlrm/link.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <limits>

namespace trireme::dlrm {
namespace {

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

constexpr int turns = 5;

// What the device still has to do is part of the time.
void settle(const at::Tensor& rows) {
  if (!rows.is_cpu()) (void)rows.flatten()[0].cpu();
}

}  // namespace

ExchangeTimes time_exchange(ShardedTables& tables, const Coder& coder, const at::Tensor& ids, Context& c) {
  at::NoGradGuard no_grad;
  std::array<double, 4> best;  // forward raw, coded, backward raw, coded
  best.fill(std::numeric_limits<double>::infinity());
  for (int turn = 0; turn < turns; ++turn)
    for (const std::size_t coded : {0, 1}) {
      ShardedTables::Ids sent = tables.send_ids(ids);
      sent.work.wait();
      c.comm("control").barrier().wait();
      const double begin = now_ms();
      tables.start_fetch(std::move(sent), coded ? coder.forward(tables.mine(), c.now.step) : nullptr);
      const at::Tensor rows = tables.finish_fetch();
      settle(rows);
      const double middle = now_ms();
      if (coded && coder.combines()) tables.combine_gradients();
      tables.start_return(rows, coded ? coder.backward() : nullptr);
      tables.finish_return();
      tables.forget();
      settle(rows);
      best[coded] = std::min(best[coded], middle - begin);
      best[2 + coded] = std::min(best[2 + coded], now_ms() - middle);
    }
  (void)tables.forward().take_bytes(), (void)tables.backward().take_bytes();
  c.comm("control").all_reduce({best.data(), best.size(), DType::f64}, Op::max).wait();
  return {{best[0], best[1]}, {best[2], best[3]}};
}

Direction time_steps(ShardedTables& tables, Context& c, const std::function<at::Tensor(bool)>& pass) {
  std::array<double, 2> best;
  best.fill(std::numeric_limits<double>::infinity());
  for (int turn = 0; turn < turns; ++turn)
    for (const std::size_t coded : {0, 1}) {
      c.comm("control").barrier().wait();
      const double begin = now_ms();
      const at::Tensor last = pass(coded == 1);
      tables.finish_return();
      tables.forget();
      settle(last);
      best[coded] = std::min(best[coded], now_ms() - begin);
    }
  (void)tables.forward().take_bytes(), (void)tables.backward().take_bytes();
  c.comm("control").all_reduce({best.data(), best.size(), DType::f64}, Op::max).wait();
  return {best[0], best[1]};
}

}  // namespace trireme::dlrm
