// Writing bytes and bits, and reading those of others: what is beyond the end throws.
#pragma once
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace trireme::coding {

using Bytes = std::vector<std::uint8_t>;

// Thrown by every decoder of this folder; the codec says whose it is (CommError).
struct BadStream {
  std::string what;
};
[[noreturn]] inline void bad_stream(std::string_view what) { throw BadStream{std::string(what)}; }

template <class T>
requires std::is_arithmetic_v<T>
void put(Bytes& out, T value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof value);
  std::memcpy(out.data() + at, &value, sizeof value);
}
inline void put(Bytes& out, std::span<const std::uint8_t> more) { out.insert(out.end(), more.begin(), more.end()); }

// Seven bits a byte, the lowest first; the eighth: more follow.
inline void put_number(Bytes& out, std::uint32_t value) {
  for (; value >= 128; value >>= 7) out.push_back(static_cast<std::uint8_t>(value | 128));
  out.push_back(static_cast<std::uint8_t>(value));
}

// Appends bits to bytes, the lowest first.
class BitWriter {
 public:
  explicit BitWriter(Bytes& out) : out_(out) {}
  void write(std::uint32_t value, std::uint32_t bits) {  // value < 2^bits
    word_ |= static_cast<std::uint64_t>(value) << filled_;
    filled_ += bits;
    if (filled_ < 32) return;
    put(out_, static_cast<std::uint32_t>(word_));
    word_ >>= 32;
    filled_ -= 32;
  }
  void finish() {
    for (std::uint32_t done = 0; done < filled_; done += 8, word_ >>= 8)
      out_.push_back(static_cast<std::uint8_t>(word_));
    word_ = filled_ = 0;
  }

 private:
  Bytes& out_;
  std::uint64_t word_ = 0;
  std::uint32_t filled_ = 0;
};

class Reader {
 public:
  explicit Reader(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  std::size_t left() const { return bytes_.size(); }
  std::span<const std::uint8_t> take(std::size_t n) {
    if (n > bytes_.size()) bad_stream("a part ends too early");
    const auto part = bytes_.first(n);
    bytes_ = bytes_.subspan(n);
    return part;
  }
  std::span<const std::uint8_t> rest() { return take(left()); }
  template <class T>
  T get() {
    T value;
    std::memcpy(&value, take(sizeof value).data(), sizeof value);
    return value;
  }
  std::uint32_t number() {
    std::uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
      const std::uint8_t byte = get<std::uint8_t>();
      value |= static_cast<std::uint64_t>(byte & 127) << shift;
      if (!(byte & 128)) break;
      if (shift == 28) bad_stream("a number is too large");
    }
    if (value >> 32) bad_stream("a number is too large");
    return static_cast<std::uint32_t>(value);
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

inline std::size_t bytes_of_bits(std::uint64_t bits) { return static_cast<std::size_t>((bits + 7) / 8); }

// Reads what is known to hold enough bits: check bytes_of_bits() first.
class BitReader {
 public:
  explicit BitReader(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  std::uint32_t read(std::uint32_t bits) {
    while (filled_ < bits) {
      word_ |= static_cast<std::uint64_t>(at_ < bytes_.size() ? bytes_[at_] : 0) << filled_;
      ++at_;
      filled_ += 8;
    }
    const auto value = static_cast<std::uint32_t>(word_ & ((std::uint64_t{1} << bits) - 1));
    word_ >>= bits;
    filled_ -= bits;
    return value;
  }

 private:
  std::span<const std::uint8_t> bytes_;
  std::uint64_t word_ = 0;
  std::size_t at_ = 0;
  std::uint32_t filled_ = 0;
};

}  // namespace trireme::coding
