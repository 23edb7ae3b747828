// links: comm
// The error-bounded codec on a GPU against the host: the same bytes, the same values, the same refusals; and inside a
// graph.
#include "comm/device.h"
#include "comm/error.h"
#include "compression/c_api.h"
#include "tests/unit/codec_rows.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

#include <gtest/gtest.h>

#include <cuda_runtime_api.h>

namespace trireme::test {
namespace {

bool no_gpu() { return !device_runtime() || device_runtime()->count() == 0; }
#define NEEDS_GPU \
  if (no_gpu()) GTEST_SKIP() << "no GPU"

Place place() {
  static const auto stream = device_runtime()->stream();
  return {device_runtime()->current(), stream.get()};
}

// Device memory with room around it, which must stay as it was.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes), memory_(device_runtime()->memory(bytes + 2 * guard)) {
    const std::vector<std::uint8_t> fill(bytes + 2 * guard, 0xA5);
    copy(memory_.get(), fill.data(), fill.size());
  }
  template <class T>
  explicit Memory(const std::vector<T>& host) : Memory(host.size() * sizeof(T)) {
    copy(data(), host.data(), bytes_);
  }
  std::uint8_t* data() const { return static_cast<std::uint8_t*>(memory_.get()) + guard; }
  template <class T = std::uint8_t>
  std::vector<T> read() const {
    std::vector<T> host(bytes_ / sizeof(T));
    copy(host.data(), data(), host.size() * sizeof(T));
    return host;
  }
  bool guards_whole() const {
    std::vector<std::uint8_t> all(bytes_ + 2 * guard);
    copy(all.data(), memory_.get(), all.size());
    for (std::size_t i = 0; i < guard; ++i)
      if (all[i] != 0xA5 || all[guard + bytes_ + i] != 0xA5) return false;
    return true;
  }
  Buffer buffer(DType type = DType::u8) const { return {data(), bytes_ / size_of(type), type, place()}; }

 private:
  static void copy(void* to, const void* from, std::size_t bytes) {
    if (bytes) device_runtime()->copy(to, from, bytes, place());
  }
  static constexpr std::size_t guard = 256;
  std::size_t bytes_;
  std::shared_ptr<void> memory_;
};

// What one call on the device makes of rows that lie on the host.
class OnDevice {
 public:
  OnDevice(const BoundedOptions& options, std::vector<TableChunk> host) : codec_(options), chunks_(std::move(host)) {
    std::size_t room = 0;
    for (auto& c : chunks_) {
      const std::size_t stride = c.stride ? c.stride : c.dim;
      rows_.emplace_back(std::vector<float>(c.rows, c.rows + (c.n ? (c.n - 1) * stride + c.dim : 0)));
      c.rows = reinterpret_cast<const float*>(rows_.back().data());
      if (!c.self) room += codec_.max_bytes(c.n, c.dim);
      if (c.self) {
        selves_.emplace_back(4 * c.n * c.dim);
        c.self = reinterpret_cast<float*>(selves_.back().data());
      }
    }
    out_.emplace_back(room);
    out_.emplace_back(8 * chunks_.size());
    out_.emplace_back(codec_.scratch_bytes(chunks_));
  }
  void encode() { codec_.encode(chunks_, out_[0].buffer(), out_[1].buffer(DType::i64), out_[2].buffer()); }
  Coded coded() const {
    Coded c{out_[0].read(), out_[1].read<std::uint64_t>()};
    std::size_t used = 0;
    for (const auto s : c.sizes) used += s;
    EXPECT_LE(used, c.code.size());
    c.code.resize(used);
    for (const auto& m : out_) EXPECT_TRUE(m.guards_whole());
    return c;
  }
  // The same in parts, which nothing fills before.
  std::vector<std::uint8_t> parts(std::span<const CodePart> parts) {
    std::size_t bytes = 0;
    for (const CodePart& p : parts) bytes += p.bytes;
    const Memory out(std::vector<std::uint8_t>(bytes, 0));
    codec_.encode(chunks_, out.buffer(), out_[1].buffer(DType::i64), out_[2].buffer(), parts);
    const auto all = out.read();
    EXPECT_TRUE(out.guards_whole());
    return all;
  }
  std::vector<float> self(std::size_t k) const { return selves_[k].read<float>(); }

 private:
  Bounded codec_;
  std::vector<TableChunk> chunks_;
  std::vector<Memory> rows_, selves_, out_;
};

// Rows that the device makes of a code, and its status.
std::pair<std::vector<std::vector<float>>, std::uint32_t> decode_there(const BoundedOptions& o, const Coded& c,
                                                                       const std::vector<TableChunk>& like) {
  const Bounded codec(o);
  std::vector<Memory> codes, rows;
  std::vector<CodedChunk> chunks;
  for (std::size_t k = 0, at = 0; k < like.size(); at += c.sizes[k++]) {
    codes.emplace_back(std::vector<std::uint8_t>(c.code.begin() + std::ptrdiff_t(at),
                                                 c.code.begin() + std::ptrdiff_t(at + c.sizes[k])));
    rows.emplace_back(4 * like[k].n * like[k].dim);
    chunks.push_back(
        {codes.back().data(), c.sizes[k], reinterpret_cast<float*>(rows.back().data()), like[k].n, like[k].dim});
  }
  const Memory status(std::vector<std::uint32_t>{77}), scratch(codec.decode_scratch_bytes(chunks));
  codec.decode(chunks, place(), reinterpret_cast<std::uint32_t*>(status.data()), scratch.buffer());
  std::pair<std::vector<std::vector<float>>, std::uint32_t> result{{}, status.read<std::uint32_t>()[0]};
  for (const auto& r : rows) {
    result.first.push_back(r.read<float>());
    EXPECT_TRUE(r.guards_whole());
  }
  return result;
}

// Where two codes part: the chunk and its headers, so that a failure on a card tells which part of the coder it was.
std::string parting(const Coded& host, const Coded& device) {
  std::size_t at = 0, there = 0, k = 0;
  for (; k < host.sizes.size(); at += host.sizes[k], there += device.sizes[k], ++k)
    if (device.sizes[k] != host.sizes[k] || std::memcmp(&host.code[at], &device.code[there], host.sizes[k])) break;
  if (k == host.sizes.size()) return "nowhere";
  std::string text = "chunk " + std::to_string(k);
  for (const auto& [name, code, size] :
       {std::tuple{"host", &host.code[at], host.sizes[k]}, {"device", &device.code[there], device.sizes[k]}}) {
    text += std::string("\n") + name + ", " + std::to_string(size) + " bytes:";
    for (std::size_t i = 0; i < std::min<std::size_t>(size, 96); ++i) text += " " + std::to_string(code[i]);
  }
  return text;
}

void expect_bytes(const Coded& host, const Coded& device) {
  EXPECT_TRUE(device.sizes == host.sizes && device.code == host.code) << parting(host, device);
}

void expect_twins(const BoundedOptions& o, const std::vector<TableChunk>& chunks) {
  const Coded host = encode_chunks(o, chunks);
  OnDevice there(o, chunks);
  there.encode();
  expect_bytes(host, there.coded());
  const auto [rows, status] = decode_there(o, host, chunks);
  EXPECT_EQ(status, 0u);
  for (std::size_t k = 0, at = 0; k < chunks.size(); at += host.sizes[k++]) {
    std::vector<float> expected(chunks[k].n * chunks[k].dim);
    const CodedChunk c{host.code.data() + at, host.sizes[k], expected.data(), chunks[k].n, chunks[k].dim};
    Bounded(o).decode({&c, 1});
    EXPECT_EQ(std::memcmp(rows[k].data(), expected.data(), 4 * expected.size()), 0) << "chunk " << k;
  }
}

const std::vector<std::string> codecs = {"auto",       "vector_lz",    "huffman",    "dedup_huffman", "rans",
                                         "dedup_rans", "dedup_packed", "packed",     "raw",           "fp16",
                                         "bf16",       "fp8",          "int8_row32", "int4",          "dedup_sparse"};

TEST(CudaCodec, BytesAndValuesAreTheHosts) {
  NEEDS_GPU;
  for (const auto& codec : codecs)
    for (const auto& kind : kinds())
      for (const auto& [n, dim] : {std::pair{1, 1},
                                   {1, 64},
                                   {33, 5},
                                   {100, 16},
                                   {257, 32},
                                   {600, 8},
                                   {0, 8},
                                   {2048, 64},
                                   {2049, 16},
                                   {5000, 7},
                                   {4096, 128}})
        for (const float rel : {0.03f, 0.001f, 0.0f, 0.3f}) {
          SCOPED_TRACE(codec + " " + kind + " " + std::to_string(n) + " x " + std::to_string(dim) + " " +
                       std::to_string(rel));
          BoundedOptions o;
          o.codec = codec;
          o.code_width = n == 33 ? 16 : n == 100 ? 8 : 0;
          o.strict = n != 257;
          const auto rows = make_rows(kind, std::size_t(n), std::size_t(dim), unsigned(n + dim));
          expect_twins(o, {chunk_of(rows, std::size_t(n), std::size_t(dim), rel)});
          if (HasFailure()) return;
        }
}

// A row or two of any length: one chunk, and as many as the card has room for at once and a few more.
TEST(CudaCodec, ShortChunks) {
  NEEDS_GPU;
  for (const auto& codec : codecs)
    for (const auto& kind : kinds())
      for (const std::size_t dim : {4, 7, 32, 64, 128})
        for (const float rel : {0.03f, 0.001f, 0.0f, 0.3f})
          for (const std::size_t count : {1, 150}) {
            if (count > 1 && (dim != 64 || rel != 0.03f)) continue;
            const auto rows = make_rows(kind, 2 * count, dim, unsigned(dim));
            std::vector<TableChunk> chunks;
            for (std::size_t k = 0; k < count; ++k) {
              chunks.push_back(chunk_of(rows, 1 + k % 2, dim, rel));
              chunks.back().rows += 2 * k * dim;
              chunks.back().scope = std::uint32_t(k);
            }
            SCOPED_TRACE(codec + " " + kind + " " + std::to_string(count) + " of " + std::to_string(dim) + " " +
                         std::to_string(rel));
            expect_twins({codec}, chunks);
            if (HasFailure()) return;
          }
}

// The shapes that `bench codec_kernels` times, each chunk with its own range; twice over the same memory.
TEST(CudaCodec, ShapesOfTheBenchmark) {
  NEEDS_GPU;
  for (const auto& [count, n, dim] : {std::tuple{128, 2048, 64}, {26, 128, 32}, {1024, 64, 64}}) {
    const auto rows = make_rows("embedding", std::size_t(count * n), std::size_t(dim), 1);
    std::vector<TableChunk> chunks;
    for (std::size_t k = 0; k < std::size_t(count); ++k) {
      chunks.push_back(chunk_of(rows, std::size_t(n), std::size_t(dim), 0.043f));
      chunks.back().rows += k * std::size_t(n) * std::size_t(dim);
      chunks.back().scope = std::uint32_t(k);
    }
    for (const char* codec : {"auto", "dedup_sparse", "dedup_packed", "dedup_huffman", "huffman", "vector_lz", "fp8"}) {
      SCOPED_TRACE(std::string(codec) + " " + std::to_string(count) + " of " + std::to_string(n));
      OnDevice there({codec}, chunks);
      there.encode();
      const Coded once = there.coded();
      there.encode();
      expect_bytes(once, there.coded());
      expect_twins({codec}, chunks);
      if (HasFailure()) return;
    }
  }
}

TEST(CudaCodec, EdgesAreTheHosts) {
  NEEDS_GPU;
  const float inf = HUGE_VALF, nan = std::nanf("");
  for (const auto& v : {std::vector<float>{3.5f, 3.5f},
                        {0, -0.0f},
                        {1, nan},
                        {inf, -inf},
                        {nan, nan},
                        {0, 1e-42f},
                        {-3e38f, 3e38f},
                        {1e6f, 1e6f + 0.0625f},
                        {3.4e38f, 3.3e38f}})
    for (const float rel : {0.01f, 0.0f})
      for (const std::size_t dim : {1, 16})
        for (const auto& codec : codecs) {
          std::vector<float> rows;
          for (int k = 0; k < 40; ++k) rows.insert(rows.end(), dim, v[std::size_t(k % 2)]);
          SCOPED_TRACE(codec + " " + std::to_string(v[0]) + " " + std::to_string(dim));
          expect_twins({codec}, {chunk_of(rows, 40, dim, rel)});
        }
}

// Many chunks of several tables in one call: ranges by scope, one that stays, empty ones, more than one launch holds.
TEST(CudaCodec, ManyChunksInOneCall) {
  NEEDS_GPU;
  const std::size_t dim = 16, tables = 90, each = 9;
  std::vector<std::vector<float>> rows;
  std::vector<TableChunk> chunks;
  std::vector<float> self(40 * dim);
  for (std::size_t t = 0; t < tables; ++t) {
    rows.push_back(make_rows("embedding", 40 * each, dim, unsigned(t)));
    for (std::size_t k = 0; k < each; ++k) {
      TableChunk c = chunk_of(rows.back(), k == 3 ? 0 : 40, dim, 0.01f * float(1 + t % 5));
      c.rows += k * 40 * dim;
      c.scope = std::uint32_t(t);
      chunks.push_back(c);
    }
  }
  expect_twins({}, chunks);
  std::shuffle(chunks.begin(), chunks.end(), std::mt19937(1));  // a scope's chunks stand anywhere
  std::size_t selves = 0;
  for (std::size_t k = 5; k < chunks.size(); k += each)
    if (chunks[k].n) chunks[k].self = self.data(), ++selves;
  const Coded host = encode_chunks({}, chunks);
  OnDevice there({}, chunks);
  there.encode();
  EXPECT_TRUE(there.coded().code == host.code);
  EXPECT_EQ(there.coded().sizes, host.sizes);
  const std::vector<float> last = self;  // the host's, of the last table
  EXPECT_EQ(there.self(selves - 1), last);
}

// Runs of up to 70 rows: what stood before, or three rows that take turns.
std::vector<float> rows_in_runs(std::size_t n, std::size_t dim, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<float> rows(n * dim), few(3 * dim);
  for (auto& x : few) x = float(random() % 200);
  for (std::size_t r = 0; r < n;) {
    std::size_t from = r ? random() % r : 0;
    const bool again = r && random() % 3;
    for (std::size_t k = 0, run = 1 + random() % (again ? 70 : 3); k < run && r < n; ++k, ++r, ++from) {
      const float* source = again ? &rows[from * dim] : &few[random() % 3 * dim];
      std::copy_n(source, dim, &rows[r * dim]);
      if (random() % 40 == 0) rows[r * dim] += 1;
    }
  }
  return rows;
}

// Codes 0 to 21, as often as Fibonacci's numbers say, in rows of 4.
std::vector<float> rows_with_deep_codes() {
  std::vector<float> rows;
  for (std::size_t k = 0, now = 1, next = 1; k < 22; ++k) {
    rows.insert(rows.end(), now, float(k));
    now = std::exchange(next, now + next);
  }
  std::shuffle(rows.begin(), rows.end(), std::mt19937(1));
  rows.resize(rows.size() / 4 * 4);
  return rows;
}

// Runs of rows that come again, near and far, across blocks of vector-LZ; any window.
// Three parts, of which one stays here and one has no chunk; with room for all, and not.
TEST(CudaCodec, PartsHaveTheBytesOfTheHost) {
  NEEDS_GPU;
  const std::size_t n = 60, dim = 16, chunks = 90;
  for (const char* codec : {"auto", "dedup_sparse", "huffman", "fp8"}) {
    const std::vector<float> rows = make_rows("embedding", n * chunks, dim, 3);
    std::vector<float> self(n * dim);
    std::vector<TableChunk> all;
    for (std::size_t k = 0; k < chunks; ++k) {
      all.push_back(chunk_of(rows, n, dim, 0.03f));
      all.back().rows += k * n * dim, all.back().scope = std::uint32_t(k % 7);
    }
    all[40].self = self.data();
    const Bounded host({.codec = codec});
    const Coded bare = encode_chunks({.codec = codec}, all);
    std::size_t first = 0, last = 0;
    for (std::size_t k = 0; k < chunks; ++k) (k < 40 ? first : last) += bare.sizes[k];
    for (const std::size_t lacks : {0, 8}) {
      const std::vector<CodePart> parts{{40, CodePart::header_bytes(40) + first / 8 * 8 + 64},
                                        {1, 0},
                                        {0, CodePart::header_bytes(0)},
                                        {49, CodePart::header_bytes(49) + (last + 7) / 8 * 8 - lacks}};
      std::size_t bytes = 0;
      for (const CodePart& p : parts) bytes += p.bytes;
      std::vector<std::uint8_t> expected(bytes, 0);
      std::vector<std::uint64_t> sizes(chunks);
      host.encode(all, {expected.data(), bytes, DType::u8}, {sizes.data(), chunks, DType::i64}, {}, parts);
      OnDevice there({.codec = codec}, all);
      EXPECT_EQ(there.parts(parts), expected) << codec << " " << lacks;
      if (lacks) continue;
      const Memory code(expected), back(4 * n * dim * 40), status(4);
      std::vector<CodedChunk> coded;
      for (std::size_t k = 0; k < 40; ++k)
        coded.push_back(
            {code.data(), parts[0].bytes, reinterpret_cast<float*>(back.data()) + k * n * dim, n, dim, 0, 40, k});
      const Memory scratch(host.decode_scratch_bytes(coded));
      host.decode(coded, place(), reinterpret_cast<std::uint32_t*>(status.data()), scratch.buffer());
      EXPECT_EQ(status.read<std::uint32_t>()[0], 0u) << codec;
      const std::vector<float> got = back.read<float>();
      std::vector<float> one(n * dim);
      for (CodedChunk c : coded) {
        c.code = expected.data(), c.rows = one.data();
        host.decode({&c, 1});
        EXPECT_TRUE(std::equal(one.begin(), one.end(), got.begin() + std::ptrdiff_t(c.number * n * dim))) << codec;
      }
    }
  }
}

TEST(CudaCodec, VectorLzOfRuns) {
  NEEDS_GPU;
  std::mt19937_64 random(3);
  for (const std::size_t n : {1, 2, 31, 400, 2048, 2049, 6000})
    for (const std::size_t dim : {1, 3, 16})
      for (const int window : {1, 32, 33, 200, 255}) {
        const std::vector<float> rows = rows_in_runs(n, dim, random());
        BoundedOptions o;
        o.codec = "vector_lz", o.window = window, o.code_width = dim == 3 ? 16 : 0;
        SCOPED_TRACE(std::to_string(n) + " x " + std::to_string(dim) + ", window " + std::to_string(window));
        expect_twins(o, {chunk_of(rows, n, dim, 0.01f)});
        if (HasFailure()) return;
      }
}

// Counts that grow as Fibonacci's numbers ask for codes longer than there are.
TEST(CudaCodec, HuffmanOfRareSymbols) {
  NEEDS_GPU;
  const std::vector<float> rows = rows_with_deep_codes();
  for (const char* codec : {"huffman", "dedup_huffman"}) {
    BoundedOptions o;
    o.codec = codec, o.relative = false;
    expect_twins(o, {chunk_of(rows, rows.size() / 4, 4, 0.5f)});
  }
}

TEST(CudaCodec, ACodecAChunkInOneCall) {
  NEEDS_GPU;
  std::vector<Bounded> codecs_of_call;
  for (const auto& codec : codecs) codecs_of_call.emplace_back(BoundedOptions{codec});
  const auto rows = make_rows("embedding", 40 * 64, 16, 7);
  std::vector<TableChunk> chunks;
  for (std::size_t k = 0; k < 40; ++k) {
    TableChunk c = chunk_of(rows, 64, 16, 0.02f);
    c.rows += k * 64 * 16;
    c.scope = std::uint32_t(k / 7);
    if (k % 5) c.as = &codecs_of_call[k % codecs_of_call.size()];
    chunks.push_back(c);
  }
  expect_twins({}, chunks);
}

// Where all chunks are of fp8 by lanes there is no pass for ranges; with longer rows or another codec there is.
TEST(CudaCodec, Fp8FindsWhatIsNotFinite) {
  NEEDS_GPU;
  for (const std::size_t dim : {4, 12, 128, 132})
    for (const bool alone : {true, false}) {
      auto rows = make_rows("embedding", 40 * 30, dim, 7);
      for (std::size_t k = 0; k < 30; k += 9) rows[k * 40 * dim + 3] = k % 2 ? HUGE_VALF : std::nanf("");
      const Bounded other(BoundedOptions{"auto"});
      std::vector<TableChunk> chunks;
      for (std::size_t k = 0; k < 30; ++k) {
        TableChunk c = chunk_of(rows, k % 11 == 3 ? 0 : k % 7 == 2 ? 1 : 40, dim, k % 13 == 5 ? 0.0f : 0.02f);
        c.rows += k * 40 * dim;
        c.scope = std::uint32_t(k / 7);
        if (!alone && k % 5 == 0) c.as = &other;
        chunks.push_back(c);
      }
      SCOPED_TRACE(std::to_string(dim) + (alone ? " alone" : " beside auto"));
      expect_twins({"fp8"}, chunks);
    }
}

void expect_a_graph(const BoundedOptions& o) {
  const auto a = make_rows("embedding", 2048, 64, 1);
  OnDevice there(o, {chunk_of(a, 2048, 64, 0.03f)});
  there.encode();  // attributes of kernels are set once, outside
  const auto stream = static_cast<cudaStream_t>(place().stream);
  cudaGraph_t graph;
  cudaGraphExec_t run;
  ASSERT_EQ(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  there.encode();
  ASSERT_EQ(cudaStreamEndCapture(stream, &graph), cudaSuccess);
  std::size_t nodes = 0;
  cudaGraphGetNodes(graph, nullptr, &nodes);
  EXPECT_LE(nodes, 5u);
  ASSERT_EQ(cudaGraphInstantiate(&run, graph, 0), cudaSuccess);
  for (int k = 0; k < 3; ++k) ASSERT_EQ(cudaGraphLaunch(run, stream), cudaSuccess);
  EXPECT_TRUE(there.coded().code == encode(o, a, 2048, 64, 0.03f).code);
  cudaGraphExecDestroy(run);
  cudaGraphDestroy(graph);
}

TEST(CudaCodec, RunsInAGraph) {
  NEEDS_GPU;
  for (const char* codec : {"auto", "dedup_sparse"}) expect_a_graph({codec});
}

// Bad bytes: what the host refuses the device refuses, what it takes gives the same values. TRIREME_FUZZ=N payloads.
TEST(CudaCodec, BadPayloads) {
  NEEDS_GPU;
  const char* wanted = std::getenv("TRIREME_FUZZ");
  const std::size_t payloads = wanted ? std::size_t(std::atoll(wanted)) : 20000, batch = 256;
  const std::size_t n = 60, dim = 8;
  std::vector<Coded> good;
  for (const auto& codec : codecs)
    for (const auto& [kind, rel] : {std::pair{"embedding", 0.03f}, {"few", 0.03f}, {"shifted", 0.0005f}, {"few", 0.0f}})
      good.push_back(encode({codec}, make_rows(kind, n, dim, 3), n, dim, rel));
  std::mt19937_64 random(5);
  for (std::size_t done = 0; done < payloads; done += batch) {
    std::vector<Coded> bad(batch);
    std::vector<TableChunk> like(1);
    like[0].n = n, like[0].dim = dim;
    for (auto& b : bad) {
      b = good[random() % good.size()];
      auto& code = b.code;
      switch (random() % 4) {
        case 0:
          code[random() % code.size()] ^= std::uint8_t(1u << random() % 8);
          break;
        case 1:
          for (int k = 0; k < 3; ++k) code[20 + random() % (code.size() - 20)] = std::uint8_t(random());
          break;
        case 2:
          code[4] = std::uint8_t(random() % 15), code[6] = std::uint8_t(random() & 47);
          break;
        default:
          for (std::size_t i = 20; i < code.size(); ++i) code[i] = std::uint8_t(random());
      }
    }
    // One call with all: its status names the first that is bad.
    const Bounded codec{BoundedOptions{}};
    std::vector<std::uint8_t> all;
    std::vector<std::size_t> at;
    for (const auto& b : bad) {
      at.push_back(all.size());
      all.insert(all.end(), b.code.begin(), b.code.end());
    }
    const Memory codes(all), rows(4 * n * dim * batch), status(std::vector<std::uint32_t>{7});
    std::vector<CodedChunk> chunks;
    for (std::size_t k = 0; k < batch; ++k)
      chunks.push_back(
          {codes.data() + at[k], bad[k].code.size(), reinterpret_cast<float*>(rows.data()) + k * n * dim, n, dim});
    const Memory scratch(codec.decode_scratch_bytes(chunks));
    codec.decode(chunks, place(), reinterpret_cast<std::uint32_t*>(status.data()), scratch.buffer());
    const auto values = rows.read<float>();
    EXPECT_TRUE(rows.guards_whole());
    std::uint32_t first = 0;
    for (std::size_t k = 0; k < batch; ++k) {
      std::vector<float> expected(n * dim);
      const CodedChunk c{bad[k].code.data(), bad[k].code.size(), expected.data(), n, dim};
      try {
        codec.decode({&c, 1});
      } catch (const CommError&) {
        if (!first) first = std::uint32_t(k + 1);
        continue;
      }
      ASSERT_EQ(std::memcmp(expected.data(), values.data() + k * n * dim, 4 * n * dim), 0)
          << "encoder " << int(bad[k].code[4]);
    }
    ASSERT_EQ(status.read<std::uint32_t>()[0], first);
  }
}

// compression/c_api.h on a stream of the caller's: the host's bytes, its refusals, nothing beside the memory given.
TEST(CudaCodec, FromC) {
  NEEDS_GPU;
  const std::size_t n = 700, dim = 48;
  const auto values = make_rows("embedding", n, dim, 3);
  const Memory in(values), back(4 * n * dim), status(std::vector<std::uint32_t>{77}), sizes(8);
  const trireme_place there{place().device, place().stream}, host{-1, nullptr};
  trireme_codec* codec = nullptr;
  ASSERT_EQ(trireme_codec_create("auto", 1, 0, &codec), 0);
  trireme_rows rows{reinterpret_cast<const float*>(in.data()), n, dim, 0, 0.03f, 0};
  std::size_t room = 0, scratch_bytes = 0;
  ASSERT_EQ(trireme_codec_encode_size(codec, &rows, 1, there, &room, &scratch_bytes), 0);
  const Memory out(room), scratch(scratch_bytes);
  auto* const sizes_at = reinterpret_cast<std::uint64_t*>(sizes.data());
  ASSERT_EQ(trireme_codec_encode(codec, &rows, 1, there, out.data(), room, sizes_at, scratch.data(), scratch_bytes), 0)
      << trireme_codec_message();
  EXPECT_EQ(trireme_codec_encode(codec, &rows, 1, there, out.data(), room, sizes_at, scratch.data(), scratch_bytes - 1),
            2);
  const std::uint64_t size = sizes.read<std::uint64_t>()[0];
  rows.rows = values.data();
  std::vector<std::uint8_t> expected(room);
  std::uint64_t expected_size = 0;
  ASSERT_EQ(trireme_codec_encode(codec, &rows, 1, host, expected.data(), room, &expected_size, nullptr, 0), 0);
  ASSERT_EQ(size, expected_size);
  EXPECT_EQ(std::memcmp(out.read().data(), expected.data(), size), 0);
  trireme_code code{out.data(), size, reinterpret_cast<float*>(back.data()), n, dim, 0};
  ASSERT_EQ(trireme_codec_decode_size(codec, &code, 1, there, &scratch_bytes), 0);
  const Memory more(scratch_bytes);
  auto* const status_at = reinterpret_cast<std::uint32_t*>(status.data());
  ASSERT_EQ(trireme_codec_decode(codec, &code, 1, there, status_at, more.data(), scratch_bytes), 0);
  EXPECT_EQ(status.read<std::uint32_t>()[0], 0u);
  std::vector<float> decoded(n * dim);
  trireme_code here{expected.data(), size, decoded.data(), n, dim, 0};
  ASSERT_EQ(trireme_codec_decode(codec, &here, 1, host, nullptr, nullptr, 0), 0);
  EXPECT_EQ(back.read<float>(), decoded);
  code.bytes = size - 4;
  ASSERT_EQ(trireme_codec_decode(codec, &code, 1, there, status_at, more.data(), scratch_bytes), 0);
  EXPECT_EQ(status.read<std::uint32_t>()[0], 1u);
  code.code = out.data() + 2, code.bytes = size;  // as behind a code whose size was tampered with
  ASSERT_EQ(trireme_codec_decode(codec, &code, 1, there, status_at, more.data(), scratch_bytes), 0);
  EXPECT_EQ(status.read<std::uint32_t>()[0], 1u);
  EXPECT_EQ(trireme_codec_decode(codec, &code, 1, there, nullptr, more.data(), scratch_bytes), 2);
  for (const auto* m : {&out, &scratch, &back, &sizes, &status, &more}) EXPECT_TRUE(m->guards_whole());
  trireme_codec_destroy(codec);
}

}  // namespace
}  // namespace trireme::test
