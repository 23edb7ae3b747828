// nvCOMP's batched coders (nvidia-libnvcomp-cu13, 6.0), from a library that is loaded when it is wanted: it is nothing
// to build with. Signatures and structs are facts of its interface, written down here anew.
#pragma once
#include <memory>
#include <string>

#include <ATen/core/Tensor.h>

namespace trireme::bench {

class Nvcomp {
 public:
  enum class Coder { ans, bitcomp_lossy };

  // in: contiguous, on the GPU; ans: i8, without loss; bitcomp_lossy: f32, |error| <= delta / 2 with delta rounded down
  // to a power of two. Cut into chunks of chunk_bytes of it, which divide it. All memory is made here; encodes once.
  // Throws UsageError where the library or the GPU says no.
  Nvcomp(const std::string& library, Coder coder, const at::Tensor& in, std::size_t chunk_bytes, double delta = 0);
  ~Nvcomp();
  void encode();
  void decode();  // into decoded(), of the shape and type of `in`
  const at::Tensor& decoded() const;
  std::size_t coded_bytes() const;  // of all chunks, 8 bytes of size each
  bool good() const;                // every chunk was coded and decoded

 private:
  struct Parts;
  std::unique_ptr<Parts> p_;
};

}  // namespace trireme::bench
