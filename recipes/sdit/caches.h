// Caches over the blocks of a denoiser, the arms beside SDiT (reconstruction). One decision a forward, read by the host
// where it depends on data: so a batch holds one picture, with guidance both its halves. Before every forward step()
// says where the sampler stands; forget() before a new batch.
#pragma once
#include "comm/communicator.h"
#include "framework/models/dit/block_cache.h"
#include "framework/models/dit/prediction_cache.h"

#include <map>
#include <vector>

namespace trireme::sdit {

struct StepPlace {
  std::int64_t step = 0, steps = 0;
  double sigma = 1;
};

class StepCache : public BlockCache {
 public:
  virtual void forget() { computed_.clear(); }
  void step(const StepPlace& place) {
    place_ = place;
    computed_.push_back(true);
  }
  // Of every step so far: did what the cache could leave out run?
  const std::vector<bool>& computed() const { return computed_; }
  // The ranks that hold the tokens, or the halves of guidance, of a picture between them; null: this rank has all.
  void share(Communicator* ranks) { ranks_ = ranks; }

 protected:
  // mean |a - b| / mean |b| over those ranks. The host waits.
  double relative_change(const at::Tensor& a, const at::Tensor& b) const;
  StepPlace place_;
  std::vector<bool> computed_;

 private:
  Communicator* ranks_ = nullptr;
};

// TeaCache (arXiv 2411.19108): the summed polynomial of the relative change of the modulated input. While the sum is
// below the threshold, the image stream moves by the residual of the blocks that ran last.
class TeaCache : public StepCache {
 public:
  struct Rule {
    std::vector<double> polynomial;  // of degree 4, the highest power first
    double threshold = 0.25;
    std::int64_t retained = 1;  // steps at the start that run, as the last one does
  };
  explicit TeaCache(const Rule& rule) : rule_(rule) {}
  void forget() override;
  std::optional<BlockStreams> before_blocks(const BlockStreams& in,
                                            const std::function<at::Tensor()>& modulated) override;
  void after_blocks(const BlockStreams& in, const BlockStreams& first_out, const BlockStreams& out) override;

 private:
  Rule rule_;
  double sum_ = 0;
  at::Tensor modulated_, residual_;
};

// First-block cache (ParaAttention; diffusers): the blocks behind the first move both streams as they last did, where
// the first one's residual is near the one it had then. taylor > 0: as they would move by TaylorSeer's series.
class FirstBlockCache : public StepCache {
 public:
  struct Rule {
    double threshold = 0.1;
    std::int64_t warmup = 0, most_in_a_row = -1, taylor = 0;  // -1: no bound
  };
  explicit FirstBlockCache(const Rule& rule) : rule_(rule), image_(rule.taylor), text_(rule.taylor) {}
  void forget() override;
  std::optional<BlockStreams> after_first_block(const BlockStreams& in, const BlockStreams& out) override;
  void after_blocks(const BlockStreams& in, const BlockStreams& first_out, const BlockStreams& out) override;

 private:
  Rule rule_;
  std::int64_t in_a_row_ = 0;
  at::Tensor first_;  // its residual when the others last ran
  TaylorSeries image_, text_;
};

// TaylorSeer (arXiv 2503.06923) over what attention gives: computed in the first `warmup` steps and every `interval`th
// after the one that follows, predicted from differences in between.
class TaylorSeer : public StepCache {
 public:
  struct Rule {
    std::int64_t interval = 5, warmup = 3, order = 1;
  };
  explicit TaylorSeer(const Rule& rule) : rule_(rule) {}
  void forget() override;
  BlockStreams attention(std::int64_t layer, const std::function<BlockStreams()>& run) override;
  static bool computes(const Rule& rule, std::int64_t step);

 private:
  struct Layer {
    TaylorSeries image, text;
  };
  Rule rule_;
  std::map<std::int64_t, Layer> layers_;
};

// Pyramid attention broadcast (arXiv 2408.12588), of the self- or joint attention: within the range of timesteps what
// attention gave is used `every` times.
class AttentionBroadcast : public StepCache {
 public:
  struct Rule {
    std::int64_t every = 2;
    double low = 100, high = 800;  // timesteps are 1000 sigma, both bounds outside
  };
  explicit AttentionBroadcast(const Rule& rule) : rule_(rule) {}
  void forget() override;
  BlockStreams attention(std::int64_t layer, const std::function<BlockStreams()>& run) override;

 private:
  Rule rule_;
  std::map<std::int64_t, BlockStreams> layers_;
};

}  // namespace trireme::sdit
