// Copies for data that another core reads next.
#pragma once
#include <cstddef>

namespace trireme {

// As memcpy; equal pointers are legal. The C library copies from 2 KiB on by `rep movsb`, which on some
// processors runs at a third of the speed of vector stores, depending on the two addresses [measured: AMD
// EPYC, glibc 2.36].
void copy_bytes(void* to, const void* from, std::size_t bytes);

// The same for a part of a result of `whole` bytes. A result larger than the caches is stored past them: its lines need
// not be read first, and it does not drive out what the ranks are working on.
void copy_result(void* to, const void* from, std::size_t bytes, std::size_t whole);

}  // namespace trireme
