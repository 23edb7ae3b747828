// The host's part of Bounded on a device.
#pragma once
#include "compression/codecs/bounded.h"

namespace trireme {

// Throws UsageError for a chunk whose values may not fit the 32 bits in which a header counts their bytes.
void check_size(std::size_t n, std::size_t dim, std::size_t stride);

void encode_on_device(const BoundedOptions& options, std::span<const TableChunk> chunks, const Buffer& out,
                      const Buffer& sizes, const Buffer& scratch, std::span<const CodePart> parts);
void decode_on_device(const BoundedOptions& options, std::span<const CodedChunk> chunks, Place place,
                      std::uint32_t* status, const Buffer& scratch);

}  // namespace trireme
