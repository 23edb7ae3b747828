#include "trainers/sweep/cluster/gpus.h"

#include "comm/error.h"

#include <algorithm>
#include <numeric>

namespace trireme::cluster {
namespace {

// `count` of the ids, neighbours where a run of them is long enough: the shortest such run.
std::vector<int> neighbours(const std::vector<int>& ids, int count) {
  std::size_t best = ids.size(), best_length = ids.size() + 1;
  for (std::size_t begin = 0, end; begin < ids.size(); begin = end) {
    for (end = begin + 1; end < ids.size() && ids[end] == ids[end - 1] + 1;) ++end;
    if (end - begin >= std::size_t(count) && end - begin < best_length) best = begin, best_length = end - begin;
  }
  const auto from = ids.begin() + std::ptrdiff_t(best == ids.size() ? 0 : best);
  return {from, from + count};
}

}  // namespace

Gpus::Gpus(int count, int per_node) : per_node_(per_node), taken_(std::size_t(count), 0) {}

int Gpus::free() const { return int(std::count(taken_.begin(), taken_.end(), 0)); }

std::vector<int> Gpus::free_of(int node) const {
  std::vector<int> ids;
  for (int i = node * per_node_; i < std::min((node + 1) * per_node_, int(taken_.size())); ++i)
    if (!taken_[std::size_t(i)]) ids.push_back(i);
  return ids;
}

std::vector<int> Gpus::take(int count) {
  if (count > free()) throw Error(ExitCode::bug, "cluster", "more GPUs taken than are free");
  std::vector<std::vector<int>> nodes;
  for (int n = 0; n * per_node_ < int(taken_.size()); ++n) nodes.push_back(free_of(n));
  const std::vector<int>* fit = nullptr;
  for (const auto& ids : nodes)
    if (int(ids.size()) >= count && (!fit || ids.size() < fit->size())) fit = &ids;
  std::vector<int> chosen;
  if (fit) {
    chosen = neighbours(*fit, count);
  } else {
    std::stable_sort(nodes.begin(), nodes.end(), [](const auto& a, const auto& b) { return a.size() > b.size(); });
    for (const auto& ids : nodes)
      for (int id : ids)
        if (int(chosen.size()) < count) chosen.push_back(id);
    std::sort(chosen.begin(), chosen.end());
  }
  claim(chosen);
  return chosen;
}

void Gpus::claim(const std::vector<int>& these) {
  for (int id : these) {
    if (taken_.at(std::size_t(id))) throw Error(ExitCode::bug, "cluster", "GPU " + std::to_string(id) + " taken twice");
    taken_[std::size_t(id)] = 1;
  }
}

void Gpus::release(const std::vector<int>& these) {
  for (int id : these) taken_.at(std::size_t(id)) = 0;
}

}  // namespace trireme::cluster
