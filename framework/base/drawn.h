// Weights drawn on any device, keyed by (seed, name), whatever the order in which a model makes them.
#pragma once
#include <cstdint>
#include <string_view>

#include <ATen/core/Tensor.h>

namespace trireme {

// Normal of that deviation; equal for one (seed, name) on one kind of device.
at::Tensor drawn_normal(at::IntArrayRef shape, double std, std::uint64_t seed, std::string_view name,
                        at::TensorOptions options);

}  // namespace trireme
