// Checkpoints: ckpt/step_%08d/{manifest.json, rank_%05d.h5}. Either complete or not there.
//
// Commit protocol: every rank writes its file into step_%08d.tmp-*, closes and fsyncs it; rank 0 writes the
// manifest (format_version, world size, bucket layout, each file's size and CRC32C, each tensor's name,
// shape, dtype, CRC32C), fsyncs, renames the folder and fsyncs its parent. Loading takes the newest complete
// one and removes leftovers.
#pragma once
#include "comm/archive.h"
#include "comm/communicator.h"
#include "framework/io/shared_bytes.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace trireme {

// State in memory: what one rank contributes to a checkpoint, or what it read from one.
class Snapshot {
 public:
  struct Entry {
    DType dtype;
    std::vector<std::int64_t> shape;
    Sharing sharing;
    bool is_text = false;
    SharedBytes bytes;
  };
  std::map<std::string, Entry> entries;
  std::string place;   // the folder it was read from, for errors
  int written_by = 0;  // ranks, where that is another number than this run's

  // Visits `state` with a saving archive and keeps copies. What several ranks hold is kept on the first of them only.
  static Snapshot take(const std::function<void(Archive&)>& state, int rank);
  // Visits `state` with a loading archive. Throws DataError for a missing name, shape or dtype.
  void restore(const std::function<void(Archive&)>& state) const;
};

class FileIo;

// All methods are collective and belong to the training thread; a thread of its own does file I/O only. An
// error on one rank is thrown on all, with that rank's message.
class Checkpoints {
 public:
  // dir: the run's ckpt folder, seen by all ranks. keep: newest checkpoints kept (at least 1), besides the
  // last `best`.
  Checkpoints(std::string dir, int keep, Communicator& comm);
  Checkpoints(std::string dir, int keep, Communicator& comm, FileIo& io);  // for tests
  ~Checkpoints();                                                          // waits for a write in flight

  // The newest complete checkpoint's step as this rank sees it. Not collective; touches nothing.
  std::optional<std::int64_t> newest() const;
  std::optional<std::int64_t> best() const;  // the newest marked so, alike
  // The newest complete checkpoint's step; removes leftovers of interrupted writes (rank 0).
  // `alone`: on rank 0, no other job can be writing here; else leftovers stay, they might be its.
  std::optional<std::int64_t> latest(bool alone = true);
  // Verifies sizes and CRCs; throws DataError naming the file. Another world size is legal: `replicated`
  // entries come from rank 0, `rows` are put together from all ranks, `per_rank` ones are absent.
  Snapshot load(std::int64_t step);
  // Begins writing in the background, after finish() of the previous write. manifest_extra_json: an object
  // ("{}").
  void save(std::int64_t step, Snapshot snapshot, const std::string& manifest_extra_json, bool best = false);
  // Is this rank's part of a write in flight on disk, so that finish() would not wait? Not collective: ask
  // all ranks.
  bool written() const;
  // Waits for the write in flight and commits it. Errors (disk full, read-only) are thrown here; they leave
  // the checkpoints before this one untouched, and none under this step's name.
  void finish();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A text of rank 0's in the newest complete checkpoint in `dir`; none without a checkpoint, or where it has no such
// name. Not collective; reads only, also while another job writes there. DataError as Checkpoints::load.
std::optional<std::string> saved_text(const std::string& dir, const std::string& name);

}  // namespace trireme
