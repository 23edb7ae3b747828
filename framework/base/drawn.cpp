#include "framework/base/drawn.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

namespace trireme {
namespace {

at::Generator generator(at::Device device, std::uint64_t seed) {
  at::Generator g =
      device.is_cpu() ? at::detail::createCPUGenerator()
                      : at::globalContext().getAcceleratorHooksInterface(device.type()).getNewGenerator(device.index());
  g.set_current_seed(seed);
  return g;
}

std::uint64_t hash(std::uint64_t seed, std::string_view name) {
  std::uint64_t h = 0xCBF29CE484222325 ^ (seed * 0x9E3779B97F4A7C15);
  for (const unsigned char c : name) h = (h ^ c) * 0x100000001B3;
  return h;
}

}  // namespace

at::Tensor drawn_normal(at::IntArrayRef shape, double std, std::uint64_t seed, std::string_view name,
                        at::TensorOptions options) {
  return at::empty(shape, options).normal_(0, std, generator(options.device(), hash(seed, name)));
}

}  // namespace trireme
