#include "framework/init_from.h"

#include "comm/error.h"
#include "comm/local/self.h"
#include "framework/base/replicas.h"
#include "framework/formats/safetensors.h"
#include "framework/io/checkpoint.h"

#include <filesystem>

namespace trireme {

void init_from(const std::string& source, Session& session) {
  at::NoGradGuard no_grad;
  for (const auto& p : session.parameters())
    if (p.sharing.kind == Sharing::per_rank && session.context().size() > 1)
      throw UsageError("init_from", p.name + " is another one on other ranks, and init_from gives all ranks the same",
                       "train from the beginning, or let the recipe say which rows each rank holds");
  if (source.ends_with(".safetensors")) {
    const Safetensors file(source);
    for (const auto& p : session.parameters()) {
      const at::Tensor t = own_part(p, file.tensor(p.name));
      if (t.sizes() != p.value.sizes())
        throw DataError(source,
                        p.name + " has shape " + c10::str(t.sizes()) + ", the model " + c10::str(p.value.sizes()),
                        "init_from needs a model of the same shape");
      p.value.detach().copy_(t);
    }
    return;
  }
  if (!std::filesystem::exists(source + "/ckpt"))
    throw DataError(source, "is neither a run folder nor a .safetensors file", "correct init_from");
  const auto self = make_self();
  // Read only: the source may be a run that is writing right now.
  Checkpoints checkpoints(source + "/ckpt", 1 << 20, *self);
  const auto latest = checkpoints.newest();
  if (!latest) throw DataError(source, "has no complete checkpoint", "correct init_from");
  try {
    checkpoints.load(*latest).restore([&](Archive& ar) { session.weights(ar); });
  } catch (const DataError& e) {
    throw DataError("init_from " + source, e.what(), "init_from needs a sound run of a model of the same shape");
  }
}

}  // namespace trireme
