// Retrieval: rankings of candidates by the scalar product of features, under the protocols in use, and their metrics.
// Functions of features alone, on any device, in f32 or f64; by blocks of rows: no matrix of all scores is kept.
#pragma once
#include "comm/communicator.h"

#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

// Items may share a row of `features` [rows, d]: equal captions are encoded once, and then tie to the bit.
struct Items {
  at::Tensor features;
  std::vector<std::int64_t> row;  // of each item; empty: item i has row i
  std::int64_t size() const { return row.empty() ? features.size(0) : std::int64_t(row.size()); }
};

using Matches = std::vector<std::pair<std::int64_t, std::int64_t>>;  // (query, candidate that belongs to it), any order

// i64 [queries] on the host: how many candidates come before the first that belongs to the query; best score first,
// equal scores by number. All candidates where none belongs to it, or where its score is not a number. Collective: a
// rank takes its blocks of queries, and all get the same bits on any number of ranks.
at::Tensor ranks_of(Communicator& comm, const Items& queries, const Items& candidates, Matches matches);

enum class Protocol {
  ours,           // distinct captions; an image finds any of its captions, a caption any of its images
  open_clip,      // get_clip_metrics of open_clip_train: image i and its first caption, alone; equal captions compete
  clip_benchmark  // zeroshot_retrieval of clip_benchmark: every caption of every image is a candidate of its own
};

Protocol protocol_named(const std::string& name);  // UsageError with the names

// What a protocol ranks: image i and the captions numbered by `captions_of`.
struct RetrievalTask {
  std::vector<std::string> texts;       // distinct, to be encoded
  std::vector<std::int64_t> candidate;  // the text of each candidate
  Matches matches;                      // (image, candidate)
  std::int64_t images = 0;
};

// captions[i]: those of image i.
RetrievalTask retrieval_task(Protocol protocol, std::span<const std::vector<std::string>> captions);

// image_to_text_r1 / _r5 / _r10 (clip_benchmark's text_retrieval_recall@k), text_to_image_... (its
// image_retrieval_...), and as expected of a random ranking chance_r1 / ..., text_to_image_chance_r1 / ... All are
// shares, 0 to 1. open_clip also has image_to_text_mean_rank, _median_rank and so on, counted from 1. images [n, d],
// texts [task.texts, d].
std::map<std::string, double> retrieval_metrics(Communicator& comm, Protocol protocol, const RetrievalTask& task,
                                                const at::Tensor& images, const at::Tensor& texts);

// Share of ranks below k.
double recall_at(const at::Tensor& ranks, std::int64_t k);

}  // namespace trireme
