#include "bench/comm_device.h"

#include "comm/device.h"
#include "comm/error.h"
#include "framework/placement.h"

#include <algorithm>
#include <sstream>

namespace trireme::bench {
namespace {

using Clock = std::chrono::steady_clock;

MakeBareNccl& bare_nccl() {
  static MakeBareNccl make = nullptr;
  return make;
}

Placement own_gpu(Communicator& world) {
  TrainConfig config;
  config.device = "cuda";
  config.communicator = "nccl";
  return place_rank(world, config);
}

class DeviceRank {
 public:
  DeviceRank(Communicator& world, bool bare)
      : world_(world),
        placement_(own_gpu(world)),
        stream_(device_runtime()->stream()),
        place_{placement_.device.index(), stream_.get()} {
    if (bare) {
      bare_ = bare_nccl()(world);
    } else {
      ours_ = for_device(world.split(0, world.rank()), placement_, {});
    }
  }

  // Two calls first that are not timed.
  nlohmann::json measure(int calls, const std::string& op, std::size_t bytes) {
    Exchange x = exchange_of(op, bytes, world_.size());
    x.in = get(in_, x.in_count);
    x.out = get(out_, x.out_count);
    fill_device(x);
    std::vector<double> us(std::size_t(calls + 2));
    world_.barrier().wait();
    const std::uint64_t sent_before = link_bytes();
    for (double& t : us) {
      const auto begin = Clock::now();
      if (bare_) {
        bare_(x, place_);
      } else {
        start(*ours_, x, place_).wait_host(std::chrono::minutes(10));
      }
      t = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
    }
    world_.barrier().wait();
    double sent = double(link_bytes() - sent_before) / double(us.size() * std::size_t(world_.size()));
    std::int64_t wrong = op == "barrier" ? 0 : wrong_on_device(x, calls + 2);
    us.erase(us.begin(), us.begin() + 2);
    world_.all_reduce({us.data(), us.size(), DType::f64}, Op::max).wait();
    world_.all_reduce({&wrong, 1, DType::i64}, Op::sum).wait();
    world_.all_reduce({&sent, 1, DType::f64}, Op::sum).wait();
    return {{"us", us}, {"wrong", wrong}, {"transport", "nccl"}, {"sent", sent}};
  }

 private:
  struct Memory {
    std::shared_ptr<void> data;
    std::size_t size = 0;
  };
  static float* get(Memory& m, std::size_t floats) {
    if (floats > m.size) m = {device_runtime()->memory(floats * sizeof(float)), floats};
    return static_cast<float*>(m.data.get());
  }

  void fill_device(const Exchange& x) {
    std::vector<float> in(x.in_count), out(x.out_count);
    fill({x.op, in.data(), out.data(), in.size(), out.size()}, world_.rank());
    if (!in.empty()) device_runtime()->copy(x.in, in.data(), in.size() * sizeof(float), place_);
    if (!out.empty()) device_runtime()->copy(x.out, out.data(), out.size() * sizeof(float), place_);
  }

  // Of a large result a part: a host takes longer to work it out than a GPU to get it.
  std::int64_t wrong_on_device(const Exchange& x, int calls) {
    constexpr std::size_t looked_at = 1 << 20;
    std::vector<float> out(x.out_count);
    device_runtime()->copy(out.data(), x.out, out.size() * sizeof(float), place_);
    const std::size_t stride = std::max<std::size_t>(1, out.size() / looked_at) | 1;
    return count_wrong({x.op, nullptr, out.data(), x.in_count, out.size()}, calls, world_, stride);
  }

  Communicator& world_;
  const Placement placement_;
  const std::shared_ptr<void> stream_;
  const Place place_;
  std::unique_ptr<Communicator> ours_;
  BareCall bare_;
  Memory in_, out_;
};

}  // namespace

void set_bare_nccl(MakeBareNccl make) { bare_nccl() = make; }

void serve_comm_on_device(const Options& o, Communicator& world) {
  DeviceRank rank(world, o.arm == "nccl");
  Server server(o.serve, world.rank());
  while (const auto command = server.command()) {
    std::istringstream in(*command);
    int calls = 0;
    std::size_t bytes = 0;
    std::string op;
    in >> calls >> op >> bytes;
    server.reply(rank.measure(calls, op, bytes));
  }
}

}  // namespace trireme::bench
