#include "framework/models/generate.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <algorithm>

#include <ATen/ATen.h>

namespace trireme {
namespace {

void check(const CausalLm& model, const std::vector<std::vector<std::int64_t>>& prompts) {
  for (const auto& p : prompts) {
    if (p.empty()) throw UsageError("prompt", "holds no token", "write some text");
    for (const auto id : p)
      if (id < 0 || id >= model.config().vocab)
        throw DataError("prompt",
                        "token " + std::to_string(id) + " is beyond the model's vocabulary of " +
                            std::to_string(model.config().vocab),
                        "the tokenizer does not belong to this model");
  }
}

}  // namespace

std::vector<std::vector<std::int64_t>> greedy(const CausalLm& model,
                                              const std::vector<std::vector<std::int64_t>>& prompts,
                                              const GreedyOptions& o) {
  check(model, prompts);
  std::vector<std::vector<std::int64_t>> next = prompts, made(prompts.size());
  std::size_t longest = 0;
  for (const auto& p : prompts) longest = std::max(longest, p.size());
  // It grows with the text: most samples end long before `most`.
  nn::KvCache cache =
      model.cache(std::int64_t(prompts.size()), std::int64_t(longest) + std::min<std::int64_t>(o.most, 64));
  const std::int64_t room = model.config().max_length;
  while (std::any_of(next.begin(), next.end(), [](const auto& ids) { return !ids.empty(); })) {
    TokenBatch batch;
    std::vector<std::int64_t> ids, last;
    for (std::size_t i = 0; i < next.size(); ++i) {
      const auto& n = next[i];
      nn::reserve(cache, cache.lengths[i] + std::int64_t(n.size()));
      ids.insert(ids.end(), n.begin(), n.end());
      batch.lengths.push_back(std::int64_t(n.size()));
      if (!n.empty()) last.push_back(std::int64_t(ids.size()) - 1);
    }
    batch.ids = to_device(at::tensor(ids, at::kLong), model.device());
    if (o.before_pass) o.before_pass(batch.lengths);
    const at::Tensor rows =
        model.hidden(batch, cache).index_select(0, to_device(at::tensor(last, at::kLong), model.device()));
    const at::Tensor best = model.logits(rows).argmax(1).to(at::kCPU);
    const auto* id = best.const_data_ptr<std::int64_t>();
    for (std::size_t i = 0; i < next.size(); ++i) {
      if (next[i].empty()) continue;
      next[i] = {*id++};
      const bool ended = std::find(o.ends.begin(), o.ends.end(), next[i][0]) != o.ends.end();
      if (!ended) made[i].push_back(next[i][0]);
      if (ended || std::int64_t(made[i].size()) >= o.most || (room > 0 && cache.lengths[i] >= room)) next[i].clear();
    }
  }
  return made;
}

}  // namespace trireme
