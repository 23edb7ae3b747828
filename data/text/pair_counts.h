// Which pair of neighbours is the most frequent in a set of words while pairs are being joined: how byte-pair encodings
// are learnt (Sennrich et al., ACL'16).
#pragma once
#include <cstdint>
#include <optional>
#include <queue>
#include <unordered_map>
#include <utility>
#include <vector>

namespace trireme {

class PairCounts {
 public:
  using Id = std::int32_t;
  using Pair = std::pair<Id, Id>;

  // A word that occurs `count` times. All words come before the first next().
  void add(std::vector<Id> ids, std::int64_t count);
  // The pair with the highest count, ties by the ids; none when every pair occurs less than twice. It stays the next
  // until it is joined or refused.
  std::optional<Pair> next();
  // Every such pair, from left to right, becomes `joined`.
  void join(Pair pair, Id joined);
  void never(Pair pair);  // whatever its count becomes

 private:
  struct Word {
    std::vector<Id> ids;
    std::int64_t count;
  };
  struct Seen {
    std::int64_t count = 0;
    bool refused = false;
    std::vector<std::uint32_t> words;  // some may hold the pair no more
  };
  struct Candidate {
    std::int64_t count;
    Pair pair;
    bool operator<(const Candidate& o) const { return count != o.count ? count < o.count : pair > o.pair; }
  };
  static std::uint64_t key(Pair p) { return (std::uint64_t(std::uint32_t(p.first)) << 32) | std::uint32_t(p.second); }

  std::vector<Word> words_;
  std::unordered_map<std::uint64_t, Seen> seen_;
  std::priority_queue<Candidate> heap_;  // counts may have sunk since
  bool filled_ = false;
};

}  // namespace trireme
