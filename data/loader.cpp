#include "data/loader.h"

#include "comm/error.h"
#include "data/rng.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include <ATen/Parallel.h>

#include <omp.h>

namespace trireme {
namespace {

// How far to read ahead. Threads wake each other only when this is used up by half: a wake-up costs as much as a
// small step.
constexpr std::size_t least_ahead = 2, most_ahead = 16, ahead_bytes = 64 << 20;

std::size_t bytes_of(const Batch& batch) {
  std::size_t bytes = 0;
  for (const auto& [name, column] : batch.columns) bytes += column.nbytes();
  return bytes;
}

}  // namespace

struct Cursor {
  std::int64_t epoch = 0, batch = 0;
};

struct Loader::Reader {
  const Dataset& data;
  const std::vector<std::int64_t> split;
  const std::int64_t global_batch;
  const int rank, size;
  const std::uint64_t seed;
  const LoaderOptions options;
  Cursor next;  // what next() returns
  std::optional<Batch> peeked = {};

  // The order of one epoch; only the reading thread touches it.
  std::int64_t order_epoch = -1;
  std::vector<std::int64_t> order;

  std::mutex mutex;
  std::condition_variable_any changed;
  std::deque<Batch> ready;
  std::size_t refill_below = 0;  // the reading thread sleeps until fewer are ready; 0: it is at work
  std::exception_ptr error;
  std::jthread thread;  // last: it stops before the rest goes

  std::int64_t steps() const { return std::int64_t(split.size()) / global_batch; }
  void advance(Cursor& c) const {
    if (++c.batch == steps()) c = {c.epoch + 1, 0};
  }

  Batch read(const Cursor& c) {
    if (order_epoch != c.epoch) {
      const auto n = std::int64_t(split.size());
      order.resize(n);
      if (options.shuffle)
        order = permutation(n, Rng(seed, "order", std::uint64_t(c.epoch)));
      else
        for (std::int64_t i = 0; i < n; ++i) order[i] = i;
      order_epoch = c.epoch;
    }
    std::vector<std::int64_t> global(global_batch);
    for (std::int64_t i = 0; i < global_batch; ++i) global[i] = split[order[c.batch * global_batch + i]];
    const std::int64_t rows = global_batch / size;
    Batch batch = data.read(std::span(global).subspan(rank * rows, rows), c.epoch);
    batch.ids.assign(global.begin() + rank * rows, global.begin() + (rank + 1) * rows);
    batch.global_ids = std::move(global);
    batch.epoch = c.epoch;
    batch.index = c.batch;
    return batch;
  }

  void run(std::stop_token stop, Cursor c) {
    // A second team of threads would spin beside the one that trains.
    at::get_num_threads();  // torch sets a thread's number at its first question
    omp_set_num_threads(1);
    try {
      while (!stop.stop_requested()) {
        Batch batch = read(c);
        advance(c);
        std::unique_lock lock(mutex);
        ready.push_back(std::move(batch));
        if (ready.size() == 1) changed.notify_all();
        const std::size_t n = ready.size();
        if (n < least_ahead || (n < most_ahead && (n + 1) * bytes_of(ready.back()) <= ahead_bytes)) continue;
        refill_below = std::max(least_ahead, (n + 1) / 2);
        changed.wait(lock, stop, [&] { return refill_below == 0; });
      }
    } catch (...) {
      std::lock_guard lock(mutex);
      error = std::current_exception();
      changed.notify_all();
    }
  }

  void stop() {
    peeked.reset();
    if (!thread.joinable()) return;
    thread.request_stop();
    thread.join();
    ready.clear();
    refill_below = 0;
    error = nullptr;
    order_epoch = -1;
  }

  Batch take() {
    if (!options.prefetch) return read(next);
    if (!thread.joinable()) thread = std::jthread([this, c = next](std::stop_token s) { run(s, c); });
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return !ready.empty() || error; });
    if (ready.empty()) {  // batches read before the failure come first
      const std::exception_ptr first = error;
      lock.unlock();
      stop();
      std::rethrow_exception(first);
    }
    Batch batch = std::move(ready.front());
    ready.pop_front();
    const bool refill = ready.size() < refill_below;
    if (refill) refill_below = 0;
    lock.unlock();  // or the reading thread would wake up only to wait for it
    if (refill) changed.notify_all();
    return batch;
  }
};

Loader::Loader(const Dataset& data, std::vector<std::int64_t> ids, std::int64_t global_batch, int rank, int size,
               std::uint64_t seed, LoaderOptions options) {
  const auto n = std::int64_t(ids.size());
  const std::string batch = "a global batch of " + std::to_string(global_batch);
  if (global_batch <= 0) throw UsageError("batch_size", batch, "make it at least 1");
  if (size <= 0 || rank < 0 || rank >= size || global_batch % size != 0)
    throw UsageError("batch_size", batch + " does not divide over " + std::to_string(size) + " ranks",
                     "choose a multiple of the number of ranks");
  if (n < global_batch)
    throw UsageError("batch_size", batch + " is more than the " + std::to_string(n) + " samples of the split",
                     "lower it or prepare more data");
  for (auto id : ids)
    if (id < 0 || id >= data.size())
      throw DataError("loader", "sample " + std::to_string(id) + " of the split is not among the " +
                                    std::to_string(data.size()) + " of the data set");
  reader_.reset(
      new Reader{data, std::move(ids), global_batch, rank, size, seed, options, {}, {}, -1, {}, {}, {}, {}, {}, {}, {}});
}

Loader::~Loader() = default;

std::int64_t Loader::steps_per_epoch() const { return reader_->steps(); }
std::int64_t Loader::epoch() const { return reader_->next.epoch; }
std::int64_t Loader::batch_in_epoch() const { return reader_->next.batch; }

Batch Loader::next() {
  peek();
  Batch batch = *std::exchange(reader_->peeked, std::nullopt);
  reader_->advance(reader_->next);
  return batch;
}

const Batch& Loader::peek() {
  if (!reader_->peeked) reader_->peeked = reader_->take();
  return *reader_->peeked;
}

void Loader::state(Archive& archive) {
  Cursor& c = reader_->next;
  std::int64_t epoch = c.epoch, batch = c.batch;
  archive.value("epoch", epoch);
  archive.value("batch", batch);
  if (!archive.loading()) return;
  if (epoch < 0 || batch < 0 || batch >= reader_->steps())
    throw DataError("loader",
                    "saved position (epoch " + std::to_string(epoch) + ", batch " + std::to_string(batch) +
                        ") is outside an epoch of " + std::to_string(reader_->steps()) + " batches",
                    "resume with the same data and global batch, or start anew with --fresh");
  reader_->stop();
  c = {epoch, batch};
}

}  // namespace trireme
