#include "framework/init_from.h"

#include "comm/error.h"
#include "comm/local/self.h"
#include "framework/base/agree.h"
#include "framework/base/replicas.h"
#include "framework/formats/safetensors.h"
#include "framework/io/checkpoint.h"

#include <filesystem>

namespace trireme {
namespace {

void load_safetensors(const std::string& source, Session& session) {
  const Safetensors file(source);
  for (const auto& p : session.parameters()) {
    const at::Tensor t = own_part(p, file.tensor(p.name));
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
            throw DataError(source, "is neither a run folder nor a .safetensors file", "correct init_from");
          const auto newest = checkpoints.newest();
          if (!newest) throw DataError(source, "has no complete checkpoint", "correct init_from");
          step = *newest;
        }));
  comm.broadcast({&step, 1, DType::i64}, 0).wait();
  return step;
}

void load_run(const std::string& source, Session& session, Communicator& comm) {
  const auto self = make_self();
  // Read only: the source may be a run that is writing right now.
  Checkpoints checkpoints(source + "/ckpt", 1 << 20, *self);
  for (std::int64_t step = newest_checkpoint(source, checkpoints, comm);;) {
    const auto failure = shared_failure(comm, attempt([&] {
                                          try {
                                            checkpoints.load(step).restore([&](Archive& ar) { session.weights(ar); });
                                          } catch (const DataError& e) {
                                            throw DataError("init_from " + source, e.what(),
                                                            "init_from needs a sound run of a model of the same shape");
                                          }
                                        }));
    if (!failure) return;
    // That run may have removed it meanwhile, having written a newer one.
    if (step == std::exchange(step, newest_checkpoint(source, checkpoints, comm))) raise(*failure);
  }
}

}  // namespace

void init_from(const std::string& source, Session& session, Communicator& comm) {
  at::NoGradGuard no_grad;
  for (const auto& p : session.parameters())
    if (p.sharing.kind == Sharing::per_rank && comm.size() > 1)
      throw UsageError("init_from", p.name + " is another one on other ranks, and init_from gives all ranks the same",
                       "train from the beginning, or let the recipe say which rows each rank holds");
  if (source.ends_with(".safetensors"))
    agree(comm, attempt([&] { load_safetensors(source, session); }));
  else
    load_run(source, session, comm);
  session.restart_average();
}

}  // namespace trireme
