// CRC-32C (Castagnoli), as in iSCSI and TensorBoard records. Hardware instruction where the CPU has it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace trireme {

std::uint32_t crc32c(const void* data, std::size_t bytes, std::uint32_t seed = 0);

}  // namespace trireme
