#include "framework/gradients/order.h"

#include "comm/error.h"
#include "framework/base/replicas.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <sstream>
#include <unordered_map>

namespace trireme {
namespace {

std::unordered_map<std::string, std::int64_t> ids_of(const std::vector<std::string>& names) {
  std::unordered_map<std::string, std::int64_t> ids;
  for (const auto& name : names) ids.emplace(name, std::int64_t(ids.size()));
  return ids;
}

}  // namespace

SharedOrder::SharedOrder(const std::vector<Param>& params, Communicator& comm)
    : comm_(comm), names_(all_names(params, comm)) {
  const auto ids = ids_of(names_);
  for (const auto& p : params) id_of_.push_back(ids.at(p.name));
  std::vector<std::int64_t> reverse(params.size());
  std::iota(reverse.rbegin(), reverse.rend(), 0);
  adopt(reverse);
}

void SharedOrder::set(std::vector<std::int64_t> order) {
  order_ = std::move(order);
  std::vector<std::int64_t> param_of(names_.size(), -1);
  for (std::size_t i = 0; i < id_of_.size(); ++i) param_of[std::size_t(id_of_[i])] = std::int64_t(i);
  own_.clear();
  for (const auto id : order_)
    if (param_of[std::size_t(id)] >= 0) own_.push_back(param_of[std::size_t(id)]);
}

bool SharedOrder::adopt(const std::vector<std::int64_t>& seen) {
  std::vector<std::int64_t> wish(names_.size(), std::numeric_limits<std::int64_t>::max());  // rank, then place
  for (std::size_t k = 0; k < seen.size(); ++k)
    wish[std::size_t(id_of_[std::size_t(seen[k])])] = (std::int64_t(comm_.rank()) << 32) + std::int64_t(k);
  comm_.all_reduce({wish.data(), wish.size(), DType::i64, {}}, Op::min).wait();
  const auto place = [&](std::int64_t id) {
    const std::int64_t w = wish[std::size_t(id)];
    return std::pair(w & 0xffffffff, w >> 32);
  };
  std::vector<std::int64_t> order(names_.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return place(a) < place(b); });
  const bool changed = order != order_;
  set(std::move(order));
  return changed;
}

void SharedOrder::state(Archive& ar) {
  std::string listed;  // what the numbers of `order` stand for
  for (const auto& name : names_) listed += name + "\n";
  std::vector<std::int64_t> order = order_;
  const std::int64_t n = std::int64_t(order.size());
  ar.array("order", DType::i64, {&n, 1}, order.data());
  if (ar.has("names")) ar.text("names", listed);  // not there: all ranks had these, as they are registered
  if (!ar.loading()) return;
  const auto ids = ids_of(names_);
  std::vector<std::int64_t> meaning;
  std::istringstream lines(listed);
  for (std::string name; std::getline(lines, name);) {
    const auto found = ids.find(name);
    if (found == ids.end()) throw DataError("order", "the checkpoint has a parameter " + name + ", this run has not");
    meaning.push_back(found->second);
  }
  std::vector<bool> taken(names_.size());
  for (auto& id : order) {
    if (meaning.size() != names_.size() || id < 0 || id >= n || taken[std::size_t(meaning[std::size_t(id)])])
      throw DataError("order", "the saved bucket order is not an order of this run's parameters",
                      "resume from another checkpoint");
    id = meaning[std::size_t(id)];
    taken[std::size_t(id)] = true;
  }
  set(std::move(order));
}

}  // namespace trireme
