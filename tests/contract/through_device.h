// Runs checks that know host buffers on device memory: every collective gets copies of its buffers on the
// device, overlapping where they overlap, and results are copied back when the Work is waited for.
#pragma once
#include "comm/engine/arguments.h"
#include "comm/device.h"
#include "comm/error.h"

#include <algorithm>
#include <mutex>
#include <optional>

#include <gtest/gtest.h>

namespace trireme::test {

// One allocation, so that peers map it once. Freed memory is used again when all of it is free.
class DeviceArena {
 public:
  static DeviceArena& instance() {
    static auto* arena = new DeviceArena;
    return *arena;
  }
  // As `like` modulo 16, so that unaligned buffers stay unaligned.
  std::shared_ptr<std::byte> take(std::size_t bytes, const void* like) {
    const std::lock_guard lock(mutex_);
    const std::size_t odd = reinterpret_cast<std::uintptr_t>(like) % 16;
    const std::size_t begin = (used_ + 255) / 256 * 256 + odd;
    if (begin + bytes > size) throw Error(ExitCode::bug, "test", "the device arena is full");
    used_ = begin + bytes;
    ++live_;
    return {static_cast<std::byte*>(memory_.get()) + begin, [this](std::byte*) {
              const std::lock_guard free(mutex_);
              if (--live_ == 0) used_ = 0;
            }};
  }

 private:
  static constexpr std::size_t size = 256u << 20;
  std::shared_ptr<void> memory_ = device_runtime()->memory(size);
  std::mutex mutex_;  // a then() may run on another thread
  std::size_t used_ = 0;
  int live_ = 0;
};

class ThroughDevice final : public Communicator {
 public:
  explicit ThroughDevice(Communicator& inner) : inner_(inner) {
    static const bool once = [] {
      set_stream_scope([](Place place, const std::function<void()>& f) {
        struct Restore {
          void* before;
          ~Restore() { current_stream() = before; }
        } restore{std::exchange(current_stream(), place.stream)};
        f();
      });
      return true;
    }();
    static_cast<void>(once);
  }
  explicit ThroughDevice(std::unique_ptr<Communicator> inner) : ThroughDevice(*inner) { owned_ = std::move(inner); }

  Communicator& inner() { return inner_; }
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  Work all_reduce(Buffer inout, Op op) override {
    auto call = begin({{inout.data, inout.bytes()}}, inout);
    return finish(call, inner_.all_reduce(call->on(inout), op));
  }
  Work reduce_scatter(ConstBuffer in, Buffer out, Op op) override {
    auto call = begin({{in.data, in.bytes()}, {out.data, out.bytes()}}, out);
    return finish(call, inner_.reduce_scatter(call->on(in), call->on(out), op));
  }
  Work all_gather(ConstBuffer in, Buffer out) override {
    auto call = begin({{in.data, in.bytes()}, {out.data, out.bytes()}}, out);
    return finish(call, inner_.all_gather(call->on(in), call->on(out)));
  }
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override {
    auto call = begin({{in.data, in.bytes()}, {out.data, out.bytes()}}, out);
    return finish(call, inner_.all_to_all(call->on(in), send, call->on(out), recv));
  }
  Work broadcast(Buffer inout, int root) override {
    auto call = begin({{inout.data, inout.bytes()}}, inout);
    return finish(call, inner_.broadcast(call->on(inout), root));
  }
  // Behind it, dropped results are there too.
  Work barrier() override {
    auto call = begin({}, {});
    {
      const std::lock_guard lock(mutex_);
      call->before.swap(dropped_);
    }
    return finish(call, inner_.barrier());
  }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<ThroughDevice>(inner_.split(color, key));
  }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return inner_.allocate(bytes); }
  bool capturable() const override { return inner_.capturable(); }
  void abort(int code, std::string_view why) noexcept override { inner_.abort(code, why); }
  std::string_view backend() const override { return inner_.backend(); }

 private:
  // The stream of "the tensor library"; inside a then() it is the communicator's.
  static void*& current_stream() {
    static const auto own = device_runtime()->stream();
    thread_local void* stream = own.get();
    return stream;
  }
  static Place here() { return {device_runtime()->current(), current_stream()}; }

  struct Range {
    const void* data;
    std::size_t bytes;
  };
  struct Call {
    std::vector<Range> host;
    std::vector<std::shared_ptr<std::byte>> device;
    Buffer result;
    Place place = here();  // whose stream a wait() makes wait
    bool copied = false;
    std::vector<std::shared_ptr<Call>> before;

    template <class B>
    B on(B buffer) const {
      if (buffer.place.host()) buffer.place = here();
      for (std::size_t i = 0; i < host.size(); ++i)
        if (buffer.data >= host[i].data &&
            (buffer.data == host[i].data || buffer.data < at(host[i].data, host[i].bytes))) {
          buffer.data = device[i].get() + (static_cast<const std::byte*>(buffer.data) - at(host[i].data, 0));
          break;
        }
      return buffer;
    }
    // In a then() the communicator's stream is the one in order.
    void copy_back(std::optional<Place> where = {}) {
      for (auto& call : before) call->copy_back(where);
      before.clear();
      if (std::exchange(copied, true) || result.bytes() == 0) return;
      device_runtime()->copy(result.data, on(result).data, result.bytes(), where.value_or(place));
      device.clear();
    }
  };

  std::shared_ptr<Call> begin(std::vector<Range> ranges, Buffer result) {
    auto call = std::make_shared<Call>();
    call->result = result;
    if (ranges.size() == 2 && overlap(ranges[0].data, ranges[0].bytes, ranges[1].data, ranges[1].bytes)) {
      const auto* first = std::min(ranges[0].data, ranges[1].data);
      const auto* last = std::max(at(ranges[0].data, ranges[0].bytes), at(ranges[1].data, ranges[1].bytes));
      ranges = {{first, static_cast<std::size_t>(last - at(first, 0))}};
    }
    for (const Range& range : ranges) {
      if (!range.data) continue;
      call->host.push_back(range);
      call->device.push_back(DeviceArena::instance().take(range.bytes, range.data));
      if (range.bytes) device_runtime()->copy(call->device.back().get(), range.data, range.bytes, here());
    }
    return call;
  }
  Work finish(const std::shared_ptr<Call>& call, Work inner) {
    const std::lock_guard lock(mutex_);
    if (call->result.bytes() > 0) dropped_.push_back(call);
    return Work(std::make_shared<State>(std::move(inner), call));
  }

  struct State final : Work::State {
    State(Work i, std::shared_ptr<Call> c) : inner(std::move(i)), call(std::move(c)) {}
    bool done() override {
      if (!inner.done()) return false;
      call->copy_back();
      return true;
    }
    bool settled() override { return inner.settled(); }
    void wait() override {
      inner.wait();
      call->copy_back();
    }
    bool wait_host(std::chrono::milliseconds timeout) override {
      if (inner.state() && !inner.state()->wait_host(timeout)) return false;
      call->copy_back();
      return true;
    }
    std::shared_ptr<Work::State> then(std::function<Work()> next) override {
      // In the communicator's order, so the results are there: on its stream.
      auto both = std::make_shared<Call>();
      both->before = {call};
      Work after = inner.then([c = call, both, next = std::move(next)] {
        c->copy_back(here());
        Work work = next();
        if (auto* state = dynamic_cast<State*>(work.state().get())) both->before.push_back(state->call);
        return work;
      });
      return std::make_shared<State>(std::move(after), both);
    }
    Work inner;
    std::shared_ptr<Call> call;
  };

  std::unique_ptr<Communicator> owned_;
  Communicator& inner_;
  std::mutex mutex_;
  std::vector<std::shared_ptr<Call>> dropped_;
};

}  // namespace trireme::test
