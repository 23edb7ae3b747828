#include "framework/init_from.h"

#include "comm/crc32c.h"
#include "comm/error.h"
#include "comm/local/self.h"
#include "framework/base/agree.h"
#include "framework/base/replicas.h"
#include "framework/base/tensor.h"
#include "framework/formats/safetensors.h"
#include "framework/io/checkpoint.h"
#include "framework/models/open_clip.h"

#include <cstdio>
#include <filesystem>
#include <set>

namespace trireme {
namespace {

// A deeper model's first layers must not pass for this one.
void check_surplus(const std::string& source, const std::string& name, const std::set<std::string>& known) {
  if (known.contains(name)) return;
  throw DataError(source, "holds " + name + ", the model has no such parameter",
                  "init_from needs a model of the same shape");
}

std::map<std::string, at::Tensor> tensors_of(const std::string& source) {
  if (is_open_clip_folder(source)) return open_clip_tensors(source);
  const Safetensors file(source);
  std::map<std::string, at::Tensor> tensors;
  for (const auto& name : file.names()) tensors[name] = file.tensor(name);
  return tensors;
}

void load_tensors(const std::string& source, Session& session, const std::set<std::string>& known) {
  const auto tensors = tensors_of(source);
  for (const auto& [name, tensor] : tensors) check_surplus(source, name, known);
  for (const auto& p : session.parameters()) {
    const auto found = tensors.find(p.name);
    if (found == tensors.end())
      throw DataError(source, "has no tensor " + p.name, "init_from needs a model of the same shape");
    const at::Tensor t = own_part(p, found->second);
    if (t.sizes() != p.value.sizes())
      throw DataError(source, p.name + " has shape " + c10::str(t.sizes()) + ", the model " + c10::str(p.value.sizes()),
                      "init_from needs a model of the same shape");
    p.value.detach().copy_(t);
  }
}

bool is_run(const std::string& source) { return !source.ends_with(".safetensors") && !is_open_clip_folder(source); }

// The same on all ranks: rank 0's.
std::int64_t newest_checkpoint(const std::string& source, const std::string& key, const Checkpoints& checkpoints,
                               Communicator& comm) {
  std::int64_t step = 0;
  agree(comm, attempt([&] {
          if (comm.rank() != 0) return;
          if (!std::filesystem::exists(source + "/ckpt"))
            throw DataError(source, "is no run folder, OpenCLIP folder or .safetensors file", "correct " + key);
          const auto newest = checkpoints.newest();
          if (!newest) throw DataError(source, "has no complete checkpoint", "correct " + key);
          step = *newest;
        }));
  comm.broadcast({&step, 1, DType::i64}, 0).wait();
  return step;
}

// The newest checkpoint of a run, the same on all ranks; its step.
std::int64_t load_run(const std::string& source, const std::string& key, Communicator& comm,
                      const std::function<void(const Snapshot&)>& use) {
  const auto self = make_self();
  // Read only: the source may be a run that is writing right now.
  Checkpoints checkpoints(source + "/ckpt", 1 << 20, *self);
  for (std::int64_t step = newest_checkpoint(source, key, checkpoints, comm);;) {
    const auto failure = shared_failure(comm, attempt([&] {
                                          try {
                                            use(checkpoints.load(step));
                                          } catch (const DataError& e) {
                                            throw DataError(key + " " + source, e.what(),
                                                            key + " needs a sound run of a model of the same shape");
                                          }
                                        }));
    if (!failure) return step;
    // That run may have removed it meanwhile, having written a newer one.
    const std::int64_t newer = newest_checkpoint(source, key, checkpoints, comm);
    if (newer == step) raise(*failure);
    step = newer;
  }
}

std::map<std::string, at::Tensor> tensors_of(const Snapshot& snapshot) {
  std::map<std::string, at::Tensor> tensors;
  for (const std::string group : {"model/", "average/"})  // in this order: the average replaces
    for (const auto& [name, e] : snapshot.entries)
      if (name.starts_with(group))
        tensors[name.substr(group.size())] =
            at::from_blob(const_cast<std::byte*>(e.bytes.data()), e.shape, scalar_type(e.dtype)).clone();
  return tensors;
}

}  // namespace

std::int64_t init_from(const std::string& source, Session& session, Communicator& comm) {
  at::NoGradGuard no_grad;
  std::int64_t step = 0;
  const std::vector<std::string> names = all_names(session.parameters(), comm);
  const std::set<std::string> known(names.begin(), names.end());
  agree(comm, attempt([&] {
          for (const auto& p : session.parameters())
            if (p.sharing.kind == Sharing::per_rank && comm.size() > 1)
              throw UsageError("init_from", p.name + " belongs to some of the ranks, and init_from gives all the same",
                               "train from the beginning, or let the recipe say which rows each rank holds");
        }));
  if (is_run(source))
    step = load_run(source, "init_from", comm, [&](const Snapshot& snapshot) {
      for (const auto& [name, entry] : snapshot.entries)
        if (name.starts_with("model/")) check_surplus("", name.substr(6), known);
      snapshot.restore([&](Archive& ar) { session.weights(ar); });
    });
  else
    agree(comm, attempt([&] { load_tensors(source, session, known); }));
  session.weights_loaded();
  return step;
}

std::map<std::string, at::Tensor> weights_of(const std::string& source, const std::string& key, Communicator& comm) {
  std::map<std::string, at::Tensor> tensors;
  if (is_run(source))
    load_run(source, key, comm, [&](const Snapshot& snapshot) { tensors = tensors_of(snapshot); });
  else
    agree(comm, attempt([&] { tensors = tensors_of(source); }));
  return tensors;
}

std::string fingerprint(const std::map<std::string, at::Tensor>& weights) {
  std::uint32_t crc = 0;
  for (const auto& [name, tensor] : weights) {
    const at::Tensor host = tensor.detach().cpu().contiguous();
    crc = crc32c(name.data(), name.size(), crc);
    crc = crc32c(host.const_data_ptr(), host.nbytes(), crc);
  }
  char hex[9];
  std::snprintf(hex, sizeof hex, "%08x", crc);
  return hex;
}

std::string fingerprint(const std::vector<Param>& weights) {
  std::map<std::string, at::Tensor> by_name;
  for (const auto& p : weights) by_name[p.name] = p.value;
  return fingerprint(by_name);
}

void archive_reference(Archive& ar, const std::string& place, const std::string& print) {
  const bool there = ar.has("reference");  // a run without one does not say so
  if (print.empty() && !(ar.loading() && there)) return;
  std::string saved = there ? print : "";
  if (there) ar.text("reference", saved);
  if (saved == print) return;
  const auto shown = [](const std::string& p) { return p.empty() ? "none" : p; };
  throw DataError(place,
                  "is not the reference this run was started with (" + shown(saved) + ", now " + shown(print) + ")",
                  "put it back, or use --fresh to start over");
}

}  // namespace trireme
