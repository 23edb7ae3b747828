// Tensor core products of bf16 tiles in shared memory, m16n8k16 with f32 sums, and the asynchronous copies that fill
// them (PTX ISA 8, mma, ldmatrix and cp.async; from sm_80 on). Rows of a tile lie 16 bytes further apart than they are
// long: the eight rows that ldmatrix reads at once then hit eight different groups of banks. Included by .cu files
// only.
#pragma once
#include <cuda_bf16.h>

namespace trireme::kernels {

using bf16 = __nv_bfloat16;
constexpr int pad = 8;  // elements between the rows of a tile

// 16 bytes, or zeros where nothing is there.
__device__ inline void copy16(bf16* shared, const bf16* global, bool there) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(there ? 16 : 0) : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int left>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

struct Fragment {
  unsigned r[4];
};

__device__ inline Fragment load(const bf16* p) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(p)))
               : "memory");
  return f;
}
__device__ inline Fragment load_transposed(const bf16* p) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.r[0]), "=r"(f.r[1]), "=r"(f.r[2]), "=r"(f.r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(p)))
               : "memory");
  return f;
}

__device__ inline int lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ inline int warp() { return static_cast<int>(threadIdx.x) / 32; }

// 16 x 16 of the left operand, stored [m][k] or [k][m], from `tile` on.
template <int stride>
__device__ inline Fragment left_rows(const bf16* tile) {
  return load(tile + lane() % 16 * stride + lane() / 16 * 8);
}
template <int stride>
__device__ inline Fragment left_columns(const bf16* tile) {
  return load_transposed(tile + (lane() % 8 + lane() / 16 * 8) * stride + lane() / 8 % 2 * 8);
}
// 16 (k) x 16 (n) of the right operand, stored [n][k] or [k][n]: two products of 8 columns.
template <int stride>
__device__ inline Fragment right_columns(const bf16* tile) {
  return load(tile + (lane() % 8 + lane() / 16 * 8) * stride + lane() / 8 % 2 * 8);
}
template <int stride>
__device__ inline Fragment right_rows(const bf16* tile) {
  return load_transposed(tile + lane() % 16 * stride + lane() / 16 * 8);
}

// sum += a b. A thread's four values: rows lane / 4 and that + 8, columns 2 (lane % 4) and that + 1.
__device__ inline void multiply(float (&sum)[4], const Fragment& a, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a.r[0]), "r"(a.r[1]), "r"(a.r[2]), "r"(a.r[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply16(float (&left)[4], float (&right)[4], const Fragment& a, const Fragment& b) {
  multiply(left, a, b.r[0], b.r[1]);
  multiply(right, a, b.r[2], b.r[3]);
}

__device__ inline unsigned pack(float a, float b) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);
  return reinterpret_cast<const unsigned&>(both);
}
__device__ inline float2 unpack(unsigned both) {
  return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
}

// 16 bytes of global memory.
__device__ inline void load_words(unsigned (&v)[4], const bf16* from) {
  const uint4 found = *reinterpret_cast<const uint4*>(from);
  v[0] = found.x, v[1] = found.y, v[2] = found.z, v[3] = found.w;
}
__device__ inline void store_words(bf16* to, const unsigned (&v)[4]) {
  *reinterpret_cast<uint4*>(to) = make_uint4(v[0], v[1], v[2], v[3]);
}

// Two lanes' two words, as a matrix, turned.
__device__ inline void exchange(unsigned& a, unsigned& b, int mask) {
  const bool second = lane() & mask;
  const unsigned got = __shfl_xor_sync(~0u, second ? a : b, mask);
  a = second ? got : a;
  b = second ? b : got;
}
// Four lanes' four words, as a matrix, turned. Of multiply's sums for four times 8 columns: a lane's pairs, 8 columns
// apart, become 8 columns in a row, which memory takes in one piece; and back.
__device__ inline void turn_quad(unsigned (&v)[4]) {
  exchange(v[0], v[1], 1);
  exchange(v[2], v[3], 1);
  exchange(v[0], v[2], 2);
  exchange(v[1], v[3], 2);
}
// Of a warp's 8 rows, the first and the second 32 columns in quads become whole rows, 8 lanes each: rows 0 to 3 and
// rows 4 to 7 (line_row, line_column); and back. Memory takes lines of 128 bytes: halves cost it as much.
__device__ inline void turn_lines(unsigned (&a)[4], unsigned (&b)[4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) exchange(a[k], b[k], 16);
}
__device__ inline int line_row() { return lane() % 16 / 4; }
__device__ inline int line_column() { return lane() / 16 * 32 + lane() % 4 * 8; }

}  // namespace trireme::kernels
