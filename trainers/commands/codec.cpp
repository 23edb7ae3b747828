// `trireme codec FILE`: encodes and decodes a file of raw f32 rows, and says what came of it.
#include "comm/device.h"
#include "comm/error.h"
#include "compression/codecs/bounded.h"
#include "data/file.h"
#include "framework/base/quantile.h"
#include "framework/command.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstring>
#include <iostream>

#include <nlohmann/json.hpp>

namespace trireme {
namespace {

struct CodecCommand {
  std::string file, rel_eb, abs_eb, codec, device = "cpu";
  int rows = -1, dim = -1, chunk_rows = 0, window = 32, times = 5;
  bool json = false, checksum = false, tolerant = false, own_range = false;
};

float number_of(const char* option, const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !(value >= 0) || !std::isfinite(value))
    throw UsageError(std::string("codec ") + option, "'" + text + "' is no bound",
                     "give a number >= 0, for example 0.03");
  return f32_bound(value);  // never above what was given
}

std::vector<float> read_rows(const CodecCommand& o) {
  const auto bytes = read_file(o.file, std::int64_t(1) << 33);
  const std::size_t wanted = 4 * std::size_t(o.rows) * std::size_t(o.dim);
  if (bytes.size() != wanted)
    throw DataError(o.file, "holds " + std::to_string(bytes.size()) + " bytes, not " + std::to_string(wanted),
                    "check --rows and --dim: raw little-endian f32, row by row");
  std::vector<float> values(wanted / 4);
  if (wanted) std::memcpy(values.data(), bytes.data(), wanted);
  return values;
}

struct Outcome {
  std::vector<std::uint64_t> sizes;
  std::vector<std::uint8_t> code;
  std::vector<float> back;
  double encode_s = 0, decode_s = 0;  // medians
};

template <class F>
double seconds(F f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

std::vector<TableChunk> chunks_of(const CodecCommand& o, const std::vector<float>& values, float bound) {
  std::vector<TableChunk> chunks;
  const auto rows = std::size_t(o.rows), dim = std::size_t(o.dim),
             each = o.chunk_rows ? std::size_t(o.chunk_rows) : rows;
  for (std::size_t first = 0; first == 0 || first < rows; first += each) {
    TableChunk c;
    c.rows = values.data() + first * dim;
    c.n = std::min(each, rows - first);
    c.dim = dim;
    c.bound = bound;
    c.scope = o.own_range ? std::uint32_t(chunks.size()) : 0;
    chunks.push_back(c);
    if (each == 0) break;
  }
  return chunks;
}

// Where the codes begin, and where their rows go.
std::vector<CodedChunk> coded_chunks(const std::uint8_t* code, const std::vector<std::uint64_t>& sizes,
                                     const std::vector<TableChunk>& chunks, float* rows) {
  std::vector<CodedChunk> coded;
  for (std::size_t k = 0; k < chunks.size(); ++k) {
    coded.push_back({code, std::size_t(sizes[k]), rows, chunks[k].n, chunks[k].dim});
    code += sizes[k];
    rows += chunks[k].n * chunks[k].dim;
  }
  return coded;
}

Outcome on_host(const CodecCommand& o, const Bounded& codec, const std::vector<TableChunk>& chunks) {
  Outcome r;
  std::size_t room = 0, values = 0;
  for (const auto& c : chunks) room += codec.max_bytes(c.n, c.dim), values += c.n * c.dim;
  r.code.resize(room);
  r.back.resize(values);
  r.sizes.resize(chunks.size());
  std::vector<double> encode, decode;
  for (int t = 0; t < o.times; ++t) {
    encode.push_back(seconds([&] {
      codec.encode(chunks, {r.code.data(), room, DType::u8}, {r.sizes.data(), r.sizes.size(), DType::i64});
    }));
    const auto coded = coded_chunks(r.code.data(), r.sizes, chunks, r.back.data());
    decode.push_back(seconds([&] { codec.decode(coded); }));
  }
  r.encode_s = quantile(encode, 0.5);
  r.decode_s = quantile(decode, 0.5);
  return r;
}

// Times are of calls one behind the other, without the copies from and to the host.
Outcome on_device(const CodecCommand& o, const Bounded& codec, std::vector<TableChunk> chunks,
                  const std::vector<float>& values) {
  const DeviceRuntime* cuda = device_runtime();
  if (!cuda || cuda->count() == 0)
    throw UsageError("codec --device", cuda ? "there is no GPU" : "this program was built without CUDA",
                     "use --device cpu");
  const auto stream = cuda->stream();
  const Place place{cuda->current(), stream.get()};
  const auto at_least_one = [](std::size_t n) { return std::max<std::size_t>(n, 1); };
  const auto memory = [&](std::size_t bytes) { return cuda->memory(at_least_one(bytes)); };
  std::size_t room = 0;
  const auto in = memory(4 * values.size()), back = memory(4 * values.size());
  if (!values.empty()) cuda->copy(in.get(), values.data(), 4 * values.size(), place);
  for (auto& c : chunks) {
    c.rows = static_cast<const float*>(in.get()) + (c.rows - values.data());
    room += codec.max_bytes(c.n, c.dim);
  }
  const auto code = memory(room), sizes = memory(8 * chunks.size());
  const std::size_t scratch_bytes = codec.scratch_bytes(chunks);
  const auto scratch = memory(scratch_bytes);
  Outcome r{std::vector<std::uint64_t>(chunks.size()), std::vector<std::uint8_t>(room),
            std::vector<float>(values.size())};
  constexpr int calls = 10;
  const auto encode = [&] {
    codec.encode(chunks, {code.get(), room, DType::u8, place}, {sizes.get(), chunks.size(), DType::i64, place},
                 {scratch.get(), scratch_bytes, DType::u8, place});
  };
  const auto timed = [&](const auto& call, const auto& wait) {
    std::vector<double> all;
    for (int t = -1; t < o.times; ++t) {
      const double s = seconds([&] {
        for (int k = 0; k < calls; ++k) call();
        wait();
      });
      if (t >= 0) all.push_back(s / calls);
    }
    return quantile(all, 0.5);
  };
  r.encode_s = timed(encode, [&] { cuda->copy(r.sizes.data(), sizes.get(), 8 * chunks.size(), place); });
  const auto coded =
      coded_chunks(static_cast<const std::uint8_t*>(code.get()), r.sizes, chunks, static_cast<float*>(back.get()));
  const auto status = memory(4);
  const std::size_t more_bytes = codec.decode_scratch_bytes(coded);
  const auto more = memory(more_bytes);
  std::uint32_t bad = 0;
  r.decode_s = timed(
      [&] {
        codec.decode(coded, place, static_cast<std::uint32_t*>(status.get()),
                     {more.get(), more_bytes, DType::u8, place});
      },
      [&] { cuda->copy(&bad, status.get(), 4, place); });
  if (bad) throw Error(ExitCode::bug, "codec", "the GPU refuses its own code of chunk " + std::to_string(bad - 1));
  cuda->copy(r.code.data(), code.get(), room, place);
  if (!values.empty()) cuda->copy(r.back.data(), back.get(), 4 * values.size(), place);
  return r;
}

nlohmann::ordered_json describe(const CodecCommand& o, const std::vector<float>& values, const Outcome& r) {
  double error = 0;
  bool exact = true;
  for (std::size_t i = 0; i < values.size(); ++i) {
    exact = exact && std::memcmp(&values[i], &r.back[i], 4) == 0;
    if (std::isfinite(values[i])) error = std::max(error, std::abs(double(values[i]) - double(r.back[i])));
  }
  std::uint64_t bytes = 0, outliers = 0;
  double bound = 0;
  std::string encoders;
  for (std::size_t k = 0, at = 0; k < r.sizes.size(); at += r.sizes[k++]) {
    const ChunkInfo info = inspect(std::span(r.code).subspan(at, r.sizes[k]));
    bytes += r.sizes[k];
    outliers += info.outliers;
    bound = std::max(bound, double(info.eb));
    const std::string name(info.encoder);
    if (("+" + encoders + "+").find("+" + name + "+") == std::string::npos)
      encoders += (encoders.empty() ? "" : "+") + name;
  }
  const double in = 4.0 * double(values.size());
  nlohmann::ordered_json j;
  j["codec"] = encoders;
  j["rows"] = o.rows;
  j["dim"] = o.dim;
  j["rel_eb"] = o.rel_eb.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(std::stod(o.rel_eb));
  j["bound"] = bound;
  j["max_abs_error"] = error;
  j["bytes_in"] = std::uint64_t(in);
  j["bytes_out"] = bytes;
  j["ratio"] = bytes ? in / double(bytes) : 0;
  j["encode_gbps"] = in / r.encode_s / 1e9;
  j["decode_gbps"] = in / r.decode_s / 1e9;
  j["device"] = o.device;
  j["chunks"] = r.sizes.size();
  j["outliers"] = outliers;
  j["exact"] = exact;
  return j;
}

int run(const CodecCommand& o) {
  if (o.rows < 0 || o.dim < 0)
    throw UsageError(o.rows < 0 ? "codec --rows" : "codec --dim", "is missing",
                     "say --rows and --dim: a file of f32 does not tell its shape");
  if (!o.rel_eb.empty() && !o.abs_eb.empty())
    throw UsageError("codec", "--rel-eb and --abs-eb are both given", "leave one of them out");
  if (o.rel_eb.empty() && o.abs_eb.empty())
    throw UsageError("codec", "it needs a bound", "give --rel-eb (a fraction of max - min) or --abs-eb");
  if (o.device != "cpu" && o.device != "cuda") throw UsageError("codec --device", "unknown device", "cpu or cuda");
  BoundedOptions options;
  options.codec = o.codec.empty() ? (o.device == "cuda" ? "auto" : "smallest") : o.codec;
  if (o.window != options.window && options.codec != "vector_lz" && options.codec != "smallest")
    throw UsageError("codec --window", "is for vector_lz, and this is " + options.codec, "leave it out");
  options.relative = !o.rel_eb.empty();
  options.strict = !o.tolerant;
  options.checksum = o.checksum;
  options.window = o.window;
  const Bounded codec(options, "codec --codec");
  const float bound = options.relative ? number_of("--rel-eb", o.rel_eb) : number_of("--abs-eb", o.abs_eb);
  const auto values = read_rows(o);
  const auto chunks = chunks_of(o, values, bound);
  const auto j =
      describe(o, values, o.device == "cuda" ? on_device(o, codec, chunks, values) : on_host(o, codec, chunks));
  if (o.json) {
    std::cout << j.dump() << std::endl;
    return 0;
  }
  for (const auto& [key, value] : j.items())
    std::cout << key << "=" << (value.is_string() ? value.get<std::string>() : value.dump()) << "\n";
  return 0;
}

const Commands::Entry registered(
    {"codec", "compresses a file of f32 rows within an error bound, and back", [](CommandOptions& command) {
       const auto o = std::make_shared<CodecCommand>();
       command.text("file", o->file, "raw little-endian f32, row by row", command.required);
       command.number("--rows", o->rows, "rows of the file", {0, 1 << 30});
       command.number("--dim", o->dim, "values of a row", {1, 1 << 20});
       command.text("--rel-eb", o->rel_eb, "bound as a fraction of max - min; 0: no loss");
       command.text("--abs-eb", o->abs_eb, "bound as it is; 0: no loss");
       command.text("--codec", o->codec,
                    "smallest (tries all; the default on a CPU), auto (the fast one; on a GPU), raw, packed, "
                    "vector_lz, huffman, rans, dedup_packed, dedup_sparse, "
                    "dedup_huffman, dedup_rans, or without a bound fp16, bf16, fp8, int8_row32, int4");
       command.text("--device", o->device, "cpu or cuda");
       command.number("--chunk-rows", o->chunk_rows, "rows coded by themselves; 0: all together", {0, 1 << 30});
       command.flag("--chunk-range", o->own_range, "max - min of each chunk by itself");
       command.number("--window", o->window, "rows that vector_lz looks back", {1, 255});
       command.number("--times", o->times, "timed rounds, of which the median counts", {1, 10000});
       command.flag("--checksum", o->checksum, "a CRC32C in each chunk");
       command.flag("--tolerant", o->tolerant, "no value is checked again: up to 2 ulp beyond the bound");
       command.flag("--json", o->json, "one JSON object");
       return [o](const CommandLine&) { return run(*o); };
     }});

}  // namespace
}  // namespace trireme
