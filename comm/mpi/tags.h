// Tags of groups: two groups that share two ranks never have one tag at once, also where several threads split
// several groups at the same time, in another order on every rank. A split draws a tag without a lock that is held
// while it waits for others:
//   1. The first rank of the group that is split, its leader, claims the first free tag of a class of its own (tag =
//      leader modulo the size of the world), from which no other process begins.
//   2. Every other rank claims it too, if it is free there: then it is the new group's. Else all give it back and the
//      leader goes on behind it, now with a block of two, four ... tags, of which the lowest that all claim is kept.
// A tag is claimed by every member of its group, and given back by each once the group is gone there, its operations
// complete: no message of it can then be under way between two ranks that both have given it back.
#pragma once
#include <cstdint>
#include <mutex>
#include <set>

namespace trireme {

class Tags {
 public:
  // Tags from 0 to `highest`; 0 is the world's and claimed.
  Tags(int highest, int world_size) : highest_(highest), classes_(world_size) {}

  static constexpr int most_width = 64;
  // Tags of a leader, numbered from `first` within its class, and which of them are claimed here.
  struct Block {
    int leader = 0;           // a world rank
    std::int64_t first = -1;  // -1: no tag is free
    std::uint64_t claimed = 0;
  };
  // What is free of `width` tags. The leader begins at the first that is free with it, from number `first` on.
  Block claim_free(int leader, std::int64_t first, int width);
  Block claim(int leader, std::int64_t first, int width);
  // Keeps the lowest tag that all ranks have claimed, gives the rest back, and returns it; -1 if there is none.
  int keep(const Block& mine, std::uint64_t claimed_by_all);
  void give_back(int tag);
  int most() const { return highest_ / classes_; }  // tags of a class, but for the world's

 private:
  Block claim_locked(int leader, std::int64_t first, int width);
  std::int64_t tag(int leader, std::int64_t number) const { return leader + number * classes_; }

  const std::int64_t highest_, classes_;
  std::mutex mutex_;
  std::set<std::int64_t> claimed_{0};
};

}  // namespace trireme
