// Typed flat memory, as communicators and compressors see it. A view: it owns nothing.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace trireme {

enum class DType : std::uint8_t { f64, f32, f16, bf16, i64, i32, u8 };

constexpr std::size_t size_of(DType t) {
  switch (t) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::u8:
      return 1;
  }
  return 0;
}

std::string_view name(DType t);

// Where memory lives: the host (device < 0), or a CUDA device and the stream (a cudaStream_t) its work is
// ordered on.
struct Place {
  int device = -1;
  void* stream = nullptr;
  bool host() const { return device < 0; }
};

struct ConstBuffer {
  const void* data = nullptr;
  std::size_t count = 0;  // elements
  DType dtype = DType::f32;
  Place place = {};
  std::size_t bytes() const { return count * size_of(dtype); }
};

struct Buffer {
  void* data = nullptr;
  std::size_t count = 0;
  DType dtype = DType::f32;
  Place place = {};
  std::size_t bytes() const { return count * size_of(dtype); }
  operator ConstBuffer() const { return {data, count, dtype, place}; }
};

}  // namespace trireme
