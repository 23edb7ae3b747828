// Room for codes on their way to each rank, the same for as long as it does, so that no sizes go ahead of them
// (compression.sizes: capacity): an eighth more than what was needed lately, or just that where it never changed. Ranks
// tell each other theirs after the first exchange, after each that had not enough room, and at every 64th where some
// rank's no longer suits it.
#pragma once
#include "comm/archive.h"
#include "comm/communicator.h"

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace trireme::dlrm {

struct RoomUse {
  double room = 0, needed = 0;  // bytes this rank sent and filled, headers left out
};

class Room {
 public:
  static constexpr std::int64_t review_every = 64;

  explicit Room(int ranks);

  // For chunks of so many values: of others all is forgotten. Then, and at first, there is none.
  bool known_for(std::int64_t values);
  // Bytes for codes, multiples of 8.
  const std::vector<std::int64_t>& to() const { return to_; }
  const std::vector<std::int64_t>& from() const { return from_; }
  bool enough(const std::vector<std::int64_t>& needed) const;

  // After each exchange, on all ranks: bytes of codes for each, and whether all ranks had room for theirs (none: it
  // went without). Gives the bytes that this call has sent.
  double note(const std::vector<std::int64_t>& needed, std::optional<bool> fitted, Communicator& host);
  std::int64_t overflows() const { return overflows_; }  // since the run began, alike on all ranks
  std::int64_t changes() const { return changes_; }      // of any rank's room, so far; alike on all ranks
  RoomUse take_use() { return std::exchange(use_, {}); }
  void state(Archive& ar);

 private:
  bool suits(std::size_t rank) const;
  std::int64_t wanted(std::size_t rank) const;

  std::int64_t values_ = 0, exchanges_ = 0, overflows_ = 0, changes_ = 0;
  std::vector<std::int64_t> most_, least_;  // that was needed since the last 64th exchange
  std::vector<std::int64_t> to_, from_;
  RoomUse use_;
};

}  // namespace trireme::dlrm
