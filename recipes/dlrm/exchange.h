// One direction of the all-to-all between the ranks that hold tables and the ranks that hold samples, raw or through
// the bounded codec. A chunk is [b, d] f32 (f64 where nothing is coded): the rows of one table for the samples of one
// rank. Coded, it goes in two stages (SC'24, arXiv 2407.04272): the sizes of all chunks, then their bytes. Or in room
// of a fixed size (Room), sizes in front, and all of it once more in two stages where the room of some rank was too
// small.
#pragma once
#include "comm/communicator.h"
#include "comm/error.h"
#include "compression/codecs/bounded.h"
#include "framework/base/side_stream.h"
#include "recipes/dlrm/room.h"

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme::dlrm {

// How chunks are coded. `bounds`: one a chunk that is sent, relative to the range of all chunks of its `scope`.
struct Coding {
  const Bounded* codec = nullptr;  // null: raw. The same choice on all ranks, also on those that send nothing
  bool simulate = false;           // values as they would arrive, sent as they are: nothing is saved
  // Set: one a chunk that is sent, whose codec takes the place of that of `codec`.
  std::vector<const Bounded*> codecs = {};
  std::vector<float> bounds = {};
  std::vector<std::uint32_t> scopes = {};
  bool in_room = false;   // settle() will be called
  bool recorded = false;  // the call is, or will be, recorded into a graph: accept() takes the place of settle()
};

// Of this rank; chunks that stay here are not in it, headers and sizes are.
struct ExchangeBytes {
  double plain = 0, sent = 0;
};

// What a rank sent is no code: chunk `chunk` of those from `rank`, counted from 0.
struct BadChunk : CommError {
  BadChunk(int rank, std::size_t chunk, const std::string& why);
  int rank;
  std::size_t chunk;
};

class RowExchange {
 public:
  // to, from: chunks for and from each rank. `sizes`: for the sizes of codes in device memory, a communicator of the
  // host; may be `rows` itself where that is one. Both must outlive this.
  RowExchange(Communicator& rows, Communicator& sizes, std::vector<std::size_t> to, std::vector<std::size_t> from);

  // send [sum of to, b, d], recv [sum of from, b, d]: rank by rank, both must stay as they are until finish(). With a
  // codec, `send` is changed by `simulate` only. On a device codes are made, sent and read on a stream of its own, and
  // the host waits for their sizes in finish(): what the caller enqueues between the two runs beside them.
  void start(const at::Tensor& send, const at::Tensor& recv, const Coding& coding);
  // `recv` is there, on a device once join() is called; but see settle(). Throws BadChunk.
  void finish();
  void join();  // the current stream waits for it
  // Of codes in a room, after finish(): what was in `recv` was nothing to go by, for somebody's room was too small; it
  // is there now. All ranks say the same. On a device it waits for what arrived (only here does the host wait for
  // that), so what is enqueued before need not; neither `send` nor `recv` may have changed.
  bool settle();
  // After each replay (and each call) that was recorded, once the device is done with it: counts it, and says, like on
  // all ranks, whether all had room. Where not, nothing that was received counts.
  bool accept();
  // On a device nobody looks at once: was a code bad since the last call? Its number among those decoded in its call.
  // Waits for the device.
  std::optional<std::size_t> take_bad();
  ExchangeBytes take_bytes() { return std::exchange(bytes_, {}); }
  Room& room() { return room_; }
  // For measurements: nothing travels any more, copies of what this rank sends stand in for what it would get (sizes
  // first, as if there were no room). Room is forgotten.
  void stay(bool here) { here_ = here, room_ = Room(rows_.size()); }
  bool stays() const { return here_; }
  // Of the last call: coded bytes of each chunk sent, 0: it stayed here; and of each not coded.
  const std::vector<std::uint64_t>& sizes() const { return send_sizes_; }
  std::int64_t chunk_bytes() const { return chunk_bytes_; }

 private:
  void start_coded();
  void encode();
  void encode_on_device(std::span<const TableChunk> chunks);
  std::vector<CodePart> parts(const std::vector<std::size_t>& chunks, const std::vector<std::int64_t>& room) const;
  std::vector<std::int64_t> needed() const;
  bool all_had_room() const;
  ExchangeBytes& counted() { return coding_.recorded ? recorded_.bytes : bytes_; }
  void make_room(at::Tensor& memory, std::size_t bytes) const;
  void send_parts();
  void finish_parts();
  void finish_coded();
  void finish_on_device();
  void take_sizes();
  void send_sizes();
  Work send_payload();
  void keep_values();
  void keep_codes();
  std::vector<CodedChunk> arrived(std::vector<std::size_t>& number);
  void decode();
  void remember(const at::Tensor& status);
  std::vector<std::size_t> values(const std::vector<std::size_t>& chunks) const;
  int source_of(std::size_t chunk) const;

  Communicator &rows_, &sizes_;
  const std::vector<std::size_t> to_, from_;
  at::Tensor send_, recv_;
  Coding coding_;
  bool coded_ = false;  // what is on its way is codes
  bool here_ = false;
  Room room_;
  bool in_room_ = false, settled_ = true;
  std::vector<std::uint64_t> send_sizes_, recv_sizes_;
  std::int64_t chunk_bytes_ = 0;
  at::Tensor encoded_, received_, scratch_;  // u8
  std::optional<SideStream> side_;           // of a device
  at::Tensor coded_sizes_, lacks_;  // there after the side stream's mark, pinned: i64; first words of parts, by rank
  at::Tensor status_, bad_;         // i32 [1], on a device: of the last decoding; of all since take_bad()
  Work work_;
  ExchangeBytes bytes_;
  struct {
    ExchangeBytes bytes;
    std::int64_t chunk_bytes = 0;
    bool in_room = false;
    at::Tensor status;
  } recorded_;  // of a call that was
};

}  // namespace trireme::dlrm
