#include "framework/models/dit/sequence_parallel.h"

#include "comm/beside.h"
#include "comm/error.h"
#include "framework/base/tensor.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include <ATen/ATen.h>

namespace trireme {
namespace {

using nn::AttentionPart;
using nn::AttentionScores;
using nn::TokenPair;
using Counts = std::vector<std::size_t>;

at::Tensor joined(const at::Tensor& text, const at::Tensor& image) {
  return text.defined() ? at::cat({text, image}, 2) : image;
}

// torch's copy of strided tensors moves an element a thread: one of 16 bytes, where rows allow that.
void copy_wide(const at::Tensor& to, const at::Tensor& from) {
  const auto allows = [](const at::Tensor& x) {
    const auto bytes = static_cast<std::int64_t>(x.element_size());
    auto even = [&](std::int64_t n) { return n * bytes % 16 == 0; };
    const auto outer = x.strides().slice(0, static_cast<std::size_t>(x.dim() - 1));
    return x.stride(-1) == 1 && even(x.size(-1)) && even(x.storage_offset()) && std::ranges::all_of(outer, even) &&
           reinterpret_cast<std::uintptr_t>(x.const_data_ptr()) % 16 == 0;
  };
  if (to.scalar_type() == from.scalar_type() && allows(to) && allows(from))
    to.view(at::kComplexDouble).copy_(from.view(at::kComplexDouble));
  else
    to.copy_(from);
}

class OverRanks : public SequenceParallel {
 public:
  explicit OverRanks(Communicator& ranks) : ranks_(ranks) {}

  std::pair<std::int64_t, std::int64_t> slice(std::int64_t tokens) const override {
    if (tokens < ranks_.size())
      throw UsageError("sequence", std::to_string(tokens) + " tokens for " + std::to_string(ranks_.size()) + " ranks",
                       "fewer ranks a picture");
    return even_part(tokens, ranks_.rank(), ranks_.size());
  }

  at::Tensor gather(const at::Tensor& image, std::int64_t tokens) override {
    const std::int64_t most = even_part(tokens, 0, size()).second;
    std::vector<std::int64_t> shape(image.sizes().begin(), image.sizes().end());
    shape[1] = most;
    at::Tensor padded = image.contiguous();
    if (image.size(1) != most) {
      padded = at::zeros(shape, image.options());
      padded.narrow(1, 0, image.size(1)).copy_(image);
    }
    shape.insert(shape.begin(), size());
    const at::Tensor all = at::empty(shape, image.options());
    ranks_.all_gather(buffer_of(padded), buffer_of(all)).wait();
    std::vector<at::Tensor> parts;
    for (int r = 0; r < size(); ++r) parts.push_back(all[r].narrow(1, 0, length(tokens, r)));
    return at::cat(parts, 1);
  }
  Communicator& ranks() const override { return ranks_; }

 protected:
  int rank() const { return ranks_.rank(); }
  int size() const { return ranks_.size(); }
  std::int64_t length(std::int64_t count, int rank) const {
    const auto [begin, end] = even_part(count, rank, size());
    return end - begin;
  }
  Communicator& ranks_;
};

class Ring final : public OverRanks {
 public:
  using OverRanks::OverRanks;

  at::Tensor attention(const TokenPair& q, const TokenPair& k, const TokenPair& v, const AttentionScores& scores,
                       std::int64_t tokens) override {
    const at::Tensor queries = joined(q.text, q.image);
    const std::int64_t texts = q.text.defined() ? q.text.size(2) : 0;
    // Parts of text queries are merged in the order of the ranks: text stays equal on all of them.
    std::vector<AttentionPart> text(static_cast<std::size_t>(size()));
    AttentionPart image;
    auto add = [](AttentionPart& sum, const AttentionPart& part) {
      sum = sum.out.defined() ? nn::merge_parts(sum, part) : part;
    };
    auto rows = [](const AttentionPart& part, std::int64_t begin, std::int64_t n) {
      return AttentionPart{part.out.narrow(2, begin, n), part.lse.narrow(2, begin, n)};
    };

    at::Tensor held =
        at::empty({2, k.image.size(0), k.image.size(1), k.image.size(2), k.image.size(3)}, k.image.options());
    copy_wide(held[0], k.image);
    copy_wide(held[1], v.image);
    for (int hop = 0; hop < size(); ++hop) {
      const int owner = (rank() - hop + size()) % size();
      Passing passing = hop + 1 < size() ? pass_on(held, (owner - 1 + size()) % size(), tokens) : Passing{};
      const AttentionPart part = nn::attention_part(queries, held[0], held[1], scores.scale);
      add(image, rows(part, texts, queries.size(2) - texts));
      if (texts) text[static_cast<std::size_t>(owner)] = rows(part, 0, texts);
      if (!passing.next.defined()) break;
      passing.work.wait();
      held = passing.next;
    }
    if (!texts) return image.out;

    const AttentionPart anchor = nn::attention_part(queries, k.text, v.text, scores.scale);
    AttentionPart all_text;
    for (const auto& part : text) add(all_text, part);
    const std::int64_t n = queries.size(2), images = n - texts;
    const at::Tensor all =
        at::empty({queries.size(0), n, queries.size(1), queries.size(3)}, queries.options()).transpose(1, 2);
    nn::merge_parts(rows(anchor, 0, texts), all_text, scores.text_bias, all.narrow(2, 0, texts));
    nn::merge_parts(rows(anchor, texts, images), image, scores.text_bias, all.narrow(2, texts, images));
    return all;
  }

 private:
  struct Passing {
    at::Tensor next;
    Work work;
  };

  // Sends what this rank holds to the next one; the previous one's, of `owner`, comes.
  Passing pass_on(const at::Tensor& held, int owner, std::int64_t tokens) {
    std::vector<std::int64_t> shape(held.sizes().begin(), held.sizes().end());
    shape[3] = length(tokens, owner);
    const at::Tensor next = at::empty(shape, held.options());
    send_.assign(static_cast<std::size_t>(size()), 0);
    receive_ = send_;
    send_[static_cast<std::size_t>((rank() + 1) % size())] = static_cast<std::size_t>(held.numel());
    receive_[static_cast<std::size_t>((rank() - 1 + size()) % size())] = static_cast<std::size_t>(next.numel());
    return {next, ranks_.all_to_all(buffer_of(held), send_, buffer_of(next), receive_)};
  }

  Counts send_, receive_;  // of the exchange under way
};

// Heads go in waves, so that one wave's exchanges run beside another's attention.
class Ulysses final : public OverRanks {
 public:
  Ulysses(Communicator& ranks, std::int64_t wave_bytes) : OverRanks(ranks), wave_bytes_(wave_bytes) {}

  at::Tensor attention(const TokenPair& q, const TokenPair& k, const TokenPair& v, const AttentionScores& scores,
                       std::int64_t tokens) override {
    const std::int64_t heads = q.image.size(1), texts = q.text.defined() ? q.text.size(2) : 0;
    if (heads < size())
      throw UsageError("sequence", std::to_string(heads) + " heads for " + std::to_string(size()) + " ranks of ulysses",
                       "sequence: ring, or fewer ranks a picture");
    std::vector<Wave> waves(static_cast<std::size_t>(waves_of(q.image, tokens)));
    const auto count = std::ssize(waves);
    for (std::int64_t w = 0; w < count; ++w) {
      Wave& wave = waves[static_cast<std::size_t>(w)];
      // What nothing runs beside is least where the first wave is the smallest: q, k and v travel in, one tensor back.
      for (int r = 0; r < size(); ++r)
        wave.heads.push_back(even_part(length(heads, r), int(count - 1 - w), int(count)));
      const BesideComputation beside(w > 0);  // the first way in and the last one back have nothing beside them
      send(wave, {&q, &k, &v}, tokens);
    }
    for (auto& wave : waves) {
      const BesideComputation beside(&wave != &waves.back());
      answer(wave, texts, tokens, scores);
    }
    for (auto& wave : waves) wave.back.wait();
    std::vector<at::Tensor> parts;
    for (int r = 0; r < size(); ++r)
      for (auto wave = waves.rbegin(); wave != waves.rend(); ++wave) parts.push_back(wave->whole.of(r));
    return at::cat(parts, 2).permute({1, 2, 0, 3});
  }

 private:
  using Shape = std::vector<std::int64_t>;
  using Heads = std::pair<std::int64_t, std::int64_t>;  // [first, second)

  template <class F>
  Counts counts(F of_rank) const {
    Counts all;
    for (int r = 0; r < size(); ++r) all.push_back(static_cast<std::size_t>(of_rank(r)));
    return all;
  }

  // One side of an exchange: a tensor for each rank, one after another in memory.
  class Wire {
   public:
    Wire() = default;
    template <class ShapeOf>
    Wire(int ranks, const at::TensorOptions& options, ShapeOf shape_of) {
      std::int64_t total = 0;
      for (int r = 0; r < ranks; ++r) {
        shapes_.push_back(shape_of(r));
        const std::int64_t n = c10::multiply_integers(shapes_.back());
        counts.push_back(static_cast<std::size_t>(n));
        begins_.push_back(total);
        total += n;
      }
      flat = at::empty({total}, options);
    }
    at::Tensor of(int rank) const {
      const auto r = static_cast<std::size_t>(rank);
      return flat.narrow(0, begins_[r], static_cast<std::int64_t>(counts[r])).view(shapes_[r]);
    }
    // Of x [tokens, B, heads of all ranks, d] the heads of this wave as number i of each rank's [tokens, B, 3, n, d].
    void put(std::int64_t i, const at::Tensor& x, const std::vector<Heads>& heads) const {
      const auto ranks = std::ssize(heads);
      const auto [begin, end] = heads[0];
      if (x.size(2) % ranks == 0) {  // one copy
        Shape shape = shapes_[0];
        shape.insert(shape.begin(), ranks);
        copy_wide(flat.view(shape).select(3, i),
                  x.unflatten(2, {ranks, x.size(2) / ranks}).narrow(3, begin, end - begin).permute({2, 0, 1, 3, 4}));
        return;
      }
      for (int r = 0; r < ranks; ++r) {
        const auto [b, e] = heads[static_cast<std::size_t>(r)];
        copy_wide(of(r).select(2, i), x.narrow(2, even_part(x.size(2), r, int(ranks)).first + b, e - b));
      }
    }
    at::Tensor flat;
    Counts counts;

   private:
    std::vector<Shape> shapes_;
    std::vector<std::int64_t> begins_;
  };

  // Lives until its exchanges are over.
  struct Wave {
    std::vector<Heads> heads;  // of each rank's own
    Wire out, whole;           // sent first: parts of tokens; received last: parts of heads
    at::Tensor joint, rows;    // received: all tokens, the text before them; sent back
    Counts joint_counts, rows_counts;
    Work coming, back;
    std::int64_t of(int rank) const {
      const auto [begin, end] = heads[static_cast<std::size_t>(rank)];
      return end - begin;
    }
  };

  // The same on all ranks.
  std::int64_t waves_of(const at::Tensor& x, std::int64_t tokens) const {
    const std::int64_t bytes = 3 * x.size(0) * tokens / size() * x.size(1) * x.size(3) * x.element_size();
    return std::clamp<std::int64_t>(bytes / wave_bytes_, 1, std::min<std::int64_t>(4, x.size(1) / size()));
  }

  // Tokens are outermost on the wire: the ranks' parts, one after another, are the sequence, with the text before them.
  void send(Wave& wave, const std::array<const TokenPair*, 3>& qkv, std::int64_t tokens) const {
    const at::Tensor &image = qkv[0]->image, &text = qkv[0]->text;
    const std::int64_t batch = image.size(0), mine = image.size(2), dim = image.size(3), held = wave.of(rank());
    const std::int64_t texts = text.defined() ? text.size(2) : 0;
    wave.joint = at::empty({texts + tokens, batch, 3, held, dim}, image.options());
    wave.out = Wire(size(), image.options(), [&](int r) { return Shape{mine, batch, 3, wave.of(r), dim}; });
    const std::int64_t first =
        even_part(image.size(1), rank(), size()).first + wave.heads[static_cast<std::size_t>(rank())].first;
    for (std::int64_t i = 0; i < 3; ++i) {
      const TokenPair& x = *qkv[static_cast<std::size_t>(i)];
      wave.out.put(i, by_token(x.image), wave.heads);
      if (texts) copy_wide(wave.joint.narrow(0, 0, texts).select(2, i), by_token(x.text.narrow(1, first, held)));
    }
    wave.joint_counts = counts([&](int r) { return length(tokens, r) * batch * 3 * held * dim; });
    wave.coming = ranks_.all_to_all(buffer_of(wave.out.flat), wave.out.counts,
                                    buffer_of(wave.joint.narrow(0, texts, tokens)), wave.joint_counts);
  }

  // Back go all text and each rank's tokens, of this rank's heads.
  void answer(Wave& wave, std::int64_t texts, std::int64_t tokens, const AttentionScores& scores) const {
    const at::Tensor& joint = wave.joint;
    const std::int64_t batch = joint.size(1), held = joint.size(3), dim = joint.size(4);
    wave.coming.wait();
    const auto part = [&](std::int64_t i) { return joint.select(2, i).permute({1, 2, 0, 3}); };
    const at::Tensor o = by_token(nn::joint_attention(part(0), part(1), part(2), 0, texts, scores));
    std::vector<at::Tensor> rows;
    for (int r = 0; r < size(); ++r) {
      if (texts) rows.push_back(o.narrow(0, 0, texts));
      rows.push_back(o.narrow(0, texts + even_part(tokens, r, size()).first, length(tokens, r)));
    }
    wave.rows = at::cat(rows);
    wave.rows_counts = counts([&](int r) { return (texts + length(tokens, r)) * batch * held * dim; });
    const std::int64_t mine = length(tokens, rank());
    wave.whole = Wire(size(), o.options(), [&](int r) { return Shape{texts + mine, batch, wave.of(r), dim}; });
    wave.back =
        ranks_.all_to_all(buffer_of(wave.rows), wave.rows_counts, buffer_of(wave.whole.flat), wave.whole.counts);
  }

  static at::Tensor by_token(const at::Tensor& x) { return x.permute({2, 0, 1, 3}); }

  const std::int64_t wave_bytes_;
};

}  // namespace

std::pair<std::int64_t, std::int64_t> even_part(std::int64_t count, int rank, int ranks) {
  const std::int64_t least = count / ranks, longer = count % ranks;
  const std::int64_t begin = rank * least + std::min<std::int64_t>(rank, longer);
  return {begin, begin + least + (rank < longer ? 1 : 0)};
}

std::unique_ptr<SequenceParallel> sequence_parallel(std::string_view kind, Communicator& ranks,
                                                    std::int64_t wave_bytes) {
  if (kind == "ring") return std::make_unique<Ring>(ranks);
  if (kind == "ulysses") return std::make_unique<Ulysses>(ranks, wave_bytes);
  throw UsageError("sequence", "'" + std::string(kind) + "' is no way to share attention", "ring or ulysses");
}

}  // namespace trireme
