// The image tokens that a forward computes, and the keys and values of the others, kept from earlier forwards (as RAS,
// arXiv 2502.10389). All text runs in every forward.
#pragma once
#include "framework/models/dit/hooks.h"

#include <map>

namespace trireme {

// Used by one forward at a time. Memory: 2 * batch * tokens * width * layers elements of the model's type.
class TokenSet {
 public:
  enum class Keys : std::uint8_t {
    post_rope,  // cached as they were rotated
    pre_rope,   // normed, and rotated with the tables of each use: for tables that change from step to step
  };
  explicit TokenSet(Keys keys = Keys::post_rope);
  TokenSet(const TokenSet&) = delete;
  TokenSet& operator=(const TokenSet&) = delete;

  // The forwards to come compute every token and fill the cache.
  void dense() { sparse_ = false; }
  // They compute the rows of `active` alone: i64 [B, K], ascending in each row, on the model's device. In a batch of n
  // B (guidance: conditional, then unconditional) row i uses active[i % B]. The velocity of other tokens is 0.
  // UsageError in the forward: no dense forward of this batch and size came before.
  void choose(const at::Tensor& active);
  bool is_dense() const { return !sparse_; }
  // Undefined where all are computed. Its memory is that of the next choice of this size.
  at::Tensor active() const { return sparse_ ? active_ : at::Tensor(); }
  Keys keys() const { return keys_; }
  // Multiplies cached post_rope image keys, pair by pair: f32 [tokens, head_dim / 2] or [head_dim / 2]. For
  // temperatures in the tables that changed since: sqrt(tau_old / tau_new).
  void rescale_keys(const at::Tensor& factor);
  void clear();                // forgets the cache
  std::int64_t bytes() const;  // of the cache
  // Changes whenever its tensors move: what was recorded with another number reads memory that is gone. Dense steps and
  // choices of one size keep it.
  std::int64_t memory() const { return memory_; }

  // For models. x [B, N, ...] -> [B, K, ...]; a table [N, .] -> [B, K, .]. Dense: as it is.
  at::Tensor gather(const at::Tensor& x) const;
  RopeTable gather(const RopeTable& table, std::int64_t batch) const;
  // [B, K, ...] -> [B, tokens, ...], zeros elsewhere. Dense: as it is.
  at::Tensor scatter(const at::Tensor& x, std::int64_t tokens) const;
  // Keys and values of all tokens of a layer. [B, M text + (K or N) image, H, d] come in (text first or last), and
  // [B, M + N, H, d] go out: the cached image tokens with these in their places. It is the cache itself: not to be
  // written.
  struct KeysValues {
    at::Tensor k, v;
  };
  KeysValues update(std::int64_t layer, const at::Tensor& k, const at::Tensor& v, std::int64_t text, bool text_first);

 private:
  struct Layer {
    KeysValues all;
    std::int64_t image_begin = 0, text = 0;
  };
  at::Tensor rows(std::int64_t batch) const;  // active for that batch
  void moved();
  Keys keys_;
  bool sparse_ = false;
  at::Tensor active_;  // of the last choice
  std::int64_t memory_ = 0;
  std::map<std::int64_t, Layer> cache_;
};

}  // namespace trireme
