#include "comm/cuda/script.h"

#include "comm/error.h"
#include "comm/mpi/mpi.h"

#include <algorithm>
#include <utility>

namespace trireme::cuda {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t staging_bytes = 4u << 20;  // large enough for full speed over the bus, small enough to overlap

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

class DeviceWork final : public Work::State {
 public:
  // What the device still has to do when the operation is complete.
  struct Tail {
    Event end;
    std::function<Work()> keep;  // a continuation: its kernels use what it holds
  };
  DeviceWork(std::shared_ptr<HostDriven> g, std::shared_ptr<State> operation, std::shared_ptr<Script> script,
             std::shared_ptr<Tail> tail, Place place)
      : g_(std::move(g)),
        operation_(std::move(operation)),
        script_(std::move(script)),
        tail_(std::move(tail)),
        place_(place) {}

  bool done() override { return operation_->done() && end().complete(); }
  bool settled() override try { return operation_->settled() && end().complete(); } catch (const Error&) {
    return true;  // failed
  }
  void wait() override {
    operation_->wait();
    const OnDevice on(g_->me.device);
    // The continuation's own collectives end on this stream, behind the event of its kernels.
    if (tail_) tail_->end.record(g_->me.device, g_->stream.get());
    if (place_.host()) {
      end().wait(Clock::time_point::max(), {});
    } else {
      end().block(stream_of(place_));
    }
  }
  bool wait_host(std::chrono::milliseconds timeout) override {
    const auto until = Clock::now() + timeout;
    return operation_->wait_host(timeout) && end().wait(until, {});
  }
  std::shared_ptr<State> then(std::function<Work()> next) override {
    auto tail = std::make_shared<Tail>();
    tail->keep = std::move(next);
    auto inner = operation_->then([g = g_, tail] {
      const OnDevice on(g->me.device);
      Work work;
      in_stream({g->me.device, g->stream.get()}, [&] { work = tail->keep(); });
      tail->end.record(g->me.device, g->stream.get());
      return work;
    });
    return std::make_shared<DeviceWork>(g_, std::move(inner), script_, std::move(tail), place_);
  }

 private:
  const Event& end() const { return tail_ ? tail_->end : script_->end; }

  std::shared_ptr<HostDriven> g_;
  std::shared_ptr<State> operation_;
  std::shared_ptr<Script> script_;
  std::shared_ptr<Tail> tail_;  // null: the script itself
  Place place_;
};

}  // namespace

HostDriven::HostDriven(std::shared_ptr<Engine> engine, std::unique_ptr<Communicator> h, int device, DeviceSink s)
    : Queue(std::move(engine)),
      host(std::move(h)),
      me{host->rank(), host->size(), device},
      stream(device),
      sink(std::move(s)),
      piece_bytes(std::min(staging_bytes, MpiOptions::from_environment().chunk_limit)) {}

HostDriven::~HostDriven() {
  for (auto& p : pinned_)
    if (p.data) cudaFreeHost(p.data);
}

std::byte* HostDriven::pinned(int which, std::size_t bytes) {
  Pinned& p = pinned_[which];
  if (p.bytes < bytes) {
    TRIREME_CUDA_CHECK(cudaStreamSynchronize(stream.get()));  // copies of an earlier operation may still use it
    if (p.data) TRIREME_CUDA_CHECK(cudaFreeHost(std::exchange(p.data, nullptr)));
    p.bytes = 0;
    TRIREME_CUDA_CHECK(cudaMallocHost(&p.data, bytes));
    p.bytes = bytes;
  }
  return static_cast<std::byte*>(p.data);
}

void HostDriven::copy(void* to, const void* from, std::size_t bytes) const {
  if (to != from && bytes > 0) TRIREME_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream.get()));
}

std::function<void*()> HostDriven::result_of(Script& script, const Buffer& out, bool apart) {
  if (!apart) return [out] { return out.data; };
  script.apart = out;
  script.add([this, &script] {
    script.scratch = Scratch(script.apart.bytes(), stream.get());
    return true;
  });
  return [&script] { return script.scratch.data(); };
}

void HostDriven::copy_result(Script& script) {
  if (!script.apart.data) return;
  copy(script.apart.data, script.scratch.data(), script.apart.bytes());
  script.end.record(me.device, stream.get());
}

void Script::add_host(std::function<Work(Communicator&)> call) {
  add([this, call = std::move(call)] {
    host = call(*g_.host);
    return true;
  });
  add([this] { return host.done(); });
}

Operation::Step Script::progress() {
  const OnDevice on(g_.me.device);
  if (!ready.complete() || !also.complete()) return Step::blocked;
  if (begin_ns_ == 0) begin_ns_ = now_ns();
  if (!stages_.empty()) {
    // The stage may replace all that follow: it must outlive that.
    Stage stage = std::move(stages_.front());
    stages_.pop_front();
    if (!stage()) {
      stages_.push_front(std::move(stage));
      return Step::blocked;
    }
  }
  if (!stages_.empty()) return Step::advanced;
  host = {};
  if (g_.sink && name_) g_.sink(name_, begin_ns_, now_ns(), bytes_);
  return Step::complete;
}

std::deque<Script::Stage> staged(HostDriven& g, Script& script, Pieces pieces) {
  struct Progress {
    Pieces pieces;
    std::size_t k = 0;
    int phase = 0;
    Event here[2];
    std::byte* slot[2] = {nullptr, nullptr};
  };
  auto p = std::make_shared<Progress>();
  p->pieces = std::move(pieces);
  const auto down = [&g, p](std::size_t k) {
    p->pieces.down(k, p->slot[k % 2]);
    p->here[k % 2].record(g.me.device, g.stream.get());
  };
  return {[&g, p, down] {
            if (p->pieces.count == 0) return true;
            for (int i = 0; i < (p->pieces.count > 1 ? 2 : 1); ++i) p->slot[i] = g.pinned(i, p->pieces.slot_bytes);
            down(0);
            return true;
          },
          [&g, p, down, &script] {
            // In stream order: down 0, down 1, up 0, down 2, up 1, ...: a slot is free when it is filled
            // again.
            if (p->k == p->pieces.count) return true;
            const std::size_t slot = p->k % 2;
            if (p->phase == 0) {
              if (p->k + 1 < p->pieces.count) down(p->k + 1);
              p->phase = 1;
            }
            if (p->phase == 1) {
              if (!p->here[slot].complete()) return false;
              script.host = p->pieces.move(p->k, p->slot[slot]);
              p->phase = 2;
            }
            if (!script.host.done()) return false;
            p->pieces.up(p->k, p->slot[slot]);
            p->phase = 0;
            if (++p->k < p->pieces.count) return false;
            script.end.record(g.me.device, g.stream.get());
            return true;
          },
          [&g, &script] {
            g.copy_result(script);
            return true;
          }};
}

std::shared_ptr<Work::State> make_device_work(std::shared_ptr<HostDriven> group, std::shared_ptr<Script> script,
                                              Place place) {
  return std::make_shared<DeviceWork>(std::move(group), script, script, nullptr, place);
}

}  // namespace trireme::cuda
