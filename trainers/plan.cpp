#include "trainers/plan.h"

#include "framework/optim/rule.h"

#include <cstdio>
#include <iostream>

#include <ATen/ATen.h>

namespace trireme {
namespace {

void print_lines(const std::string& title, const std::vector<Plan::Line>& lines) {
  double sum = 0;
  std::cout << title << "\n";
  for (const auto& l : lines) {
    char text[64];
    std::snprintf(text, sizeof text, "%-36s %16.0f", l.what.c_str(), l.bytes);
    std::cout << "  " << text << "  " << l.formula << (l.used ? "" : " (not used)") << "\n";
    if (l.used) sum += l.bytes;
  }
  char text[96];
  std::snprintf(text, sizeof text, "  %-36s %16.0f  %.1f MB\n", "sum", sum, sum / 1e6);
  std::cout << text;
}

std::string times(std::int64_t n, const std::string& what) { return std::to_string(n) + " " + what; }

}  // namespace

void print_plan(const Plan& plan, const TrainConfig& train, int ranks) {
  const std::int64_t size = train.precision == "f64" ? 8 : 4;
  std::int64_t trained = 0, frozen = 0, buffers = 0;
  for (const auto& p : plan.parameters)
    (p.group == "buffer" ? buffers : p.group == "frozen" ? frozen : trained) += p.value.numel();
  const auto moments = UpdateRules::create(train.optimizer.name, train.optimizer, "optimizer.name")->moments();
  const std::string bytes = " x " + std::to_string(size);
  const double k = ranks, weights = double(trained * size);

  std::vector<Plan::Line> memory{
      {"weights", double((trained + frozen + buffers) * size),
       times(trained, "trained, ") + times(frozen, "frozen, ") + times(buffers, "statistics") + bytes},
      {"gradients", weights, times(trained, "trained") + bytes}};
  for (const bool sharded : {false, true})
    memory.push_back({train.optimizer.name + std::string(sharded ? ", zero: 1" : ", zero: 0"),
                      double(moments) * weights / (sharded ? k : 1),
                      std::to_string(moments) + " moments of each" + (sharded ? " / K" : ""),
                      sharded == (train.zero == 1)});
  if (train.ema > 0) memory.push_back({"running average", weights, times(trained, "trained") + bytes});
  memory.insert(memory.end(), plan.memory.begin(), plan.memory.end());

  std::vector<Plan::Line> sent = plan.sent;
  sent.push_back({"gradients, all-reduce", 2 * (k - 1) / k * weights, "2 (K-1)/K P" + bytes});
  std::cout << "by formula, K = " << ranks << " ranks of b = " << train.batch_size / ranks
            << " samples, P = " << trained << ":\n";
  print_lines("bytes of memory of a rank, without activations", memory);
  print_lines("bytes that a rank sends in a step", sent);
}

}  // namespace trireme
