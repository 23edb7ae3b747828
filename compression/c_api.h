/* The error-bounded codec (compression/codecs/bounded.h) for programs in C, Fortran and other languages; in
 * libtrireme_codec.so.
 *
 * - Every function returns 0, or a code of comm/error.h (1 a bug, 2 a wrong argument, 4 bad bytes, 5 not finite, 6 no
 *   memory) and leaves one line for trireme_codec_message(). Nothing throws, nothing is printed.
 * - Memory is the caller's: ask for sizes, then hand over `out`, `sizes`, `scratch`. On a GPU nothing is allocated
 * there and nothing waits; on the host a thread keeps its working memory from call to call.
 * - A codec may be used by one thread at a time to encode, by several to decode.
 */
#ifndef TRIREME_COMPRESSION_C_API_H
#define TRIREME_COMPRESSION_C_API_H
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct trireme_codec trireme_codec;

/* device -1: host memory; else a CUDA device, whose context is current, and a cudaStream_t. */
typedef struct {
  int device;
  void* stream;
} trireme_place;

/* n rows of dim f32, `stride` floats apart (0: dim). Chunks of equal `scope` share max - min of a relative bound. */
typedef struct {
  const float* rows;
  size_t n, dim, stride;
  float bound; /* >= 0; 0: no loss */
  uint32_t scope;
} trireme_rows;

typedef struct {
  const uint8_t* code;
  size_t bytes;
  float* rows; /* where n rows of dim f32 go */
  size_t n, dim, stride;
} trireme_code;

/* name: as `trireme codec --codec` (auto, smallest, dedup_huffman, ...). relative: bounds are fractions of max - min.
 */
int trireme_codec_create(const char* name, int relative, int checksum, trireme_codec** codec);
void trireme_codec_destroy(trireme_codec* codec); /* null: nothing */

/* Bytes that a call needs: of `out` (for any values) and of `scratch`, which on the host is 0. */
int trireme_codec_encode_size(const trireme_codec* codec, const trireme_rows* chunks, size_t count, trireme_place place,
                              size_t* out_bytes, size_t* scratch_bytes);
int trireme_codec_decode_size(const trireme_codec* codec, const trireme_code* chunks, size_t count, trireme_place place,
                              size_t* scratch_bytes);

/* out: codes one after another, from an address that is a multiple of 4; sizes: bytes of each, one a chunk. On a device
 * both lie there (sizes: or pinned), valid in stream order. */
int trireme_codec_encode(const trireme_codec* codec, const trireme_rows* chunks, size_t count, trireme_place place,
                         void* out, size_t out_bytes, uint64_t* sizes, void* scratch, size_t scratch_bytes);

/* On the host bad bytes are code 4. On a device *status (there, or pinned) becomes 0, or 1 + the number of the first
 * bad chunk, in stream order; on the host it may be null. */
int trireme_codec_decode(const trireme_codec* codec, const trireme_code* chunks, size_t count, trireme_place place,
                         uint32_t* status, void* scratch, size_t scratch_bytes);

/* Of this thread's last call that failed: "where: what; cure". Valid until its next failure. Never null. */
const char* trireme_codec_message(void);

#ifdef __cplusplus
}
#endif
#endif
