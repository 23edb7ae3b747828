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
                             Owners owners, Context& context)
    : all_(tables),
      dim_(dim),
      owners_(std::move(owners)),
      context_(context),
      rank_(context.rank()),
      ranks_(context.size()),
      self_(make_self()) {
  std::int64_t column = 0, place = 0;
  for (const auto& t : all_) columns_.push_back(column), column += t.width;
  std::vector<std::int64_t> places(all_.size());
  for (const auto& list : owners_.tables)
    for (const std::int64_t t : list) places[std::size_t(t)] = place++;
  places_ = to_device(at::tensor(places, at::kLong), context.device());
  std::vector<Table> held;
  std::vector<std::string> names;
  std::vector<std::int64_t> widths, own;
  for (const auto& list : owners_.tables)
    for (const std::int64_t t : list) widths.push_back(all_[std::size_t(t)].width);
  for (const std::int64_t t : mine()) {
    held.push_back(all_[std::size_t(t)]), names.push_back(table_name(t));
    own.push_back(held.back().width);
  }
  grouping_.emplace(widths), own_grouping_.emplace(own);
  held_.emplace(std::move(held), names, dim, rule, std::uint64_t(context.config().seed),
                at::TensorOptions(context.device()).dtype(context.param_type()));
  Communicator& rows = context.comm("exchange");
  Communicator& sizes = context.device().is_cpu() ? rows : context.comm("control");
  forward_.emplace(rows, sizes, each(held_->size(), ranks_), tables_of_ranks(owners_));
  backward_.emplace(rows, sizes, tables_of_ranks(owners_), each(held_->size(), ranks_));
}

std::vector<Param> ShardedTables::parameters() const {
  std::vector<Param> all;
  for (std::size_t k = 0; k < held_->size(); ++k) {
    Param p{table_name(mine()[k]), held_->weight(k), self_.get(), "sparse"};
    p.sharing = {Sharing::rows, 0, held_->table(k).rows};
    all.push_back(std::move(p));
  }
  return all;
}

void ShardedTables::refuse(const Table& table, std::int64_t sample, std::int32_t id) {
  throw DataError("table " + table.name,
                  "has " + std::to_string(table.rows) + " rows, and row " + std::to_string(sample) +
                      " of this rank's batch asks for row " + std::to_string(id),
                  "prepare the data anew");
}

void ShardedTables::check(const at::Tensor& ids) const {
  if (!ids.is_cpu()) return;
  const auto* id = ids.const_data_ptr<std::int32_t>();
  for (std::int64_t i = 0; i < ids.size(0); ++i)
    for (const Table& table : all_)
      for (std::int64_t w = 0; w < table.width; ++w, ++id)
        if (*id < -1 || *id >= table.rows) refuse(table, i, *id);
}

at::Tensor ShardedTables::sort_on_host(const at::Tensor& ids) const {
  const std::int64_t b = ids.size(0), width = ids.size(1);
  at::Tensor sent = at::empty({ids.numel()}, at::kInt);
  const auto* from = ids.const_data_ptr<std::int32_t>();
  auto* to = sent.mutable_data_ptr<std::int32_t>();
  for (const auto& list : owners_.tables)
    for (const std::int64_t t : list) {
      const Table& table = all_[std::size_t(t)];
      for (std::int64_t i = 0; i < b; ++i)
        for (std::int64_t w = 0; w < table.width; ++w) {
          const std::int32_t id = from[i * width + columns_[std::size_t(t)] + w];
          if (id < -1 || id >= table.rows) refuse(table, i, id);
          *to++ = id;
        }
    }
  return sent;
}

at::Tensor ShardedTables::sort_on_device(const at::Tensor& ids) {
  at::Tensor& known = orders_[ids.numel()];
  if (!known.defined()) {
    const std::int64_t b = ids.size(0), width = ids.size(1);
    std::vector<std::int64_t> order;
    for (const auto& list : owners_.tables)
      for (const std::int64_t t : list)
        for (std::int64_t i = 0; i < b; ++i)
          for (std::int64_t w = 0; w < all_[std::size_t(t)].width; ++w)
            order.push_back(i * width + columns_[std::size_t(t)] + w);
    known = to_device(at::tensor(order, at::kLong), ids.device());
  }
  return ids.reshape({-1}).index_select(0, known);
}

at::Tensor ShardedTables::sorted(const at::Tensor& ids) {
  return ids.is_cpu() ? sort_on_host(ids) : sort_on_device(ids);
}

ShardedTables::Ids ShardedTables::send_ids(const at::Tensor& ids) {
  return send_sorted(to_device(sorted(ids), context_.device()), ids.size(0));
}

ShardedTables::Ids ShardedTables::send_sorted(const at::Tensor& sent, std::int64_t b) {
  const std::int64_t own = held_->columns();
  std::vector<std::size_t> send;
  for (const auto& list : owners_.tables) {
    send.push_back(0);
    for (const std::int64_t t : list) send.back() += std::size_t(b * all_[std::size_t(t)].width);
  }
  Ids x{.sent = sent, .received = {}, .b = b};
  x.received = ranks_ == 1 ? sent.view({1, own * b}) : at::empty({ranks_, own * b}, sent.options());
  x.work =
      context_.comm("ids").all_to_all(buffer_of(sent), send, buffer_of(x.received), each(std::size_t(own * b), ranks_));
  return x;
}

Coding ShardedTables::coding_of(const CodingOf& coding, const at::Tensor& rows) const {
  Coding c = coding ? coding(rows) : Coding{};
  c.recorded = context_.recorded();
  return c;
}

void ShardedTables::start_fetch(Ids ids, const CodingOf& coding) {
  at::NoGradGuard no_grad;
  settle_return();
  current_ = std::move(ids);
  current_.work.wait();
  const std::int64_t b = current_.b, n = std::int64_t(held_->size());
  const at::TensorOptions options = held_->options();
  rows_ = at::empty({std::int64_t(all_.size()), b, dim_}, options);
  if (ranks_ == 1 && !coding)
    looked_up_ = rows_.unsqueeze(0);  // they stay where they are
  else if (!looked_up_.defined() || looked_up_.size(2) != b || context_.recorded())
    looked_up_ = at::empty({ranks_, n, b, dim_}, options);
  held_->lookup(current_.received, looked_up_);
  const at::Tensor chunks = looked_up_.view({ranks_ * n, b, dim_});
  forward_->start(chunks, rows_, coding_of(coding, chunks));
  received_groups_.reset();
  combines_ = false;
}

void ShardedTables::combine_gradients() {
  at::NoGradGuard no_grad;
  combines_ = true;
  const Groups sent = (*grouping_)(current_.sent.view({1, -1}), current_.b);
  combiner_.prepare(sent, dim_);
  if (held_->size() > 0) received_groups_ = ranks_ == 1 ? sent : (*own_grouping_)(current_.received, current_.b);
}

void ShardedTables::prepare_update() {
  if (current_.received.is_cpu()) return;
  if (!sorting_) sorting_.emplace(current_.received.device());
  current_.sorted = held_->sort_memory(current_.received);
  sorting_->follow();
  sorting_->run([this] { held_->sort(current_.received, current_.b, current_.sorted); });
}

void ShardedTables::name_table(const BadChunk& e, const std::vector<std::int64_t>& sent) const {
  std::string where = "step " + std::to_string(context_.now.step + 1);
  if (e.chunk < sent.size()) where += ", table " + all_[std::size_t(sent[e.chunk])].name;
  throw CommError(where, e.what());
}

at::Tensor ShardedTables::finish_fetch() {
  try {
    forward_->finish();
    forward_->join();
  } catch (const BadChunk& e) {
    name_table(e, owners_.tables[std::size_t(e.rank)]);
  }
  return std::exchange(rows_, at::Tensor());
}

bool ShardedTables::settle_fetch() {
  if (context_.recorded()) return false;  // in accept()
  try {
    if (!forward_->settle()) return false;
    forward_->join();
    return true;
  } catch (const BadChunk& e) {
    name_table(e, owners_.tables[std::size_t(e.rank)]);
  }
}

void ShardedTables::start_return(const at::Tensor& gradient, const CodingOf& coding) {
  at::NoGradGuard no_grad;
  const std::int64_t b = gradient.size(1), n = std::int64_t(held_->size());
  gradient_ = combines_ ? combiner_.combined(gradient) : gradient;
  returned_ = ranks_ == 1 && !coding ? gradient_ : at::empty({ranks_ * n, b, dim_}, gradient.options());
  backward_->start(gradient_, returned_, coding_of(coding, gradient_));
}

void ShardedTables::finish_return() {
  try {
    backward_->finish();
  } catch (const BadChunk& e) {
    name_table(e, mine());
  }
  returning_ = true;
  if (!context_.recorded()) return;
  backward_->join();  // a graph may end before the update
  if (sorting_) sorting_->lead();
}

// Messages of another size than those that were recorded.
void ShardedTables::look_at_room() {
  const std::int64_t now = forward_->room().changes() + backward_->room().changes();
  if (std::exchange(room_changes_, now) != now) context_.record_anew();
}

bool ShardedTables::accept() {
  const bool returning = std::exchange(returning_, false);
  try {
    if (!forward_->accept()) return false;  // then what went back was no gradient
  } catch (const BadChunk& e) {
    name_table(e, owners_.tables[std::size_t(e.rank)]);
  }
  try {
    if (!backward_->accept()) return false;
  } catch (const BadChunk& e) {
    name_table(e, mine());
  }
  look_at_room();
  returning_ = returning;
  return true;
}

// As late as may be: what comes may not be there yet.
void ShardedTables::settle_return() {
  if (!std::exchange(returning_, false)) return;
  if (!context_.recorded()) try {
      backward_->settle();
      backward_->join();
    } catch (const BadChunk& e) {
      name_table(e, mine());
    }
  if (!context_.recorded()) look_at_room();
  const std::int64_t n = std::int64_t(held_->size());
  if (received_groups_) restore(returned_, *received_groups_);
  waiting_.push_back({current_.received, returned_.view({ranks_, n, current_.b, dim_}), current_.sorted});
  gradient_ = returned_ = at::Tensor();
}

at::Tensor ShardedTables::blame() const {
  const at::Tensor& g = gradient_;
  if (!g.is_cpu()) return g.sum(at::kDouble) * 0;
  const double squares = g.scalar_type() == at::kDouble ? kernels::sum_of_squares(g.const_data_ptr<double>(), g.numel())
                                                        : kernels::sum_of_squares(g.const_data_ptr<float>(), g.numel());
  return at::scalar_tensor(std::isfinite(squares) ? 0 : std::nan(""), at::kDouble);
}

void ShardedTables::forget() {
  if (sorting_ && !context_.recorded()) sorting_->lead();  // what it sorts is let go
  settle_return(), waiting_.clear();
}

void ShardedTables::update(double lr, const at::Tensor& skip, const at::Tensor& device_lr) {
  at::NoGradGuard no_grad;
  settle_return();
  std::vector<at::Tensor> ids, gradients;
  for (const auto& w : waiting_) ids.push_back(w.ids), gradients.push_back(w.gradient);
  if (sorting_ && !context_.recorded()) sorting_->lead();
  // Micro-batches: one update by all of them.
  if (ids.size() == 1)
    held_->update(ids[0], gradients[0], lr, skip, device_lr, waiting_[0].sorted);
  else if (!ids.empty())
    held_->update(at::cat(ids), at::cat(gradients), lr, skip, device_lr);
  waiting_.clear();
}

void ShardedTables::room_state(Archive& ar) {
  for (const auto& [name, exchange] : {std::pair("forward", &*forward_), std::pair("backward", &*backward_)}) {
    const Archive::Group group(ar, name);
    exchange->room().state(ar);
  }
}

void ShardedTables::state(Archive& ar) {
  for (std::size_t k = 0; k < held_->size(); ++k)
    if (held_->state(k).defined())
      archive(ar, "embedding/" + table_name(mine()[k]), held_->state(k), {Sharing::rows, 0, held_->table(k).rows});
}

}  // namespace trireme::dlrm
