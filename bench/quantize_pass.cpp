#include "bench/quantize_pass.h"

namespace trireme::bench {
namespace {

template <class Job>
void none(const Job&) {
  throw Error(ExitCode::bug, "quantize_pass", "is a kernel for a GPU");
}

}  // namespace

constinit Kernel<QuantizePass> quantize_pass("quantize_pass", none<QuantizePass>);
constinit Kernel<DequantizePass> dequantize_pass("dequantize_pass", none<DequantizePass>);

}  // namespace trireme::bench
