// nvCOMPDx's ANS with our quantiser fused around it, from the library that bench/peers/nvcompdx builds: values to coded
// bytes and back in two launches and one.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme::bench {

class Nvcompdx {
 public:
  // All arms of the library (pieces of so many KiB by so many warps) on `in`: f32 [chunks x 2048 x 64] on the GPU, a
  // range a chunk; bound: of max - min. Each has coded once. Throws UsageError where the library says no.
  static std::vector<std::shared_ptr<Nvcompdx>> all(const std::string& library, const at::Tensor& in, float bound);
  ~Nvcompdx();
  void encode();
  void decode();  // into decoded()
  const at::Tensor& decoded() const;
  std::size_t coded_bytes() const;
  std::string name() const;

 private:
  struct Parts;
  explicit Nvcompdx(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> p_;
};

}  // namespace trireme::bench
