// The host's twin: resize.h's passes, then normalisation. Built for this machine's vector units.
#include "data/image_text/crop.h"

#include "data/image_text/resize.h"

#include <cstring>
#include <string>

namespace trireme {
namespace {

std::uint16_t to_bf16(float v) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return std::uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void write_row(const CropJob& job, std::int64_t row, int c, int y, const std::uint8_t* levels) {
  const int s = job.size;
  const double scale = 1 / (255 * job.statistics.std_dev[c]),
               shift = -job.statistics.mean[c] / job.statistics.std_dev[c];
  const float scale32 = float(scale), shift32 = float(shift);
  const std::size_t at = ((std::size_t(row) * 3 + std::size_t(c)) * s + std::size_t(y)) * s;
  if (job.type == DType::f32) {
    float* out = static_cast<float*>(job.out) + at;
    for (int x = 0; x < s; ++x) out[x] = float(levels[x]) * scale32 + shift32;
  } else if (job.type == DType::bf16) {
    std::uint16_t* out = static_cast<std::uint16_t*>(job.out) + at;
    for (int x = 0; x < s; ++x) out[x] = to_bf16(float(levels[x]) * scale32 + shift32);
  } else if (job.type == DType::f64) {
    double* out = static_cast<double*>(job.out) + at;
    for (int x = 0; x < s; ++x) out[x] = double(levels[x]) * scale + shift;
  } else {
    std::uint8_t* out = static_cast<std::uint8_t*>(job.out) + ((std::size_t(row) * s + std::size_t(y)) * s) * 3 + c;
    for (int x = 0; x < s; ++x) out[3 * x] = levels[x];
  }
}

void on_host(const CropJob& job) {
  if (job.type != DType::f32 && job.type != DType::f64 && job.type != DType::bf16 && job.type != DType::u8)
    throw Error(ExitCode::bug, "crop_resize", "makes no " + std::string(name(job.type)));
  for (std::int64_t i = 0; i < job.rows; ++i) {
    const Crop& crop = job.crops[i];
    resample({job.bytes + i * job.stride,
              crop.pitch,
              {crop.left, crop.box_width, crop.width, job.size},
              {crop.top, crop.box_height, crop.height, job.size},
              crop.mirror != 0,
              crop.down_first != 0},
             [&](int c, int y, const std::uint8_t* levels) { write_row(job, i, c, y, levels); });
  }
}

}  // namespace

constinit Kernel<CropJob> crop_resize("crop_resize", on_host);

}  // namespace trireme
