// Host memory that several hold: a checkpoint's tensor, or the file it lies in.
#pragma once
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>

namespace trireme {

class SharedBytes {
 public:
  SharedBytes() = default;
  // Not cleared. Much of it comes from the system as it is touched, in huge pages where there are any, and goes back
  // with the last holder. Throws std::bad_alloc.
  explicit SharedBytes(std::size_t size);
  SharedBytes(const void* from, std::size_t size) : SharedBytes(size) {
    if (size) std::memcpy(data(), from, size);
  }

  std::byte* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }
  std::span<std::byte> span() const { return {data(), size_}; }
  // Bytes [begin, begin + size) of it, which keep all of it.
  SharedBytes part(std::size_t begin, std::size_t size) const {
    SharedBytes p;
    p.memory_ = std::shared_ptr<std::byte>(memory_, memory_.get() + begin), p.size_ = size;
    return p;
  }

 private:
  std::shared_ptr<std::byte> memory_;
  std::size_t size_ = 0;
};

// Takes the pages of [begin, end) from the system now; where it cannot, they come when they are touched.
void populate(std::byte* begin, std::byte* end);

}  // namespace trireme
