// How two ranks of one job know each other on a TCP connection without showing the job's key, also to whoever holds
// the port of a rank that has ended. Each proves that it knows the key with a keyed hash over random numbers of both
// sides, the listener first:
//   asker -> listener   hello      "trw2", the asker's number, the asker's rank, the listener's rank
//   listener -> asker   challenge  "trw2", the listener's number, the listener's proof
//   asker -> listener   question   the asker's proof, the question (one byte)
// A proof is SipHash-2-4 of who proves, both numbers, both ranks and the question: none fits another connection,
// another pair of ranks, the other direction or another question.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace trireme {

constexpr std::size_t job_key_bytes = 16, nonce_bytes = 16, proof_bytes = 8;
constexpr std::string_view wire_magic = "trw2";

// SipHash-2-4 (Aumasson and Bernstein, 2012) under a key of 16 bytes.
std::uint64_t siphash(std::string_view key, std::string_view text);

// One side's view of one connection. The functions that write return what is to be sent; those that read want exactly
// so many bytes and say whether they are right: if not, nothing more may be sent.
class Handshake {
 public:
  static constexpr std::size_t hello_bytes = wire_magic.size() + nonce_bytes + 8;
  static constexpr std::size_t challenge_bytes = wire_magic.size() + nonce_bytes + proof_bytes;
  static constexpr std::size_t question_bytes = proof_bytes + 1;

  // The asker.
  std::string hello(std::uint32_t from, std::uint32_t to);  // empty: the system has no randomness
  bool read_challenge(std::string_view key, std::string_view bytes);
  std::string question(std::string_view key, char what) const;

  // The listener.
  bool read_hello(std::string_view bytes);
  std::uint32_t from() const { return from_; }
  std::uint32_t to() const { return to_; }
  std::string challenge(std::string_view key);  // empty: the system has no randomness
  std::optional<char> read_question(std::string_view key, std::string_view bytes) const;

 private:
  std::string proof(std::string_view key, char who, char question) const;

  std::string asker_, listener_;  // random numbers
  std::uint32_t from_ = 0, to_ = 0;
};

}  // namespace trireme
