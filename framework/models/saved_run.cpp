#include "framework/models/saved_run.h"

#include "comm/error.h"
#include "comm/local/self.h"
#include "framework/base/tensor.h"

#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include <ATen/ATen.h>

namespace trireme {
namespace {

std::int64_t step_of(const std::string& path, const Checkpoints& checkpoints, const std::string& wanted) {
  std::int64_t step = 0;
  if (wanted == "newest" || wanted == "best") {
    const auto found = wanted == "best" ? checkpoints.best() : checkpoints.newest();
    if (!found)
      throw DataError(path, "has no complete checkpoint" + std::string(wanted == "best" ? " marked best" : ""));
    return *found;
  }
  const char* end = wanted.data() + wanted.size();
  if (const auto r = std::from_chars(wanted.data(), end, step); r.ec != std::errc() || r.ptr != end || step < 0)
    throw UsageError("--step", "'" + wanted + "' is no step", "write a number, newest or best");
  char name[32];
  std::snprintf(name, sizeof name, "/ckpt/step_%08lld", static_cast<long long>(step));
  if (!std::filesystem::exists(path + name))
    throw DataError(path + name, "is not there", "take a step of " + path + "/ckpt, or newest");
  return step;
}

// Where `wanted` is no number, a run that goes on may remove what it named meanwhile, having written another.
Snapshot load(const std::string& path, const std::string& wanted) {
  const auto self = make_self();
  Checkpoints checkpoints(path + "/ckpt", 1 << 20, *self);
  std::int64_t step = step_of(path, checkpoints, wanted);
  for (;;) {
    try {
      return checkpoints.load(step);
    } catch (const DataError&) {
      const std::int64_t now = step_of(path, checkpoints, wanted);
      if (now == step) throw;
      step = now;
    }
  }
}

}  // namespace

std::optional<std::string> SavedRun::text(const std::string& name) const {
  const auto found = snapshot.entries.find("recipe/" + name);
  if (found == snapshot.entries.end()) return std::nullopt;
  return std::string(reinterpret_cast<const char*>(found->second.bytes.data()), found->second.bytes.size());
}

SavedRun read_run(const std::string& path, const std::string& step, bool average) {
  SavedRun run{load(path, step), {}};
  for (const char* group : {"model/", "average/"}) {  // in this order: the average replaces
    if (group[0] == 'a' && !average) continue;
    for (const auto& [name, e] : run.snapshot.entries)
      if (name.starts_with(group))
        run.weights[name.substr(std::strlen(group))] =
            at::from_blob(const_cast<std::byte*>(e.bytes.data()), e.shape, scalar_type(e.dtype));
  }
  return run;
}

}  // namespace trireme
