#include "framework/init_from.h"

#include "comm/error.h"
#include "comm/local/self.h"
#include "framework/base/agree.h"
#include "framework/base/replicas.h"
#include "framework/formats/safetensors.h"
#include "framework/io/checkpoint.h"
#include "framework/models/open_clip.h"

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

// The same on all ranks: rank 0's.
std::int64_t newest_checkpoint(const std::string& source, const Checkpoints& checkpoints, Communicator& comm) {
  std::int64_t step = 0;
  agree(comm, attempt([&] {
          if (comm.rank() != 0) return;
          if (!std::filesystem::exists(source + "/ckpt"))
            throw DataError(source, "is no run folder, OpenCLIP folder or .safetensors file", "correct init_from");
          const auto newest = checkpoints.newest();
          if (!newest) throw DataError(source, "has no complete checkpoint", "correct init_from");
          step = *newest;
        }));
  comm.broadcast({&step, 1, DType::i64}, 0).wait();
  return step;
}

void load_run(const std::string& source, Session& session, const std::set<std::string>& known, Communicator& comm) {
  const auto self = make_self();
  // Read only: the source may be a run that is writing right now.
  Checkpoints checkpoints(source + "/ckpt", 1 << 20, *self);
  for (std::int64_t step = newest_checkpoint(source, checkpoints, comm);;) {
    const auto failure = shared_failure(comm, attempt([&] {
                                          try {
                                            const Snapshot snapshot = checkpoints.load(step);
                                            for (const auto& [name, entry] : snapshot.entries)
                                              if (name.starts_with("model/")) check_surplus("", name.substr(6), known);
                                            snapshot.restore([&](Archive& ar) { session.weights(ar); });
                                          } catch (const DataError& e) {
                                            throw DataError("init_from " + source, e.what(),
                                                            "init_from needs a sound run of a model of the same shape");
                                          }
                                        }));
    if (!failure) return;
    // That run may have removed it meanwhile, having written a newer one.
    const std::int64_t newer = newest_checkpoint(source, checkpoints, comm);
    if (newer == step) raise(*failure);
    step = newer;
  }
}

}  // namespace

void init_from(const std::string& source, Session& session, Communicator& comm) {
  at::NoGradGuard no_grad;
  const std::vector<std::string> names = all_names(session.parameters(), comm);
  const std::set<std::string> known(names.begin(), names.end());
  agree(comm, attempt([&] {
          for (const auto& p : session.parameters())
            if (p.sharing.kind == Sharing::per_rank && comm.size() > 1)
              throw UsageError("init_from", p.name + " belongs to some of the ranks, and init_from gives all the same",
                               "train from the beginning, or let the recipe say which rows each rank holds");
        }));
  if (source.ends_with(".safetensors") || is_open_clip_folder(source))
    agree(comm, attempt([&] { load_tensors(source, session, known); }));
  else
    load_run(source, session, known, comm);
  session.weights_loaded();
}

}  // namespace trireme
