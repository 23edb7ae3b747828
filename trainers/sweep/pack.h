// The samples of several jobs as one flat batch of tokens, and each job's loss of it.
#pragma once
#include "data/text/chat.h"
#include "framework/adapter_step.h"

#include <cstdint>
#include <span>
#include <vector>

namespace trireme::sweep {

// A pair of preference training (DPO, Rafailov et al. 2023) with what the backbone alone says of it.
struct ReferencedPair {
  const Pair* pair = nullptr;
  double chosen = 0, rejected = 0;  // log probabilities of the reference
};

class Pack {
 public:
  // length > 0: examples are made that long by ids behind their end, which no earlier one sees and which count nowhere,
  // so that packs of the same jobs have the same shape.
  explicit Pack(std::int64_t length = 0) : length_(length) {}
  // Jobs in the order of their slots. step: the job's own, by which its dropout differs from step to step. Rows count
  // from the job's first, so a mask is the same whoever shares the pack: job_row is how many of the step's rows were in
  // packs before this one.
  void begin_job(std::int64_t slot, std::int64_t step, std::int64_t job_row = 0);
  void add(const Example& example);
  void add(const ReferencedPair& pair);

  std::size_t jobs() const { return rows_.size(); }
  bool empty() const { return ids_.empty(); }
  std::int64_t size() const { return std::int64_t(ids_.size()); }             // tokens
  std::int64_t tokens_of(std::size_t job) const { return own_tokens_[job]; }  // without padding
  const std::vector<nn::SlotRows>& rows() const { return rows_; }
  TokenBatch tokens(at::Device device) const;
  at::Tensor labels(at::Device device) const;  // i64 [T]: the next id where it counts, else ignored_label

  AdapterBatch batch(at::Device device) const;  // of examples, not of pairs

  // Sums over the job's share of `token_losses` [T]: of SFT the counted tokens' losses, of DPO the pairs'
  // -log sigmoid(beta ((lw - rw) - (ll - rl))); on the graph. count: how many tokens or pairs that is.
  at::Tensor loss_sum(std::size_t job, const at::Tensor& token_losses, double beta) const;
  std::int64_t count(std::size_t job) const { return counts_[job]; }
  // [samples]: log probability of what counts in each.
  at::Tensor log_probabilities(const at::Tensor& token_losses) const;

 private:
  std::int64_t length_;
  std::vector<std::int64_t> ids_, labels_, lengths_, counts_, own_tokens_;
  std::vector<std::int64_t> first_sample_;  // of each job
  std::vector<nn::SlotRows> rows_;
  std::vector<double> reference_margins_;  // of each pair, in order
  std::vector<std::int64_t> first_pair_;
  bool pairs_ = false;
};

}  // namespace trireme::sweep
