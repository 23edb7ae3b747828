#include "recipes/dlrm/room.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace trireme::dlrm {

Room::Room(int ranks) : recent_(std::size_t(ranks), 0), to_(recent_), from_(recent_) {}

bool Room::known_for(std::int64_t values) {
  if (values != values_) {
    for (auto* v : {&recent_, &to_, &from_}) std::fill(v->begin(), v->end(), 0);
    values_ = values, exchanges_ = 0;
  }
  return exchanges_ > 0;
}

bool Room::enough(const std::vector<std::int64_t>& needed) const {
  return std::equal(needed.begin(), needed.end(), to_.begin(), [](auto n, auto room) { return n <= room; });
}

double Room::note(const std::vector<std::int64_t>& needed, std::optional<bool> fitted, Communicator& host) {
  for (std::size_t r = 0; r < needed.size(); ++r) recent_[r] = std::max(recent_[r], needed[r]);
  if (fitted) {
    use_.room += std::accumulate(to_.begin(), to_.end(), 0.0);
    use_.needed += std::accumulate(needed.begin(), needed.end(), 0.0);
    overflows_ += !*fitted;
  }
  const bool regular = ++exchanges_ % review_every == 0;
  if (fitted && *fitted && !regular) return 0;
  for (std::size_t r = 0; r < to_.size(); ++r) {
    const std::int64_t wanted = (recent_[r] + recent_[r] / 8 + 7) / 8 * 8;
    to_[r] = regular ? wanted : std::max(to_[r], wanted);
    if (regular) recent_[r] = 0;
  }
  const std::vector<std::size_t> one(to_.size(), 1);
  host.all_to_all({to_.data(), to_.size(), DType::i64}, one, {from_.data(), from_.size(), DType::i64}, one).wait();
  return 8 * double(to_.size() - 1);
}

void Room::state(Archive& ar) {
  if (!ar.has("room")) return;  // saved without, or by another number of ranks
  std::vector<std::int64_t> all{values_, exchanges_, overflows_};
  for (const auto* v : {&recent_, &to_, &from_}) all.insert(all.end(), v->begin(), v->end());
  const std::array<std::int64_t, 1> shape{std::ssize(all)};
  ar.array("room", DType::i64, shape, all.data(), {Sharing::per_rank});
  auto at = all.begin();
  for (auto* n : {&values_, &exchanges_, &overflows_}) *n = *at++;
  for (auto* v : {&recent_, &to_, &from_}) std::copy_n(std::exchange(at, at + std::ssize(*v)), v->size(), v->begin());
}

}  // namespace trireme::dlrm
