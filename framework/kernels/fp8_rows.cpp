#include "framework/kernels/fp8_rows.h"

#include "comm/reduce.h"
#include "compression/stages/rate_values.h"

#include <cmath>
#include <cstring>
#include <vector>

namespace trireme::kernels {
namespace {

void on_host(const Fp8RowsJob& job) {
  const auto width = static_cast<std::size_t>(job.width);
  std::vector<float> row(width);
  for (std::int64_t r = 0; r < job.rows; ++r) {
    const auto* const from = static_cast<const char*>(job.x) + static_cast<std::size_t>(r) * width * size_of(job.type);
    if (job.type == DType::f32)
      std::memcpy(row.data(), from, width * sizeof(float));
    else
      widen(job.type, from, row.data(), width);
    if (job.columns)
      for (std::size_t c = 0; c < width; ++c) row[c] *= job.columns[c];
    float most = 0;
    bool finite = true;
    for (const float v : row) {
      most = std::fmax(most, std::fabs(v));
      finite = finite && v - v == 0;
    }
    const float scale = finite ? std::fmax(most, fp8_least) / 448 : 1, inverse = 1 / scale;
    job.scales[r] = finite ? scale : NAN;
    for (std::size_t c = 0; c < width; ++c)
      job.codes[static_cast<std::size_t>(r) * width + c] = coding::to_fp8(row[c] * inverse);
  }
}

}  // namespace

constinit Kernel<Fp8RowsJob> fp8_rows("fp8_rows", on_host);

}  // namespace trireme::kernels
