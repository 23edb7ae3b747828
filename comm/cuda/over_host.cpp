#include "comm/cuda/over_host.h"

#include "comm/cuda/exchange.h"
#include "comm/cuda/reduce.h"
#include "comm/error.h"

#include <algorithm>
#include <numeric>
#include <thread>

namespace trireme {
namespace {

using namespace cuda;

std::size_t index(int r) { return static_cast<std::size_t>(r); }
std::size_t divide_up(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

// Polls CUDA events and the host communicators' operations; one a process. Never ended: communicators of any
// lifetime use it.
std::shared_ptr<Engine> shared_engine(int ranks) {
  static const auto* engine = new std::shared_ptr<Engine>(
      std::make_shared<Engine>(Engine::Source::peers, ranks > static_cast<int>(std::thread::hardware_concurrency())));
  return *engine;
}

// An all_to_all through pinned memory. Every round moves at most `piece` elements between any two ranks; the number of
// rounds is agreed in exchange().
Pieces all_to_all_pieces(HostDriven* g, const ConstBuffer& in, const std::vector<std::size_t>& sent,
                         const std::vector<std::size_t>& expected, std::size_t piece,
                         const std::function<void*()>& result) {
  const std::size_t n = sent.size(), width = size_of(in.dtype);
  const auto from = byte_offsets(sent, in.dtype), to = byte_offsets(expected, in.dtype);
  const auto part = [piece](std::size_t whole, std::size_t k) {
    return std::min(piece, whole - std::min(whole, k * piece));
  };
  const auto parts = [part](const std::vector<std::size_t>& whole, std::size_t k) {
    std::vector<std::size_t> p;
    for (const std::size_t w : whole) p.push_back(part(w, k));
    return p;
  };
  return {0, 2 * n * piece * width,
          [=](std::size_t k, std::byte* slot) {
            for (std::size_t r = 0; r < n; ++r) {
              const std::size_t bytes = part(sent[r], k) * width;
              if (bytes) g->copy(slot, at(in.data, from[r] + k * piece * width), bytes);
              slot += bytes;
            }
          },
          [=](std::size_t k, std::byte* slot) {
            slot += n * piece * width;
            for (std::size_t r = 0; r < n; ++r) {
              const std::size_t bytes = part(expected[r], k) * width;
              if (bytes) g->copy(at(result(), to[r] + k * piece * width), slot, bytes);
              slot += bytes;
            }
          },
          [=](std::size_t k, std::byte* slot) {
            return g->host->all_to_all({slot, n * piece, in.dtype}, parts(sent, k),
                                       {slot + n * piece * width, n * piece, in.dtype}, parts(expected, k));
          }};
}

class OverHost final : public Communicator {
 public:
  OverHost(std::unique_ptr<Communicator> host, int device, DeviceSink sink) {
    const int ranks = host->size();
    g_ = std::make_shared<HostDriven>(shared_engine(ranks), std::move(host), device, std::move(sink));
    if (ranks > 1) g_->ipc = can_share_memory(*g_);
    g_->engine().add(g_);
  }
  ~OverHost() override { g_->engine().retire(*g_); }

  int rank() const override { return g_->me.rank; }
  int size() const override { return g_->me.size; }

  Work all_reduce(Buffer inout, Op op) override {
    check_all_reduce(member(inout.place), inout);
    if (inout.place.host()) return on_host([=](Communicator& h) { return h.all_reduce(inout, op); });
    if (size() == 1 || inout.count == 0) return {};
    HostDriven* const g = g_.get();  // which outlives its operations; this object may not
    auto s = script("all_reduce", 2 * inout.bytes() * index(size() - 1) / index(size()), inout.place, inout.place);
    const std::size_t width = size_of(inout.dtype), piece = std::max<std::size_t>(g_->piece_bytes / width, 1);
    const auto part = [=](std::size_t k, void* base) {
      return Buffer{at(base, k * piece * width), std::min(piece, inout.count - k * piece), inout.dtype};
    };
    const Pieces pieces{
        divide_up(inout.count, piece), piece * width,
        [=](std::size_t k, std::byte* slot) { g->copy(slot, part(k, inout.data).data, part(k, inout.data).bytes()); },
        [=](std::size_t k, std::byte* slot) { g->copy(part(k, inout.data).data, slot, part(k, inout.data).bytes()); },
        [=](std::size_t k, std::byte* slot) {
          return g->host->all_reduce({slot, part(k, inout.data).count, inout.dtype}, op);
        }};
    // Each rank reduces its slice and writes it to all.
    exchange(*g, *s, {inout.data, {}, pieces, 0, [=](const Peers& peers) {
                        const std::size_t self = index(g->me.rank);
                        const std::size_t per = divide_up(divide_up(inout.count, peers.memory.size()), 64) * 64;
                        const std::size_t begin = std::min(inout.count, self * per),
                                          end = std::min(inout.count, begin + per);
                        std::vector<void*> all;
                        for (const auto& m : peers.memory) all.push_back(at(m.data, begin * width));
                        cuda::reduce(op, inout.dtype, all.data(), all.size(), all.data(), all.size(), end - begin,
                                     g->stream.get());
                      }});
    return post(s, inout.bytes(), inout.place);
  }

  Work reduce_scatter(ConstBuffer in, Buffer out, Op op) override {
    check_reduce_scatter(member(out.place), in, out);
    if (out.place.host()) return on_host([=](Communicator& h) { return h.reduce_scatter(in, out, op); });
    if (size() == 1) return copy_alone(in, out);
    if (out.count == 0) return {};
    HostDriven* const g = g_.get();  // which outlives its operations; this object may not
    auto s = script("reduce_scatter", out.bytes() * index(size() - 1), in.place, out.place);
    const auto result = g->result_of(*s, out, misplaced(in.data, in.bytes(), out.data, out.bytes(), rank()));
    const std::size_t width = size_of(in.dtype), n = index(size());
    const std::size_t piece = std::max<std::size_t>(g_->piece_bytes / width / n, 1);
    const auto count = [=](std::size_t k) { return std::min(piece, out.count - k * piece); };
    const Pieces pieces{divide_up(out.count, piece), piece * width * (n + 1),
                        [=](std::size_t k, std::byte* slot) {
                          for (std::size_t r = 0; r < n; ++r)
                            g->copy(slot + r * count(k) * width, at(in.data, (r * out.count + k * piece) * width),
                                    count(k) * width);
                        },
                        [=](std::size_t k, std::byte* slot) {
                          g->copy(at(result(), k * piece * width), slot + n * piece * width, count(k) * width);
                        },
                        [=](std::size_t k, std::byte* slot) {
                          return g->host->reduce_scatter({slot, n * count(k), in.dtype},
                                                         {slot + n * piece * width, count(k), in.dtype}, op);
                        }};
    exchange(*g, *s, {in.data, {}, pieces, 0, [=](const Peers& peers) {
                        std::vector<const void*> ins;
                        for (const auto& m : peers.memory) ins.push_back(at(m.data, index(g->me.rank) * out.bytes()));
                        void* to = result();
                        cuda::reduce(op, out.dtype, &to, 1, ins.data(), ins.size(), out.count, g->stream.get());
                      }});
    return post(s, in.bytes(), out.place);
  }

  Work all_gather(ConstBuffer in, Buffer out) override {
    check_all_gather(member(out.place), in, out);
    if (out.place.host()) return on_host([=](Communicator& h) { return h.all_gather(in, out); });
    if (size() == 1) return copy_alone(in, out);
    if (in.count == 0) return {};
    HostDriven* const g = g_.get();  // which outlives its operations; this object may not
    auto s = script("all_gather", in.bytes() * index(size() - 1), in.place, out.place);
    const auto result = g->result_of(*s, out, misplaced(out.data, out.bytes(), in.data, in.bytes(), rank()));
    const std::size_t width = size_of(in.dtype), n = index(size());
    const std::size_t piece = std::max<std::size_t>(g_->piece_bytes / width / n, 1);
    const auto count = [=](std::size_t k) { return std::min(piece, in.count - k * piece); };
    const Pieces pieces{
        divide_up(in.count, piece), piece * width * (n + 1),
        [=](std::size_t k, std::byte* slot) {
          g->copy(slot + n * piece * width, at(in.data, k * piece * width), count(k) * width);
        },
        [=](std::size_t k, std::byte* slot) {
          for (std::size_t r = 0; r < n; ++r)
            g->copy(at(result(), (r * in.count + k * piece) * width), slot + r * count(k) * width, count(k) * width);
        },
        [=](std::size_t k, std::byte* slot) {
          return g->host->all_gather({slot + n * piece * width, count(k), in.dtype}, {slot, n * count(k), in.dtype});
        }};
    exchange(*g, *s, {in.data, {}, pieces, 0, [=](const Peers& peers) {
                        for (std::size_t r = 0; r < n; ++r)
                          g->copy(at(result(), r * in.bytes()), peers.memory[r].data, in.bytes());
                      }});
    return post(s, out.bytes(), out.place);
  }

  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override {
    check_all_to_all(member(out.place), in, send, out, recv);
    const std::vector<std::size_t> sent(send.begin(), send.end()), expected(recv.begin(), recv.end());
    if (out.place.host()) return on_host([=](Communicator& h) { return h.all_to_all(in, sent, out, expected); });
    const auto from = byte_offsets(send, in.dtype), to = byte_offsets(recv, in.dtype);
    if (size() == 1) {
      in.count = send[0];
      return copy_alone(in, out);
    }
    const std::size_t n = index(size()), self = index(rank()), width = size_of(in.dtype);
    HostDriven* const g = g_.get();  // which outlives its operations; this object may not
    auto s = script("all_to_all", from.back() - (from[self + 1] - from[self]), in.place, out.place);
    const auto result = g->result_of(*s, out, overlap(in.data, in.bytes(), out.data, out.bytes()));
    const std::size_t piece = std::max<std::size_t>(g_->piece_bytes / width / n, 1);
    const Pieces pieces = all_to_all_pieces(g, in, sent, expected, piece, result);
    exchange(*g, *s, {in.count ? in.data : nullptr, sent, pieces, piece, [=](const Peers& peers) {
                        for (std::size_t r = 0; r < n; ++r) {
                          const auto* counts = &peers.counts[r * n];
                          if (counts[self] != expected[r])
                            throw CommError(place(g->me), "all_to_all: rank " + std::to_string(r) + " sends " +
                                                              std::to_string(counts[self]) + " elements here, not " +
                                                              std::to_string(expected[r]));
                          if (expected[r] == 0) continue;
                          g->copy(
                              at(result(), to[r]),
                              at(peers.memory[r].data, std::accumulate(counts, counts + self, std::size_t{0}) * width),
                              expected[r] * width);
                        }
                      }});
    return post(s, in.bytes(), out.place);
  }

  Work broadcast(Buffer inout, int root) override {
    check_broadcast(member(inout.place), inout, root);
    if (inout.place.host()) return on_host([=](Communicator& h) { return h.broadcast(inout, root); });
    if (size() == 1 || inout.count == 0) return {};
    HostDriven* const g = g_.get();  // which outlives its operations; this object may not
    auto s = script("broadcast", inout.bytes(), inout.place, inout.place);
    const std::size_t piece = g_->piece_bytes;
    const auto bytes = [=](std::size_t k) { return std::min(piece, inout.bytes() - k * piece); };
    const Pieces pieces{divide_up(inout.bytes(), piece), piece,
                        [=](std::size_t k, std::byte* slot) {
                          if (g->me.rank == root) g->copy(slot, at(inout.data, k * piece), bytes(k));
                        },
                        [=](std::size_t k, std::byte* slot) {
                          if (g->me.rank != root) g->copy(at(inout.data, k * piece), slot, bytes(k));
                        },
                        [=](std::size_t k, std::byte* slot) {
                          return g->host->broadcast({slot, bytes(k), DType::u8}, root);
                        }};
    exchange(*g, *s, {inout.data, {}, pieces, 0, [=](const Peers& peers) {
                        if (g->me.rank != root) g->copy(inout.data, peers.memory[index(root)].data, inout.bytes());
                      }});
    return post(s, inout.bytes(), inout.place);
  }

  // Behind all that was posted before it, its copies included.
  Work barrier() override {
    if (size() == 1) return {};
    auto s = std::make_shared<Script>(*g_, nullptr, 0);
    HostDriven* const g = g_.get();
    Script* script = s.get();
    s->add([g, script] {
      script->end.record(g->me.device, g->stream.get());
      return true;
    });
    s->add([script] { return script->end.complete(); });
    s->add_host([](Communicator& h) { return h.barrier(); });
    return post(s, 0, {});
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    barrier().wait();  // no other thread may be using the host communicator
    return over_host(g_->host->split(color, key), g_->me.device, g_->sink);
  }
  std::shared_ptr<void> allocate(std::size_t bytes) override {
    barrier().wait();
    return g_->host->allocate(bytes);
  }
  void abort(int code, std::string_view why) noexcept override { g_->host->abort(code, why); }
  std::string_view backend() const override { return g_->host->backend(); }
  std::string_view transport() const { return g_->ipc ? "CUDA IPC" : "pinned staging"; }

 private:
  // Buffers of a call lie all on the device or all on the host.
  Member member(Place p) const { return {rank(), size(), p.host() ? -1 : g_->me.device}; }
  Work copy_alone(const ConstBuffer& in, const Buffer& out) {
    if (in.count == 0 || in.data == out.data) return {};
    const OnDevice on(g_->me.device);
    TRIREME_CUDA_CHECK(cudaMemcpyAsync(out.data, in.data, in.bytes(), cudaMemcpyDeviceToDevice, stream_of(out.place)));
    return {};
  }

  std::shared_ptr<Script> script(const char* name, std::uint64_t bytes, Place in, Place out) {
    auto s = std::make_shared<Script>(*g_, name, bytes);
    const OnDevice on(g_->me.device);
    s->ready.record(g_->me.device, stream_of(out));
    if (in.stream != out.stream) s->also.record(g_->me.device, stream_of(in));
    return s;
  }
  Work post(const std::shared_ptr<Script>& s, std::size_t bytes, Place place) {
    g_->push(s, bytes);
    return Work(make_device_work(g_, s, place));
  }
  Work on_host(std::function<Work(Communicator&)> call) {
    if (size() == 1) return call(*g_->host);
    auto s = std::make_shared<Script>(*g_, nullptr, 0);
    s->add_host(std::move(call));
    return post(s, 0, {});
  }

  std::shared_ptr<HostDriven> g_;
};

}  // namespace

std::unique_ptr<Communicator> over_host(std::unique_ptr<Communicator> host, int device, DeviceSink sink) {
  return std::make_unique<OverHost>(std::move(host), device, std::move(sink));
}

std::string_view cuda_transport(const Communicator& communicator) {
  const auto* cuda = dynamic_cast<const OverHost*>(&communicator);
  return cuda ? cuda->transport() : "none";
}

}  // namespace trireme
