#include "bench/nvcompdx.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <ATen/ATen.h>

#include <dlfcn.h>

namespace trireme::bench {
namespace {

struct FusedFunctions {
  int (*arms)();
  void (*shape)(int arm, int* kib, int* warps);
  int (*start)(int arm, std::size_t chunks);
  void (*encode)(int arm, const float* values, float bound, void* stream);
  void (*decode)(int arm, float* values, void* stream);
  std::size_t (*bytes)(int arm);
  void (*stop)(int arm);
};

FusedFunctions load_fused(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library)
    throw UsageError(path, "cannot be loaded: " + std::string(dlerror()), "build it with bench/peers/nvcompdx");
  FusedFunctions f;
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    if (!function) throw UsageError(path, std::string("has no ") + name, "build it anew with bench/peers/nvcompdx");
  };
  find(f.arms, "nvcompdx_arms"), find(f.shape, "nvcompdx_shape"), find(f.start, "nvcompdx_start");
  find(f.encode, "nvcompdx_encode"), find(f.decode, "nvcompdx_decode"), find(f.bytes, "nvcompdx_bytes");
  find(f.stop, "nvcompdx_stop");
  return f;
}

}  // namespace

struct Nvcompdx::Parts {
  FusedFunctions f;
  int arm;
  float bound;
  at::Tensor in, back;
  void* stream;
};

Nvcompdx::Nvcompdx(std::unique_ptr<Parts> parts) : p_(std::move(parts)) {}
Nvcompdx::~Nvcompdx() { p_->f.stop(p_->arm); }
void Nvcompdx::encode() { p_->f.encode(p_->arm, p_->in.const_data_ptr<float>(), p_->bound, p_->stream); }
void Nvcompdx::decode() { p_->f.decode(p_->arm, p_->back.data_ptr<float>(), p_->stream); }
const at::Tensor& Nvcompdx::decoded() const { return p_->back; }
std::size_t Nvcompdx::coded_bytes() const { return p_->f.bytes(p_->arm); }
std::string Nvcompdx::name() const {
  int kib = 0, warps = 0;
  p_->f.shape(p_->arm, &kib, &warps);
  return "nvCOMPDx, pieces of " + std::to_string(kib) + " KiB by " + std::to_string(warps) + " warps";
}

std::vector<std::shared_ptr<Nvcompdx>> Nvcompdx::all(const std::string& library, const at::Tensor& in, float bound) {
  const FusedFunctions f = load_fused(library);
  std::vector<std::shared_ptr<Nvcompdx>> arms;
  for (int arm = 0; arm < f.arms(); ++arm) {
    if (f.start(arm, std::size_t(in.size(0))) != 0) throw UsageError(library, "found no memory", "take a larger GPU");
    arms.emplace_back(new Nvcompdx(std::make_unique<Parts>(
        Parts{f, arm, bound, in, at::zeros_like(in), buffer_of(in).place.stream})));
    arms.back()->encode(), arms.back()->decode();
    if (arms.back()->coded_bytes() == 0)
      throw Error(ExitCode::bug, "bench codec_peers", arms.back()->name() + " did not decode what it made");
  }
  return arms;
}

}  // namespace trireme::bench
