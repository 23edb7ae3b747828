#include "comm/watchdog/handshake.h"

#include <bit>
#include <cstring>

#include <sys/random.h>

namespace trireme {
namespace {

constexpr char asks = 'A', listens = 'L';

template <class T>
T number_at(std::string_view s, std::size_t at) {
  T v = 0;
  std::memcpy(&v, s.data() + at, sizeof v);
  return v;
}
template <class T>
void put(std::string& s, T v) {
  s.append(reinterpret_cast<const char*>(&v), sizeof v);
}

std::string random_number() {
  std::string s(nonce_bytes, '\0');
  if (getrandom(s.data(), s.size(), 0) != static_cast<ssize_t>(s.size())) s.clear();
  return s;
}

// In a time that does not tell where they differ.
bool same(std::string_view a, std::string_view b) {
  unsigned char difference = a.size() == b.size() ? 0 : 1;
  for (std::size_t i = 0; i < b.size() && i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

}  // namespace

std::uint64_t siphash(std::string_view key, std::string_view text) {
  const auto k0 = number_at<std::uint64_t>(key, 0), k1 = number_at<std::uint64_t>(key, 8);
  std::uint64_t v0 = k0 ^ 0x736f6d6570736575, v1 = k1 ^ 0x646f72616e646f6d, v2 = k0 ^ 0x6c7967656e657261,
                v3 = k1 ^ 0x7465646279746573;
  const auto rounds = [&](int n) {
    while (n-- > 0) {
      v0 += v1, v1 = std::rotl(v1, 13) ^ v0, v0 = std::rotl(v0, 32);
      v2 += v3, v3 = std::rotl(v3, 16) ^ v2;
      v0 += v3, v3 = std::rotl(v3, 21) ^ v0;
      v2 += v1, v1 = std::rotl(v1, 17) ^ v2, v2 = std::rotl(v2, 32);
    }
  };
  const auto word = [&](std::uint64_t w) {
    v3 ^= w;
    rounds(2);
    v0 ^= w;
  };
  std::size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) word(number_at<std::uint64_t>(text, i));
  std::uint64_t last = std::uint64_t{text.size()} << 56;
  if (i < text.size()) std::memcpy(&last, text.data() + i, text.size() - i);
  word(last);
  v2 ^= 0xff;
  rounds(4);
  return v0 ^ v1 ^ v2 ^ v3;
}

std::string Handshake::proof(std::string_view key, char who, char question) const {
  std::string text{who, question};
  text += asker_ + listener_;
  put(text, from_);
  put(text, to_);
  std::string p;
  put(p, siphash(key, text));
  return p;
}

std::string Handshake::hello(std::uint32_t from, std::uint32_t to) {
  asker_ = random_number();
  if (asker_.empty()) return {};
  from_ = from;
  to_ = to;
  std::string s = std::string(wire_magic) + asker_;
  put(s, from);
  put(s, to);
  return s;
}

bool Handshake::read_hello(std::string_view s) {
  if (s.size() != hello_bytes || !s.starts_with(wire_magic)) return false;
  asker_ = s.substr(wire_magic.size(), nonce_bytes);
  from_ = number_at<std::uint32_t>(s, wire_magic.size() + nonce_bytes);
  to_ = number_at<std::uint32_t>(s, wire_magic.size() + nonce_bytes + 4);
  return true;
}

std::string Handshake::challenge(std::string_view key) {
  listener_ = random_number();
  return listener_.empty() ? std::string() : std::string(wire_magic) + listener_ + proof(key, listens, 0);
}

bool Handshake::read_challenge(std::string_view key, std::string_view s) {
  if (s.size() != challenge_bytes || !s.starts_with(wire_magic)) return false;
  listener_ = s.substr(wire_magic.size(), nonce_bytes);
  return same(s.substr(wire_magic.size() + nonce_bytes), proof(key, listens, 0));
}

std::string Handshake::question(std::string_view key, char what) const { return proof(key, asks, what) + what; }

std::optional<char> Handshake::read_question(std::string_view key, std::string_view s) const {
  if (s.size() != question_bytes || !same(s.substr(0, proof_bytes), proof(key, asks, s.back()))) return {};
  return s.back();
}

}  // namespace trireme
