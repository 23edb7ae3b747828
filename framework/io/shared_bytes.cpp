#include "framework/io/shared_bytes.h"

#include <cstdint>
#include <new>

#include <sys/mman.h>

namespace trireme {
namespace {

constexpr std::size_t huge = 2 << 20;

std::byte* rounded(std::byte* p, std::size_t to) {
  return p + (to - reinterpret_cast<std::uintptr_t>(p) % to) % to;
}

std::shared_ptr<std::byte> map(std::size_t size) {
  const std::size_t whole = size + huge;
  if (whole < size) throw std::bad_alloc();
  void* begin = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (begin == MAP_FAILED) throw std::bad_alloc();
  std::byte* data = rounded(static_cast<std::byte*>(begin), huge);
  madvise(data, size, MADV_HUGEPAGE);
  return {data, [begin, whole](std::byte*) { munmap(begin, whole); }};
}

}  // namespace

SharedBytes::SharedBytes(std::size_t size) : size_(size) {
  if (size >= 4 * huge)
    memory_ = map(size);
  else if (size > 0)
    memory_ = {new std::byte[size], std::default_delete<std::byte[]>()};
}

void populate(std::byte* begin, std::byte* end) {
#ifdef MADV_POPULATE_WRITE
  std::byte* first = rounded(begin, huge);
  if (first < end) madvise(first, std::size_t(end - first), MADV_POPULATE_WRITE);
#endif
}

}  // namespace trireme
