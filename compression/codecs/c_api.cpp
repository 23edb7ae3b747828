#include "compression/c_api.h"

#include "comm/error.h"
#include "compression/codecs/bounded.h"

#include <new>

struct trireme_codec {
  trireme::Bounded bounded;
};

namespace trireme {
namespace {

// Not a std::string: to keep the message of a failed allocation must not allocate.
thread_local char message[512] = "";

int fail(ExitCode code, std::string_view what) {
  message[what.copy(message, sizeof message - 1)] = '\0';
  return static_cast<int>(code);
}

template <class F>
int guarded(F f) {
  try {
    f();
    return 0;
  } catch (const Error& e) {
    return fail(e.code(), e.what());
  } catch (const std::bad_alloc&) {
    return fail(ExitCode::memory, "codec: out of memory");
  } catch (const std::exception& e) {
    return fail(ExitCode::bug, e.what());
  }
}

void need(bool given, const char* what) {
  if (!given) throw UsageError("codec", std::string(what) + " is null", "hand over memory of your own");
}

std::vector<TableChunk> chunks_of(const trireme_codec* codec, const trireme_rows* chunks, std::size_t count) {
  need(codec, "the codec");
  need(chunks || count == 0, "the list of chunks");
  std::vector<TableChunk> all(count);
  for (std::size_t k = 0; k < count; ++k) {
    const trireme_rows& from = chunks[k];
    need(from.rows || from.n * from.dim == 0, "a chunk's rows");
    if (from.stride && from.stride < from.dim)
      throw UsageError("codec", "a stride is shorter than a row", "count it in floats; 0 means dim");
    all[k].rows = from.rows;
    all[k].n = from.n, all[k].dim = from.dim, all[k].stride = from.stride;
    all[k].bound = from.bound, all[k].scope = from.scope;
  }
  return all;
}

std::vector<CodedChunk> chunks_of(const trireme_codec* codec, const trireme_code* chunks, std::size_t count) {
  need(codec, "the codec");
  need(chunks || count == 0, "the list of chunks");
  std::vector<CodedChunk> all(count);
  for (std::size_t k = 0; k < count; ++k) {
    const trireme_code& from = chunks[k];
    need(from.code || from.bytes == 0, "a chunk's code");
    need(from.rows || from.n * from.dim == 0, "where a chunk's rows go");
    if (from.stride && from.stride < from.dim)
      throw UsageError("codec", "a stride is shorter than a row", "count it in floats; 0 means dim");
    all[k] = {from.code, from.bytes, from.rows, from.n, from.dim, from.stride};
  }
  return all;
}

Place place_of(trireme_place p) { return {p.device, p.stream}; }

std::size_t room_for(const Bounded& codec, std::span<const TableChunk> chunks) {
  std::size_t room = 0;
  for (const auto& c : chunks) room += codec.max_bytes(c.n, c.dim);
  return room;
}

void check_room(std::size_t needed, std::size_t given, const char* what) {
  if (given < needed)
    throw UsageError("codec",
                     std::string(what) + " has " + std::to_string(given) + " bytes, not " + std::to_string(needed),
                     "ask the _size function of the call first");
}

}  // namespace
}  // namespace trireme

using namespace trireme;

extern "C" {

int trireme_codec_create(const char* name, int relative, int checksum, trireme_codec** codec) {
  return guarded([&] {
    need(name, "the name");
    need(codec, "where the codec goes");
    BoundedOptions o;
    o.codec = name;
    o.relative = relative != 0;
    o.checksum = checksum != 0;
    *codec = new trireme_codec{Bounded(o, "codec")};
  });
}

void trireme_codec_destroy(trireme_codec* codec) { delete codec; }

int trireme_codec_encode_size(const trireme_codec* codec, const trireme_rows* chunks, size_t count, trireme_place place,
                              size_t* out_bytes, size_t* scratch_bytes) {
  return guarded([&] {
    need(out_bytes && scratch_bytes, "a result");
    const auto all = chunks_of(codec, chunks, count);
    *out_bytes = room_for(codec->bounded, all);
    *scratch_bytes = place_of(place).host() ? 0 : codec->bounded.scratch_bytes(all);
  });
}

int trireme_codec_decode_size(const trireme_codec* codec, const trireme_code* chunks, size_t count, trireme_place place,
                              size_t* scratch_bytes) {
  return guarded([&] {
    need(scratch_bytes, "a result");
    const auto all = chunks_of(codec, chunks, count);
    *scratch_bytes = place_of(place).host() ? 0 : codec->bounded.decode_scratch_bytes(all);
  });
}

int trireme_codec_encode(const trireme_codec* codec, const trireme_rows* chunks, size_t count, trireme_place place,
                         void* out, size_t out_bytes, uint64_t* sizes, void* scratch, size_t scratch_bytes) {
  return guarded([&] {
    const auto all = chunks_of(codec, chunks, count);
    const Place p = place_of(place);
    need((out && sizes) || count == 0, "the output or its sizes");
    check_room(room_for(codec->bounded, all), out_bytes, "the output");
    if (!p.host()) check_room(codec->bounded.scratch_bytes(all), scratch_bytes, "the scratch memory");
    codec->bounded.encode(all, {out, out_bytes, DType::u8, p}, {sizes, count, DType::i64, p},
                          {scratch, scratch_bytes, DType::u8, p});
  });
}

int trireme_codec_decode(const trireme_codec* codec, const trireme_code* chunks, size_t count, trireme_place place,
                         uint32_t* status, void* scratch, size_t scratch_bytes) {
  return guarded([&] {
    const auto all = chunks_of(codec, chunks, count);
    const Place p = place_of(place);
    if (!p.host()) {
      need(status, "the status");
      check_room(codec->bounded.decode_scratch_bytes(all), scratch_bytes, "the scratch memory");
    }
    codec->bounded.decode(all, p, status, {scratch, scratch_bytes, DType::u8, p});
  });
}

const char* trireme_codec_message(void) { return message; }
}
