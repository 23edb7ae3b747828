// The error-bounded codec on a GPU with all its memory in place: what its benchmarks time.
#pragma once
#include "compression/codecs/bounded.h"
#include "framework/step_graph.h"

#include <filesystem>
#include <memory>

#include <ATen/core/Tensor.h>

namespace trireme::bench {

class CodecCase {
 public:
  // in: f32 [chunks x rows x dim] on the GPU, kept; each chunk is coded alone, with its own range. Encodes once.
  CodecCase(const at::Tensor& in, const BoundedOptions& options, float bound);
  void encode();
  void decode();
  double ratio() const { return double(in_.nbytes()) / double(coded_bytes_); }
  bool good() const;                                   // did the decoder take what it got?
  const at::Tensor& decoded() const { return back_; }  // shaped as `in`

 private:
  at::Tensor bytes(std::size_t n) const;

  Bounded codec_;
  at::Tensor in_, back_, out_, sizes_, scratch_, decode_scratch_, status_;
  std::vector<TableChunk> chunks_;
  std::vector<CodedChunk> coded_;
  std::size_t coded_bytes_ = 0;
};

// Both ways of a case as CUDA graphs, after each has run once: attributes of kernels are set outside.
struct RecordedCase {
  explicit RecordedCase(CodecCase& one);
  std::unique_ptr<StepGraph> encode, decode;
  std::size_t encode_nodes = 0, decode_nodes = 0;
};

// [chunks x rows x dim] as bench/embedding_rows.h makes them, on the GPU.
at::Tensor rows_on_gpu(std::size_t chunks, std::size_t rows, std::size_t dim);
// A trained table's: a chunk of rows x dim for each .f32 file that `trireme dlrm analyze --dump FOLDER` left, by name;
// DataError where they are of several tables.
at::Tensor rows_on_gpu(const std::filesystem::path& folder, std::size_t rows, std::size_t dim);

}  // namespace trireme::bench
