#include "data/image_text/sources.h"

#include "comm/error.h"
#include "data/image_text/content_hash.h"
#include "data/image_text/split.h"

#include <algorithm>
#include <map>

namespace trireme {

JoinedPairs::JoinedPairs(std::vector<PairsSource> sources) : sources_(std::move(sources)) {
  ContentHash all;
  for (const auto& s : sources_) {
    first_.push_back(size_);
    size_ += s.pairs->size();
    has_test_ |= s.test;
    path_ += (path_.empty() ? "" : ", ") + s.pairs->path();
    all.add(s.pairs->identity().data(), s.pairs->identity().size());
    all.add(&s.weight, sizeof s.weight);
    all.add(&s.test, sizeof s.test);
  }
  identity_ = all.hex();
  join_classes();
  join_captions();
}

JoinedPairs::Place JoinedPairs::place(std::int64_t id) const {
  if (id < 0 || id >= size_) throw DataError(path_, "have no pair " + std::to_string(id));
  const auto source = std::size_t(std::upper_bound(first_.begin(), first_.end(), id) - first_.begin()) - 1;
  return {source, id - first_[source]};
}

void JoinedPairs::join_classes() {
  std::map<std::string, std::int64_t> known;
  for (const auto& s : sources_) {
    auto& ours = class_.emplace_back();
    for (const auto& name : s.pairs->classes()) {
      const auto [at, fresh] = known.emplace(name, std::int64_t(classes_.size()));
      if (fresh) classes_.push_back(name);
      ours.push_back(at->second);
    }
  }
}

// Captions of different sources have different numbers; those that evaluation ranks must not occur twice.
void JoinedPairs::join_captions() {
  std::unordered_map<std::string, std::int64_t> numbers;
  std::unordered_map<std::int64_t, std::int64_t> same;
  for (const auto id : held_out_ids()) {
    const auto own = caption_id(id);
    if (same.contains(own)) continue;
    same.emplace(own, numbers.emplace(caption(id), own).first->second);
  }
  std::erase_if(same, [](const auto& pair) { return pair.first == pair.second; });
  same_caption_ = std::move(same);
}

std::string JoinedPairs::caption(std::int64_t id) const {
  const Place p = place(id);
  return sources_[p.source].pairs->caption(p.id);
}

std::int64_t JoinedPairs::caption_id(std::int64_t id) const {
  const Place p = place(id);
  const std::int64_t own = first_[p.source] + sources_[p.source].pairs->caption_id(p.id);
  const auto same = same_caption_.find(own);
  return same == same_caption_.end() ? own : same->second;
}

std::int64_t JoinedPairs::class_id(std::int64_t id) const {
  const Place p = place(id);
  const auto own = sources_[p.source].pairs->class_id(p.id);
  return own < 0 ? own : class_[p.source].at(std::size_t(own));
}

Picture JoinedPairs::picture(std::int64_t id, const Shrink& shrink) const {
  const Place p = place(id);
  return sources_[p.source].pairs->picture(p.id, shrink);
}

std::vector<std::string> JoinedPairs::templates() const {
  for (const auto& s : sources_)
    if (auto own = s.pairs->templates(); has_test_ == s.test && !own.empty()) return own;
  return {};
}

std::vector<int> JoinedPairs::prepared_sizes() const {
  std::vector<int> all;
  for (const auto& s : sources_)
    for (const int size : s.pairs->prepared_sizes())
      if (!s.test) all.push_back(size);
  return all;
}

std::vector<std::int64_t> JoinedPairs::train_ids(std::int64_t max_per_caption) const {
  std::vector<std::int64_t> ids;
  for (std::size_t s = 0; s < sources_.size(); ++s) {
    if (sources_[s].test) continue;
    for (const auto id : sources_[s].pairs->train_ids(max_per_caption))
      ids.insert(ids.end(), std::size_t(sources_[s].weight), first_[s] + id);
  }
  return ids;
}

std::vector<std::int64_t> JoinedPairs::held_out_ids(std::int64_t max_per_caption) const {
  std::vector<std::int64_t> ids;
  for (std::size_t s = 0; s < sources_.size(); ++s) {
    if (has_test_ != sources_[s].test) continue;
    const Pairs& pairs = *sources_[s].pairs;
    auto own = pairs.held_out_ids(sources_[s].test ? 0 : max_per_caption);
    if (sources_[s].test) {
      const auto rest = pairs.train_ids();
      own.insert(own.end(), rest.begin(), rest.end());
      std::sort(own.begin(), own.end());
      own = keep_per_caption(std::move(own), pairs, max_per_caption);
    }
    for (const auto id : own) ids.push_back(first_[s] + id);
  }
  return ids;
}

std::vector<std::string> JoinedPairs::notes() const {
  std::vector<std::string> all;
  for (const auto& s : sources_)
    for (const auto& line : s.pairs->notes()) all.push_back(line);
  return all;
}

}  // namespace trireme
