/* compression/c_api.h from C, linked with nothing but libtrireme_codec.so: sizes, round trip, bound, errors, guards. */
#include "compression/c_api.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what)                                                      \
  do                                                                     \
    if (!(what)) {                                                       \
      printf("%d: %s (%s)\n", __LINE__, #what, trireme_codec_message()); \
      exit(1);                                                           \
    }                                                                    \
  while (0)

enum { ROWS = 300, DIM = 24, STRIDE = 30, CHUNKS = 3, GUARD = 64 };
static const trireme_place host = {-1, NULL};

static void fill(float* rows) {
  unsigned random = 1;
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < STRIDE; ++i) {
      random = random * 1664525u + 1013904223u;
      rows[r * STRIDE + i] = r % 7 == 0 ? 0.25f * (float)(r % 3) : (float)(random >> 8) / 16777216.0f - 0.5f;
    }
}

static void round_trip(const char* name, int checksum) {
  static float rows[ROWS * STRIDE], back[ROWS * DIM];
  fill(rows);
  trireme_codec* codec = NULL;
  CHECK(trireme_codec_create(name, 0, checksum, &codec) == 0);
  trireme_rows in[CHUNKS] = {{rows, 100, DIM, STRIDE, 0.01f, 0},
                             {rows + 100 * STRIDE, 0, DIM, STRIDE, 0.01f, 0},
                             {rows + 100 * STRIDE, 200, DIM, STRIDE, 0.05f, 1}};
  size_t room = 0, scratch = 99;
  CHECK(trireme_codec_encode_size(codec, in, CHUNKS, host, &room, &scratch) == 0);
  CHECK(scratch == 0 && room >= 4u * ROWS * DIM);
  uint8_t* out = malloc(room + GUARD);
  memset(out + room, 0xA5, GUARD);
  uint64_t sizes[CHUNKS];
  CHECK(trireme_codec_encode(codec, in, CHUNKS, host, out, room, sizes, NULL, 0) == 0);
  for (int k = 0; k < GUARD; ++k) CHECK(out[room + (size_t)k] == 0xA5);
  CHECK(sizes[0] + sizes[1] + sizes[2] <= room);
  CHECK(trireme_codec_encode(codec, in, CHUNKS, host, out, room - 1, sizes, NULL, 0) == 2);
  CHECK(strstr(trireme_codec_message(), "the output has"));

  trireme_code coded[CHUNKS] = {{out, sizes[0], back, 100, DIM, 0},
                                {out + sizes[0], sizes[1], back + 100 * DIM, 0, DIM, 0},
                                {out + sizes[0] + sizes[1], sizes[2], back + 100 * DIM, 200, DIM, 0}};
  uint32_t status = 7;
  CHECK(trireme_codec_decode_size(codec, coded, CHUNKS, host, &scratch) == 0 && scratch == 0);
  CHECK(trireme_codec_decode(codec, coded, CHUNKS, host, &status, NULL, 0) == 0 && status == 0);
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < DIM; ++i)
      CHECK(fabs((double)rows[r * STRIDE + i] - back[r * DIM + i]) <= (double)(r < 100 ? 0.01f : 0.05f));

  coded[2].bytes -= 4; /* too short */
  CHECK(trireme_codec_decode(codec, coded, CHUNKS, host, NULL, NULL, 0) == 4);
  CHECK(strstr(trireme_codec_message(), "chunk 2"));
  coded[2].bytes += 4;
  if (checksum) {
    out[sizes[0] / 2] ^= 4;
    CHECK(trireme_codec_decode(codec, coded, CHUNKS, host, NULL, NULL, 0) == 4);
  }
  free(out);
  trireme_codec_destroy(codec);
}

static void refusals(void) {
  trireme_codec* codec = NULL;
  CHECK(trireme_codec_create("dedup_rens", 1, 0, &codec) == 2 && codec == NULL);
  CHECK(strstr(trireme_codec_message(), "did you mean dedup_rans"));
  CHECK(trireme_codec_create(NULL, 1, 0, &codec) == 2);
  CHECK(trireme_codec_create("auto", 1, 0, NULL) == 2);
  CHECK(trireme_codec_create("auto", 1, 0, &codec) == 0);
  const float value = 1;
  uint8_t out[64];
  uint64_t size;
  size_t bytes;
  trireme_rows rows = {&value, 1, 1, 0, -1.0f, 0};
  CHECK(trireme_codec_encode(codec, &rows, 1, host, out, sizeof out, &size, NULL, 0) == 2);
  rows.bound = 0, rows.rows = NULL;
  CHECK(trireme_codec_encode(codec, &rows, 1, host, out, sizeof out, &size, NULL, 0) == 2);
  CHECK(trireme_codec_encode(codec, NULL, 1, host, out, sizeof out, &size, NULL, 0) == 2);
  CHECK(trireme_codec_encode(NULL, NULL, 0, host, out, sizeof out, &size, NULL, 0) == 2);
  rows.rows = &value, rows.dim = 4, rows.stride = 2;
  CHECK(trireme_codec_encode_size(codec, &rows, 1, host, &bytes, &bytes) == 2);
  CHECK(trireme_codec_encode(codec, NULL, 0, host, NULL, 0, NULL, NULL, 0) == 0);
  trireme_codec_destroy(codec);
  trireme_codec_destroy(NULL);
}

int main(void) {
  static const char* const names[] = {"auto", "smallest", "dedup_huffman", "vector_lz", "raw"};
  for (size_t k = 0; k < sizeof names / sizeof *names; ++k) {
    round_trip(names[k], 0);
    round_trip(names[k], 1);
  }
  refusals();
  printf("passed\n");
  return 0;
}
