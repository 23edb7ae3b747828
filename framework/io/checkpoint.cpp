#include "framework/io/checkpoint.h"

#include "comm/error.h"
#include "framework/base/agree.h"
#include "framework/io/assembly.h"
#include "framework/io/file_io.h"
#include "framework/io/rank_file.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <set>
#include <thread>

#include <nlohmann/json.hpp>

#include <unistd.h>

namespace trireme {
namespace {

constexpr std::size_t max_manifest = std::size_t{256} << 20;

std::string step_name(std::int64_t step) {
  std::array<char, 40> text;
  std::snprintf(text.data(), text.size(), "step_%08lld", static_cast<long long>(step));
  return text.data();
}

// "step_00000120" gives 120; "step_00000120.tmp-1f" gives none, or 120 with `suffix` ".tmp-".
std::optional<std::int64_t> step_of(std::string_view name, std::string_view suffix = {}) {
  constexpr std::string_view prefix = "step_";
  const std::string_view whole = name;
  if (!name.starts_with(prefix)) return {};
  name.remove_prefix(prefix.size());
  std::int64_t step = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  const auto digits = std::size_t(end - name.data());
  if (error != std::errc() || digits < 8 || step < 0) return {};
  name.remove_prefix(digits);
  if (suffix.empty() ? !name.empty() : !name.starts_with(suffix)) return {};
  if (!whole.starts_with(step_name(step) + std::string(suffix))) return {};  // zeros too many: not a name of ours
  return step;
}

std::string unique_suffix() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
  return std::to_string(getpid()) + "-" + std::to_string(now);
}

bool is_complete(FileIo& io, const std::string& folder) {
  std::vector<std::string> names;
  return io.list(folder, names) >= 0 && std::find(names.begin(), names.end(), "manifest.json") != names.end();
}

Manifest read_manifest(FileIo& io, const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  const auto bytes = read_whole(io, path, max_manifest);
  return Manifest::parse({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, path);
}

std::vector<std::int64_t> complete_steps(FileIo& io, const std::string& dir) {
  for (std::vector<std::string> names, before;; before = names) {
    const int status = io.list(dir, names);
    if (status == -ENOENT) return {};
    if (status < 0) throw DataError(dir, "cannot list: " + std::generic_category().message(-status));
    std::vector<std::int64_t> steps;
    bool all = true;
    for (const auto& name : names)
      if (const auto step = step_of(name)) {
        const bool complete = is_complete(io, dir + "/" + name);
        if (complete) steps.push_back(*step);
        all &= complete;
      }
    // A job that writes there may have removed the only one, for a newer one that was not there yet.
    if (steps.empty() && !all && names != before) continue;
    std::sort(steps.begin(), steps.end());
    return steps;
  }
}

}  // namespace

struct Checkpoints::Impl {
  std::string dir;
  int keep;
  Communicator& comm;
  FileIo& io;

  struct Write {
    std::int64_t step;
    bool best;
    std::string extra;
    std::string folder;  // temporary
    std::thread thread;
    std::atomic<bool> done = false;
    std::string part;  // of the manifest; valid after the join
    std::optional<Failure> failure;
  };
  std::unique_ptr<Write> write;
  std::map<std::int64_t, bool> best;  // rank 0: which checkpoints are marked best

  std::string final_folder(std::int64_t step) const { return dir + "/" + step_name(step); }
  std::vector<std::int64_t> complete_steps() { return trireme::complete_steps(io, dir); }
  void remove_leftovers();
  void commit(const Manifest& m, const std::string& folder);
  void prune(std::int64_t newest) noexcept;
};

// Best effort: a run folder may be read-only for who evaluates it.
void Checkpoints::Impl::remove_leftovers() {
  std::vector<std::string> names;
  if (io.list(dir, names) < 0) return;
  for (const auto& name : names) {
    const std::string path = dir + "/" + name;
    if (write && write->folder == path) continue;
    // A displaced checkpoint is the good one until its successor has the name.
    if (const auto step = step_of(name, ".old-"))
      if (is_complete(io, path) && !is_complete(io, final_folder(*step)) && io.rename(path, final_folder(*step)) >= 0)
        continue;
    if (step_of(name, ".tmp-") || step_of(name, ".old-")) remove_folder(io, path);
  }
}

// Either the whole folder gets its name, durably, or nothing changes.
void Checkpoints::Impl::commit(const Manifest& m, const std::string& folder) {
  write_durably(io, folder + "/manifest.json", m.print());
  sync_folder(io, folder);
  const std::string to = final_folder(m.step);
  const std::string old = to + ".old-" + unique_suffix();
  const int status = io.rename(to, old);
  if (status < 0 && status != -ENOENT) throw DataError(to, "cannot replace the checkpoint of this step");
  try {
    rename_path(io, folder, to);
    sync_folder(io, dir);
  } catch (...) {
    io.rename(to, folder);
    if (status >= 0) io.rename(old, to);
    throw;
  }
  if (status >= 0) remove_folder(io, old);
  best[m.step] = m.best;
}

void Checkpoints::Impl::prune(std::int64_t newest) noexcept try {
  auto steps = complete_steps();
  std::set<std::int64_t> kept = {newest};
  for (auto it = steps.rbegin(); it != steps.rend() && kept.size() < std::size_t(keep); ++it) kept.insert(*it);
  for (auto it = steps.rbegin(); it != steps.rend(); ++it) {
    if (!best.contains(*it)) {
      try {
        best[*it] = read_manifest(io, final_folder(*it)).best;
      } catch (const Error&) {
        kept.insert(*it);  // it may be the best, and a disk that answers again
        continue;
      }
    }
    if (best[*it]) {
      kept.insert(*it);
      break;
    }
  }
  for (std::int64_t step : steps) {
    if (kept.contains(step)) continue;
    // Loses its name first: a crash half way must not leave a checkpoint without some of its files.
    const std::string doomed = final_folder(step) + ".tmp-" + unique_suffix();
    if (io.rename(final_folder(step), doomed) >= 0) remove_folder(io, doomed);
    best.erase(step);
  }
} catch (...) {  // the new checkpoint is safe; old ones are removed after the next save
}

Checkpoints::Checkpoints(std::string dir, int keep, Communicator& comm)
    : Checkpoints(std::move(dir), keep, comm, system_io()) {}

Checkpoints::Checkpoints(std::string dir, int keep, Communicator& comm, FileIo& io)
    : impl_(new Impl{std::move(dir), std::max(keep, 1), comm, io, {}, {}}) {}

Checkpoints::~Checkpoints() {
  if (impl_->write && impl_->write->thread.joinable()) impl_->write->thread.join();
}

std::optional<std::int64_t> Checkpoints::newest() const {
  const auto steps = impl_->complete_steps();
  return steps.empty() ? std::nullopt : std::optional(steps.back());
}

std::optional<std::int64_t> Checkpoints::best() const {
  std::vector<std::int64_t> before;
  for (auto steps = impl_->complete_steps(); steps != before; steps = impl_->complete_steps()) {
    before = steps;
    try {
      for (; !steps.empty(); steps.pop_back())
        if (read_manifest(impl_->io, impl_->final_folder(steps.back())).best) return steps.back();
    } catch (const DataError&) {
      if (is_complete(impl_->io, impl_->final_folder(steps.back()))) throw;
      before.clear();  // a job that writes there has removed it, as it may the best one for a better
    }
  }
  return std::nullopt;
}

std::optional<std::int64_t> Checkpoints::latest(bool alone) {
  std::int64_t step = -1;
  const auto failure = attempt([&] {
    if (impl_->comm.rank() != 0) return;
    if (alone) impl_->remove_leftovers();
    const auto steps = impl_->complete_steps();
    if (!steps.empty()) step = steps.back();
  });
  agree(impl_->comm, failure);
  impl_->comm.broadcast({&step, 1, DType::i64}, 0).wait();
  return step < 0 ? std::nullopt : std::optional(step);
}

Snapshot Checkpoints::load(std::int64_t step) {
  Snapshot snapshot;
  const std::string folder = impl_->final_folder(step);
  const auto read = [&] {
    const Manifest m = read_manifest(impl_->io, folder);
    if (m.step != step) throw DataError(folder + "/manifest.json", "belongs to step " + std::to_string(m.step));
    const int rank = impl_->comm.rank();
    const bool same = m.world_size == impl_->comm.size();
    snapshot.place = folder;
    if (!same) snapshot.written_by = m.world_size;
    Assembly assembly;
    const auto wanted = [&](const Manifest::Tensor& t) {
      if (t.sharing.kind == Sharing::replicated) return t.rank == 0;
      if (!same) return t.sharing.kind == Sharing::rows;
      const auto& holders = t.sharing.holders;
      return holders.empty() ? t.rank == rank : std::binary_search(holders.begin(), holders.end(), rank);
    };
    const auto take = [&](const Manifest::Tensor& t, SharedBytes data) {
      if (t.sharing.kind == Sharing::rows && !same)
        assembly.add(t, std::move(data), folder);
      else
        snapshot.entries[t.name] = {t.dtype, t.shape, t.sharing, t.is_text, std::move(data)};
    };
    std::set<int> ranks = {0};
    if (same) ranks.insert(rank);
    for (const auto& t : m.tensors)
      if (wanted(t)) ranks.insert(t.rank);
    for (const int r : ranks) read_rank_file(impl_->io, folder, m, r, wanted, take);
    assembly.finish(snapshot, folder);
  };
  const auto failure = attempt([&] {
    try {
      read();
    } catch (const DataError& e) {
      throw DataError("", e.what(), "move " + folder + " away to resume from the checkpoint before it");
    }
  });
  agree(impl_->comm, failure);
  return snapshot;
}

void Checkpoints::save(std::int64_t step, Snapshot snapshot, const std::string& manifest_extra_json, bool best) {
  finish();
  auto& comm = impl_->comm;
  std::array<char, 128> suffix = {};
  const auto failure = attempt([&] {
    if (!nlohmann::json::parse(manifest_extra_json, nullptr, false).is_object())
      throw Error(ExitCode::bug, "checkpoint", "the manifest's extra part is not a JSON object");
    if (comm.rank() != 0) return;
    const std::string text = ".tmp-" + unique_suffix();
    text.copy(suffix.data(), suffix.size() - 1);
    make_folder(impl_->io, impl_->dir);
    make_folder(impl_->io, impl_->final_folder(step) + text);
  });
  agree(comm, failure);
  comm.broadcast({suffix.data(), suffix.size(), DType::u8}, 0).wait();

  const std::string folder = impl_->final_folder(step) + suffix.data();
  impl_->write.reset(new Impl::Write{step, best, manifest_extra_json, folder, {}, {}, {}, {}});
  auto work = [write = impl_->write.get(), &io = impl_->io, rank = comm.rank(),
               snapshot = std::move(snapshot)]() mutable {
    write->failure = attempt([&] { write->part = write_rank_file(io, write->folder, rank, std::move(snapshot)); });
    write->done = true;
  };
  impl_->write->thread = std::thread(std::move(work));
}

bool Checkpoints::written() const { return impl_->write && impl_->write->done; }

void Checkpoints::finish() {
  if (!impl_->write) return;
  if (impl_->write->thread.joinable()) impl_->write->thread.join();
  const auto write = std::move(impl_->write);
  auto& comm = impl_->comm;
  const bool root = comm.rank() == 0;

  auto failure = shared_failure(comm, write->failure);
  if (!failure) {
    const std::string all = gather_text(comm, write->part);
    std::optional<Failure> mine;
    if (root)
      mine = attempt([&] {
        Manifest m;
        m.step = write->step;
        m.world_size = comm.size();
        m.best = write->best;
        m.extra = write->extra;
        for (std::size_t at = 0; at < all.size();) {
          const auto end = all.find('\n', at);
          add_part(m, std::string_view(all).substr(at, end - at));
          at = end + 1;
        }
        impl_->commit(m, write->folder);
      });
    failure = shared_failure(comm, mine);
  }
  if (root) {
    if (failure)
      remove_folder(impl_->io, write->folder);
    else
      impl_->prune(write->step);
  }
  if (failure) raise(*failure);
}

std::optional<std::string> saved_text(const std::string& dir, const std::string& name) {
  FileIo& io = system_io();
  if (!std::filesystem::is_directory(dir)) return std::nullopt;  // or a file, which whoever writes there refuses
  for (auto steps = complete_steps(io, dir); !steps.empty();) {
    const std::int64_t step = steps.back();
    const std::string folder = dir + "/" + step_name(step);
    try {
      return read_rank_text(folder, read_manifest(io, folder), name);
    } catch (const DataError& e) {
      steps = complete_steps(io, dir);  // a job that writes there may have removed it for a newer one
      if (!steps.empty() && steps.back() == step)
        throw DataError("", e.what(), "move " + folder + " away to take the checkpoint before it");
    }
  }
  return std::nullopt;
}

}  // namespace trireme
