#include "data/text/pair_counts.h"

#include <algorithm>

namespace trireme {

void PairCounts::add(std::vector<Id> ids, std::int64_t count) {
  const auto w = std::uint32_t(words_.size());
  for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
    Seen& s = seen_[key({ids[i], ids[i + 1]})];
    s.count += count;
    if (s.words.empty() || s.words.back() != w) s.words.push_back(w);
  }
  words_.push_back({std::move(ids), count});
}

std::optional<PairCounts::Pair> PairCounts::next() {
  if (!filled_)
    for (const auto& [k, s] : seen_) heap_.push({s.count, {Id(k >> 32), Id(k & 0xFFFFFFFF)}});
  filled_ = true;
  while (!heap_.empty()) {
    const Candidate c = heap_.top();
    const Seen& now = seen_[key(c.pair)];
    if (!now.refused && now.count == c.count) return c.count >= 2 ? std::optional(c.pair) : std::nullopt;
    heap_.pop();
    if (!now.refused && now.count >= 2 && now.count < c.count) heap_.push({now.count, c.pair});
  }
  return std::nullopt;
}

void PairCounts::never(Pair pair) { seen_[key(pair)].refused = true; }

void PairCounts::join(Pair pair, Id joined) {
  auto touched = std::move(seen_[key(pair)].words);
  std::sort(touched.begin(), touched.end());
  touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
  std::vector<Pair> grown;
  for (const std::uint32_t w : touched) {
    std::vector<Id>& ids = words_[w].ids;
    const std::int64_t count = words_[w].count;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) seen_[key({ids[i], ids[i + 1]})].count -= count;
    std::size_t out = 0;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const bool both = i + 1 < ids.size() && ids[i] == pair.first && ids[i + 1] == pair.second;
      ids[out++] = both ? joined : ids[i];
      if (both) ++i;
    }
    ids.resize(out);
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const Pair p{ids[i], ids[i + 1]};
      Seen& s = seen_[key(p)];
      s.count += count;
      if (p.first != joined && p.second != joined) continue;
      if (s.words.empty() || s.words.back() != w) s.words.push_back(w);
      grown.push_back(p);
    }
  }
  std::sort(grown.begin(), grown.end());
  grown.erase(std::unique(grown.begin(), grown.end()), grown.end());
  for (const Pair& p : grown) heap_.push({seen_[key(p)].count, p});
}

}  // namespace trireme
