#include "recipes/dlrm/tables.h"

#include "comm/error.h"
#include "comm/local/self.h"
#include "framework/base/tensor.h"
#include "framework/kernels/sum_of_squares.h"
#include "recipes/dlrm/model.h"

#include <algorithm>
#include <cmath>

namespace trireme::dlrm {
namespace {

std::vector<std::size_t> each(std::size_t n, int ranks) { return std::vector<std::size_t>(std::size_t(ranks), n); }

std::vector<std::size_t> tables_of_ranks(const Owners& o) {
  std::vector<std::size_t> n;
  for (const auto& list : o.tables) n.push_back(list.size());
  return n;
}

}  // namespace

ShardedTables::ShardedTables(const std::vector<Table>& tables, std::int64_t dim, kernels::SparseRule rule,
                             Owners owners, Context& context, bool together)
    : all_(tables),
      dim_(dim),
      owners_(std::move(owners)),
      context_(context),
      rank_(context.rank()),
      ranks_(context.size()),
      places_(tables.size()),
      rule_(rule),
      self_(make_self()) {
  std::int64_t column = 0, place = 0;
  for (const auto& t : all_) columns_.push_back(column), column += t.width;
  for (const auto& list : owners_.tables)
    for (const std::int64_t t : list) places_[std::size_t(t)] = place++;
  std::vector<std::int64_t> firsts;
  std::int64_t rows_here = 0;
  for (const std::int64_t t : mine()) {
    together &= all_[std::size_t(t)].width == 1;
    firsts.push_back(++rows_here), rows_here += all_[std::size_t(t)].rows;  // before each table a row of zeros: id -1
  }
  const auto options = at::TensorOptions(context.device()).dtype(context.param_type());
  all_rows_.emplace(rows_here, dim, rule, options);
  for (std::size_t k = 0; k < firsts.size(); ++k) {
    const Table& table = all_[std::size_t(mine()[k])];
    tables_.emplace_back(table, table_name(mine()[k]), rule, std::uint64_t(context.config().seed),
                         all_rows_->part(firsts[k], table.rows));
  }
  if (together && !firsts.empty()) {
    firsts_ = at::tensor(firsts, at::kLong).view({1, -1, 1}).to(context.device());
    blanks_ = firsts_.flatten() - 1;
    forget_blanks();
  }
  Communicator& rows = context.comm("exchange");
  Communicator& sizes = context.device().is_cpu() ? rows : context.comm("control");
  forward_.emplace(rows, sizes, each(tables_.size(), ranks_), tables_of_ranks(owners_));
  backward_.emplace(rows, sizes, tables_of_ranks(owners_), each(tables_.size(), ranks_));
}

std::vector<Param> ShardedTables::parameters() const {
  std::vector<Param> all;
  for (std::size_t k = 0; k < tables_.size(); ++k) {
    Param p{table_name(mine()[k]), tables_[k].weight(), self_.get(), "sparse"};
    p.sharing = {Sharing::rows, 0, tables_[k].table().rows};
    all.push_back(std::move(p));
  }
  return all;
}

ShardedTables::Ids ShardedTables::send_ids(const at::Tensor& ids) {
  const std::int64_t b = ids.size(0), width = ids.size(1);
  const auto* from = ids.const_data_ptr<std::int32_t>();
  Ids x;
  x.b = b;
  at::Tensor sent = at::empty({b * width}, at::kInt);
  auto* to = sent.mutable_data_ptr<std::int32_t>();
  std::vector<std::size_t> send, recv;
  std::int64_t own = 0;
  for (const std::int64_t t : mine()) own += all_[std::size_t(t)].width;
  for (const auto& list : owners_.tables) {
    send.push_back(0), recv.push_back(std::size_t(own * b));
    for (const std::int64_t t : list) {
      const Table& table = all_[std::size_t(t)];
      for (std::int64_t i = 0; i < b; ++i)
        for (std::int64_t w = 0; w < table.width; ++w) {
          const std::int32_t id = from[i * width + columns_[std::size_t(t)] + w];
          if (id < -1 || id >= table.rows)
            throw DataError("table " + table.name,
                            "has " + std::to_string(table.rows) + " rows, and row " + std::to_string(i) +
                                " of this rank's batch asks for row " + std::to_string(id),
                            "prepare the data anew");
          *to++ = id;
        }
      send.back() += std::size_t(b * table.width);
    }
  }
  x.sent = to_device(sent, context_.device());
  x.received = at::empty({ranks_, own * b}, x.sent.options());
  x.work = context_.comm("ids").all_to_all(buffer_of(x.sent), send, buffer_of(x.received), recv);
  return x;
}

at::Tensor ShardedTables::ids_of(const at::Tensor& received, std::size_t k, std::int64_t b) const {
  std::int64_t before = 0;
  for (std::size_t j = 0; j < k; ++j) before += tables_[j].table().width;
  const std::int64_t w = tables_[k].table().width;
  return received.as_strided({received.size(0), b, w}, {received.stride(0), w, 1},
                             received.storage_offset() + before * b);
}

void ShardedTables::start_fetch(Ids ids, const CodingOf& coding) {
  at::NoGradGuard no_grad;
  current_ = std::move(ids);
  current_.work.wait();
  const std::int64_t b = current_.b, n = std::int64_t(tables_.size());
  const at::TensorOptions options = all_rows_->weight.options();
  if (!looked_up_.defined() || looked_up_.size(2) != b) looked_up_ = at::empty({ranks_, n, b, dim_}, options);
  rows_ = at::empty({std::int64_t(all_.size()), b, dim_}, options);
  if (firsts_.defined()) {
    current_.flat = (current_.received.view({ranks_, n, b}) + firsts_).view({-1});
    all_rows_->lookup(current_.flat, looked_up_.view({-1, dim_}));
  }
  for (std::size_t k = 0; k < tables_.size() && !firsts_.defined(); ++k)
    tables_[k].lookup(ids_of(current_.received, k, b), looked_up_.select(1, std::int64_t(k)));
  const at::Tensor chunks = looked_up_.view({ranks_ * n, b, dim_});
  forward_->start(chunks, rows_, coding ? coding(chunks) : Coding{});
}

void ShardedTables::name_table(const BadChunk& e, std::int64_t table) const {
  throw CommError("step " + std::to_string(context_.now.step + 1) + ", table " + all_[std::size_t(table)].name,
                  e.what());
}

at::Tensor ShardedTables::finish_fetch() {
  try {
    forward_->finish();
  } catch (const BadChunk& e) {
    name_table(e, owners_.tables[std::size_t(e.rank)][e.chunk]);
  }
  return std::exchange(rows_, at::Tensor());
}

void ShardedTables::start_return(const at::Tensor& gradient, const CodingOf& coding) {
  at::NoGradGuard no_grad;
  const std::int64_t b = gradient.size(1), n = std::int64_t(tables_.size());
  gradient_ = gradient;
  returned_ = at::empty({ranks_ * n, b, dim_}, gradient.options());
  returning_ = true;
  backward_->start(gradient_, returned_, coding ? coding(gradient_) : Coding{});
}

void ShardedTables::finish_return() {
  try {
    backward_->finish();
  } catch (const BadChunk& e) {
    name_table(e, mine()[e.chunk]);
  }
  returning_ = false;
  const std::int64_t n = std::int64_t(tables_.size());
  waiting_.push_back({current_.received, returned_.view({ranks_, n, current_.b, dim_}), current_.flat, current_.b});
  gradient_ = returned_ = at::Tensor();
}

at::Tensor ShardedTables::blame() const {
  const at::Tensor& g = waiting_.back().gradient;
  if (!g.is_cpu()) return g.sum(at::kDouble) * 0;
  const double squares = g.scalar_type() == at::kDouble ? kernels::sum_of_squares(g.const_data_ptr<double>(), g.numel())
                                                        : kernels::sum_of_squares(g.const_data_ptr<float>(), g.numel());
  return at::scalar_tensor(std::isfinite(squares) ? 0 : std::nan(""), at::kDouble);
}

// What was added to the rows that stand for no id.
void ShardedTables::forget_blanks() {
  const at::NoGradGuard no_grad;
  all_rows_->weight.index_fill_(0, blanks_, 0);
}

void ShardedTables::update_together(double lr, const at::Tensor& skip) {
  std::vector<at::Tensor> ids, gradients;
  for (const auto& w : waiting_) ids.push_back(w.flat), gradients.push_back(w.gradient.view({-1, dim_}));
  if (ids.size() == 1)
    all_rows_->update(ids[0], gradients[0], rule_, lr, skip);
  else if (!ids.empty())
    all_rows_->update(at::cat(ids), at::cat(gradients), rule_, lr, skip);
  if (!ids.empty()) forget_blanks();
  waiting_.clear();
}

void ShardedTables::update(double lr, const at::Tensor& skip) {
  at::NoGradGuard no_grad;
  const bool all_trained =
      std::all_of(tables_.begin(), tables_.end(), [](const auto& t) { return t.weight().requires_grad(); });
  if (firsts_.defined() && all_trained) return update_together(lr, skip);
  for (std::size_t k = 0; k < tables_.size(); ++k) {
    if (!tables_[k].weight().requires_grad() || waiting_.empty()) continue;  // `freeze` names it
    std::vector<at::Tensor> ids, gradients;
    for (const auto& w : waiting_) {
      ids.push_back(ids_of(w.ids, k, w.b));
      gradients.push_back(w.gradient.select(1, std::int64_t(k)));
    }
    // Micro-batches: one update by all of them.
    if (ids.size() == 1)
      tables_[k].update(ids[0], gradients[0], lr, skip);
    else
      tables_[k].update(at::cat(ids), at::cat(gradients), lr, skip);
  }
  waiting_.clear();
}

void ShardedTables::state(Archive& ar) {
  for (std::size_t k = 0; k < tables_.size(); ++k)
    if (tables_[k].state().defined())
      archive(ar, "embedding/" + table_name(mine()[k]), tables_[k].state(),
              {Sharing::rows, 0, tables_[k].table().rows});
}

}  // namespace trireme::dlrm
