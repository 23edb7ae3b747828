// The ids of a step are at the owners of their tables before it begins: they travel during the step before.
#pragma once
#include "framework/context.h"
#include "framework/pinned.h"
#include "recipes/dlrm/tables.h"

#include <deque>
#include <utility>

namespace trireme::dlrm {

// Every call is collective, with the same batches on all ranks.
class IdsAhead {
 public:
  IdsAhead(ShardedTables& tables, Context& context);

  // Of the micro-batch that comes next; behind a step's last one those of Context::next are sent.
  ShardedTables::Ids take(const Batch& batch);
  bool at_begin() const { return part_ == 0; }  // of a step's micro-batches
  // Waits, or what comes would be written into memory of others.
  void forget();

  // Steps that are recorded (Context::recorded) find ids in memory that stays, and send those of the step after theirs
  // from there: where that was known when the first one was recorded, otherwise their own.
  void ready(const Batch& batch, const Batch* next);  // by the host, before a step is recorded or replayed
  ShardedTables::Ids recorded(const Batch& batch);
  void send_next();  // when rows are there: the link has nothing else to do
  void join_next();  // before the first of the step's graphs ends
  void advance();    // behind what last reads this step's

 private:
  using Number = std::pair<std::int64_t, std::int64_t>;  // epoch and index
  struct Sent {
    Number number;
    ShardedTables::Ids ids;
  };
  static Number number_of(const Batch& batch) { return {batch.epoch, batch.index}; }
  static at::Tensor part_of(const Batch& batch, std::int64_t k, std::int64_t parts);
  void stand(const Batch& batch);

  ShardedTables& tables_;
  Context& context_;
  std::deque<Sent> sent_;            // of the step to come, by micro-batch
  std::int64_t part_ = 0;            // the micro-batch of this step
  std::optional<bool> looks_ahead_;  // recorded steps do, for good; none: there was none yet
  ShardedTables::Ids standing_, coming_;
  std::optional<Number> stands_;  // whose ids those will be once what is enqueued has run
  at::Tensor input_;              // what a step sends for the one after it
  PinnedBuffers pinned_;
};

}  // namespace trireme::dlrm
