#include "framework/models/dit/sequence_parallel.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <algorithm>
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

    at::Tensor held = at::stack({k.image, v.image});
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
    const at::Tensor t = nn::merge_parts(rows(anchor, 0, texts), all_text, scores.text_bias).out;
    const at::Tensor i = nn::merge_parts(rows(anchor, texts, queries.size(2) - texts), image, scores.text_bias).out;
    return at::cat({t.transpose(1, 2), i.transpose(1, 2)}, 1).transpose(1, 2);
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

class Ulysses final : public OverRanks {
 public:
  using OverRanks::OverRanks;

  at::Tensor attention(const TokenPair& q, const TokenPair& k, const TokenPair& v, const AttentionScores& scores,
                       std::int64_t tokens) override {
    const std::int64_t heads = q.image.size(1), mine = q.image.size(2), texts = q.text.defined() ? q.text.size(2) : 0;
    if (heads < size())
      throw UsageError("sequence", std::to_string(heads) + " heads for " + std::to_string(size()) + " ranks of ulysses",
                       "sequence: ring, or fewer ranks a picture");
    const auto [first, end] = even_part(heads, rank(), size());
    const std::int64_t batch = q.image.size(0), dim = q.image.size(3), held = end - first;
    const auto options = q.image.options();
    const TokenPair* const all[] = {&q, &k, &v};

    // Tokens are outermost on the wire: the ranks' parts, one after another, are the sequence, with the text before
    // them.
    const at::Tensor joint = at::empty({texts + tokens, batch, 3, held, dim}, options);
    const Wire out(size(), options, [&](int r) { return Shape{mine, batch, 3, length(heads, r), dim}; });
    const auto by_token = [](const at::Tensor& x) { return x.permute({2, 0, 1, 3}); };
    for (std::int64_t i = 0; i < 3; ++i) {
      out.put(i, by_token(all[i]->image));
      if (texts) joint.narrow(0, 0, texts).select(2, i).copy_(by_token(all[i]->text.narrow(1, first, held)));
    }
    exchange(out.flat, out.counts, joint.narrow(0, texts, tokens),
             counts([&](int r) { return length(tokens, r) * batch * 3 * held * dim; }));
    const auto part = [&](std::int64_t i) { return joint.select(2, i).permute({1, 2, 0, 3}); };
    const at::Tensor o = by_token(nn::joint_attention(part(0), part(1), part(2), 0, texts, scores));

    // Back: all text and each rank's tokens, of this rank's heads.
    std::vector<at::Tensor> rows;
    for (int r = 0; r < size(); ++r) {
      if (texts) rows.push_back(o.narrow(0, 0, texts));
      rows.push_back(o.narrow(0, texts + even_part(tokens, r, size()).first, length(tokens, r)));
    }
    const Wire whole(size(), options, [&](int r) { return Shape{texts + mine, batch, length(heads, r), dim}; });
    exchange(at::cat(rows), counts([&](int r) { return (texts + length(tokens, r)) * batch * held * dim; }), whole.flat,
             whole.counts);
    std::vector<at::Tensor> parts;
    for (int r = 0; r < size(); ++r) parts.push_back(whole.of(r));
    return at::cat(parts, 2).permute({1, 2, 0, 3});
  }

 private:
  using Shape = std::vector<std::int64_t>;

  template <class F>
  Counts counts(F of_rank) const {
    Counts all;
    for (int r = 0; r < size(); ++r) all.push_back(static_cast<std::size_t>(of_rank(r)));
    return all;
  }

  // One side of an exchange: a tensor for each rank, one after another in memory.
  class Wire {
   public:
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
    // x [tokens, B, heads of all ranks, d] as number i of each rank's [tokens, B, 3, heads, d].
    void put(std::int64_t i, const at::Tensor& x) const {
      const auto ranks = static_cast<std::int64_t>(shapes_.size()), heads = shapes_[0][3];
      if (shapes_.back()[3] == heads) {  // one copy
        Shape shape = shapes_[0];
        shape.insert(shape.begin(), ranks);
        flat.view(shape).select(3, i).copy_(x.unflatten(2, {ranks, heads}).permute({2, 0, 1, 3, 4}));
        return;
      }
      std::int64_t head = 0;
      for (int r = 0; r < ranks; ++r) {
        const std::int64_t n = shapes_[static_cast<std::size_t>(r)][3];
        of(r).select(2, i).copy_(x.narrow(2, head, n));
        head += n;
      }
    }
    at::Tensor flat;
    Counts counts;

   private:
    std::vector<Shape> shapes_;
    std::vector<std::int64_t> begins_;
  };

  void exchange(const at::Tensor& out, const Counts& send, const at::Tensor& in, const Counts& receive) {
    ranks_.all_to_all(buffer_of(out), send, buffer_of(in), receive).wait();
  }
};

}  // namespace

std::pair<std::int64_t, std::int64_t> even_part(std::int64_t count, int rank, int ranks) {
  const std::int64_t least = count / ranks, longer = count % ranks;
  const std::int64_t begin = rank * least + std::min<std::int64_t>(rank, longer);
  return {begin, begin + least + (rank < longer ? 1 : 0)};
}

std::unique_ptr<SequenceParallel> sequence_parallel(std::string_view kind, Communicator& ranks) {
  if (kind == "ring") return std::make_unique<Ring>(ranks);
  if (kind == "ulysses") return std::make_unique<Ulysses>(ranks);
  throw UsageError("sequence", "'" + std::string(kind) + "' is no way to share attention", "ring or ulysses");
}

}  // namespace trireme
