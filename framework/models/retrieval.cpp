#include "framework/models/retrieval.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

namespace trireme {
namespace {

// Queries at a time: a block's scores stay below 2^25 values. The same on any number of ranks.
std::int64_t rows_of_block(std::int64_t candidates) {
  return std::clamp<std::int64_t>((std::int64_t(1) << 25) / std::max<std::int64_t>(1, candidates), 1, 1024);
}

at::Tensor indices(std::span<const std::int64_t> values, at::Device device) {
  return at::tensor(at::ArrayRef<std::int64_t>(values.data(), values.size()), at::kLong).to(device);
}

at::Tensor rows_at(const Items& items, std::int64_t first, std::int64_t n) {
  if (items.row.empty()) return items.features.narrow(0, first, n);
  return items.features.index_select(0, indices({items.row.data() + first, std::size_t(n)}, items.features.device()));
}

// scores [r, m]; matches of these rows: their row in the block, and the candidate.
at::Tensor ranks_of_block(const at::Tensor& scores, const at::Tensor& row, const at::Tensor& candidate) {
  const std::int64_t r = scores.size(0), m = scores.size(1);
  const at::Tensor own = scores.index({row, candidate});
  const at::Tensor best =
      at::full({r}, -std::numeric_limits<double>::infinity(), scores.options()).scatter_reduce(0, row, own, "amax");
  const at::Tensor number = at::where(own == best.index_select(0, row), candidate, m);
  const at::Tensor first = at::full({r}, m, candidate.options()).scatter_reduce(0, row, number, "amin").unsqueeze(1);
  const at::Tensor level = best.unsqueeze(1), column = at::arange(m, candidate.options()).unsqueeze(0);
  // What is not a number compares with nothing: it never counts as found.
  return (scores <= level).logical_not_().sum(1) + ((scores == level) & (column < first)).sum(1);
}

// Expected recall of a random ranking: the chance that one of k draws without replacement is one of h hits.
double chance(std::int64_t candidates, std::int64_t hits, std::int64_t k) {
  double miss = 1;
  for (std::int64_t i = 0; i < std::min(k, candidates); ++i)
    miss *= std::max<double>(0, double(candidates - hits - i)) / double(candidates - i);
  return 1 - miss;
}

// Mean over queries of the chance, by how many candidates belong to each.
double mean_chance(std::int64_t queries, std::int64_t candidates, const Matches& matches, std::int64_t k) {
  std::vector<std::int64_t> hits(std::size_t(queries), 0);
  for (const auto& [query, candidate] : matches) ++hits[std::size_t(query)];
  std::map<std::int64_t, std::int64_t> alike;  // queries by their number of hits
  for (const auto h : hits) ++alike[h];
  double sum = 0;
  for (const auto& [h, count] : alike) sum += double(count) * chance(candidates, h, k);
  return sum / double(queries);
}

void add_mean_ranks(std::map<std::string, double>& metrics, const std::string& direction, const at::Tensor& ranks) {
  const at::Tensor sorted = std::get<0>(ranks.sort());
  const std::int64_t n = ranks.size(0);
  const auto at_place = [&](std::int64_t i) { return double(sorted[i].item<std::int64_t>()); };
  metrics[direction + "_mean_rank"] = ranks.to(at::kDouble).mean().item<double>() + 1;
  metrics[direction + "_median_rank"] = std::floor((at_place((n - 1) / 2) + at_place(n / 2)) / 2) + 1;
}

Matches transposed(const Matches& matches) {
  Matches other;
  for (const auto& [query, candidate] : matches) other.emplace_back(candidate, query);
  return other;
}

}  // namespace

at::Tensor ranks_of(Communicator& comm, const Items& queries, const Items& candidates, Matches matches) {
  // In bf16, as an evaluation under autocast would have them, most scores of a block are equal.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const std::int64_t n = queries.size(), m = candidates.size(), block = rows_of_block(m);
  const at::Device device = queries.features.device();
  std::sort(matches.begin(), matches.end());
  const at::Tensor columns = candidates.features.t();
  const std::int64_t blocks = (n + block - 1) / block, part = (blocks + comm.size() - 1) / comm.size() * block;
  at::Tensor mine = at::zeros({part}, at::kLong);
  const std::int64_t first = std::min(n, part * comm.rank()), last = std::min(n, first + part);
  for (std::int64_t i = first; i < last; i += block) {
    const std::int64_t r = std::min(block, last - i);
    at::Tensor scores = at::matmul(rows_at(queries, i, r), columns);
    if (!candidates.row.empty()) scores = scores.index_select(1, indices(candidates.row, device));
    std::vector<std::int64_t> row, candidate;
    for (auto p = std::lower_bound(matches.begin(), matches.end(), Matches::value_type{i, 0});
         p != matches.end() && p->first < i + r; ++p) {
      row.push_back(p->first - i);
      candidate.push_back(p->second);
    }
    mine.narrow(0, i - first, r).copy_(ranks_of_block(scores, indices(row, device), indices(candidate, device)));
  }
  at::Tensor all = at::empty({part * comm.size()}, at::kLong);
  comm.all_gather(buffer_of(mine), buffer_of(all)).wait();
  return all.narrow(0, 0, n);
}

Protocol protocol_named(const std::string& name) {
  if (name == "ours") return Protocol::ours;
  if (name == "open_clip") return Protocol::open_clip;
  if (name == "clip_benchmark") return Protocol::clip_benchmark;
  throw UsageError("--protocol " + name, "no such protocol", "take ours, open_clip or clip_benchmark");
}

RetrievalTask retrieval_task(Protocol protocol, std::span<const std::vector<std::string>> captions) {
  RetrievalTask task;
  task.images = std::int64_t(captions.size());
  std::map<std::string, std::int64_t> text_of;
  std::set<std::pair<std::int64_t, std::int64_t>> seen;  // ours: an image may have a caption twice
  for (std::int64_t i = 0; i < task.images; ++i)
    for (const std::string& caption : captions[std::size_t(i)]) {
      const auto [text, fresh] = text_of.emplace(caption, std::int64_t(task.texts.size()));
      if (fresh) task.texts.push_back(caption);
      if (protocol == Protocol::ours) {
        if (fresh) task.candidate.push_back(text->second);
        if (seen.emplace(i, text->second).second) task.matches.emplace_back(i, text->second);
      } else {
        task.matches.emplace_back(i, std::int64_t(task.candidate.size()));
        task.candidate.push_back(text->second);
      }
      if (protocol == Protocol::open_clip) break;
    }
  return task;
}

std::map<std::string, double> retrieval_metrics(Communicator& comm, Protocol protocol, const RetrievalTask& task,
                                                const at::Tensor& images, const at::Tensor& texts) {
  const Items image_items{images, {}}, text_items{texts, task.candidate};
  const std::int64_t n = image_items.size(), m = text_items.size();
  const Matches found_by_text = transposed(task.matches);
  const at::Tensor to_text = ranks_of(comm, image_items, text_items, task.matches),
                   to_image = ranks_of(comm, text_items, image_items, found_by_text);
  std::map<std::string, double> metrics;
  for (const std::int64_t k : {1, 5, 10}) {
    const std::string r = "_r" + std::to_string(k);
    metrics["image_to_text" + r] = recall_at(to_text, k);
    metrics["text_to_image" + r] = recall_at(to_image, k);
    metrics["chance" + r] = mean_chance(n, m, task.matches, k);
    metrics["text_to_image_chance" + r] = mean_chance(m, n, found_by_text, k);
  }
  if (protocol == Protocol::open_clip) {
    add_mean_ranks(metrics, "image_to_text", to_text);
    add_mean_ranks(metrics, "text_to_image", to_image);
  }
  return metrics;
}

double recall_at(const at::Tensor& ranks, std::int64_t k) {
  return double((ranks < k).sum().item<std::int64_t>()) / double(ranks.size(0));
}

}  // namespace trireme
