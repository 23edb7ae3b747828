#include "recipes/dlrm/room.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace trireme::dlrm {

Room::Room(int ranks) : most_(std::size_t(ranks), 0), least_(most_), to_(most_), from_(most_) {}

bool Room::known_for(std::int64_t values) {
  if (values != values_) {
    for (auto* v : {&most_, &least_, &to_, &from_}) std::fill(v->begin(), v->end(), 0);
    values_ = values, exchanges_ = 0, ++changes_;
  }
  return exchanges_ > 0;
}

bool Room::enough(const std::vector<std::int64_t>& needed) const {
  return std::equal(needed.begin(), needed.end(), to_.begin(), [](auto n, auto room) { return n <= room; });
}

// A few exchanges tell nothing of what changes.
std::int64_t Room::wanted(std::size_t r) const {
  const bool fixed = exchanges_ % review_every == 0 && most_[r] == least_[r];
  return (most_[r] + (fixed ? 0 : most_[r] / 8) + 7) / 8 * 8;
}

// Each change costs whoever has recorded it; so does room that is hardly enough, or much more than that.
bool Room::suits(std::size_t r) const {
  const std::int64_t most = most_[r], room = to_[r];
  return most == least_[r] ? room == wanted(r) : room >= most + most / 16 && room <= most + most / 4 + 8;
}

double Room::note(const std::vector<std::int64_t>& needed, std::optional<bool> fitted, Communicator& host) {
  const bool begins = exchanges_ % review_every == 0;
  for (std::size_t r = 0; r < needed.size(); ++r) {
    most_[r] = begins ? needed[r] : std::max(most_[r], needed[r]);
    least_[r] = begins ? needed[r] : std::min(least_[r], needed[r]);
  }
  if (fitted) {
    use_.room += std::accumulate(to_.begin(), to_.end(), 0.0);
    use_.needed += std::accumulate(needed.begin(), needed.end(), 0.0);
    overflows_ += !*fitted;
  }
  const bool regular = ++exchanges_ % review_every == 0;
  if (fitted && *fitted && !regular) return 0;
  const double others = double(to_.size() - 1);
  double sent = 0;
  if (fitted && *fitted) {
    std::int64_t other = 0;
    for (std::size_t r = 0; r < to_.size(); ++r) other |= !suits(r);
    host.all_reduce({&other, 1, DType::i64}, Op::max).wait();
    sent += 2 * 8 * others / double(to_.size());
    if (!other) return sent;
  }
  for (std::size_t r = 0; r < to_.size(); ++r) to_[r] = regular ? wanted(r) : std::max(to_[r], wanted(r));
  const std::vector<std::size_t> one(to_.size(), 1);
  host.all_to_all({to_.data(), to_.size(), DType::i64}, one, {from_.data(), from_.size(), DType::i64}, one).wait();
  ++changes_;
  return sent + 8 * others;
}

void Room::state(Archive& ar) {
  if (!ar.has("room")) return;  // saved without, or by another number of ranks
  std::vector<std::int64_t> all{values_, exchanges_, overflows_};
  for (const auto* v : {&most_, &least_, &to_, &from_}) all.insert(all.end(), v->begin(), v->end());
  const std::array<std::int64_t, 1> shape{std::ssize(all)};
  ar.array("room", DType::i64, shape, all.data(), {Sharing::per_rank});
  auto at = all.begin();
  for (auto* n : {&values_, &exchanges_, &overflows_}) *n = *at++;
  for (auto* v : {&most_, &least_, &to_, &from_}) std::copy_n(std::exchange(at, at + std::ssize(*v)), v->size(), v->begin());
}

}  // namespace trireme::dlrm
