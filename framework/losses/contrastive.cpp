#include "framework/losses/contrastive.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <cmath>
#include <limits>
#include <numbers>
#include <unordered_map>

namespace trireme::fastclip {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Both towers' rows of all ranks: one all-gather of [2, b, d].
struct Gathered {
  at::Tensor image, text;  // [B, d]
};

Gathered gather_features(Communicator& comm, const at::Tensor& image, const at::Tensor& text) {
  const auto b = image.size(0), d = image.size(1), k = std::int64_t(comm.size());
  const at::Tensor mine = at::stack({image, text}).contiguous();
  at::Tensor all = at::empty({k, 2, b, d}, mine.options());
  comm.all_gather(buffer_of(mine), buffer_of(all)).wait();
  return {all.select(1, 0).reshape({k * b, d}), all.select(1, 1).reshape({k * b, d})};
}

// Two scalars per local row -> the same for all B rows, [2, B].
at::Tensor gather_scalars(Communicator& comm, const at::Tensor& image, const at::Tensor& text) {
  const auto b = image.size(0), k = std::int64_t(comm.size());
  const at::Tensor mine = at::stack({image, text}).contiguous();
  at::Tensor all = at::empty({k, 2, b}, mine.options());
  comm.all_gather(buffer_of(mine), buffer_of(all)).wait();
  return all.permute({1, 0, 2}).reshape({2, k * b});
}

// Column of each local row's own partner in the [b, B] matrices.
at::Tensor own_columns(Communicator& comm, const at::Tensor& rows) {
  const auto b = rows.size(0);
  return (at::arange(b, rows.options().dtype(at::kLong)) + comm.rank() * b).unsqueeze(1);
}

// log((1 - gamma) e^old + gamma e^now), or `now` at a first visit (u below 1e-35, infinite or not a number).
at::Tensor moving_average(const at::Tensor& old, const at::Tensor& now, double gamma) {
  if (gamma >= 1) return now;
  const at::Tensor mixed = at::logaddexp(old + std::log1p(-gamma), now + std::log(gamma));
  const at::Tensor fresh = (old < std::log(1e-35)).logical_or(at::isinf(old)).logical_or(at::isnan(old));
  return at::where(fresh, now, mixed);
}

// Rows to write into the tables: for equal ids the last one.
struct TableRows {
  at::Tensor ids, rows;
};

TableRows last_rows(std::span<const std::int64_t> ids, std::int64_t n, at::Device device) {
  std::unordered_map<std::int64_t, std::int64_t> last;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= n)
      throw DataError("sample " + std::to_string(ids[i]), "is outside the normaliser table of " + std::to_string(n));
    last[ids[i]] = std::int64_t(i);
  }
  std::vector<std::int64_t> at_ids, rows;
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (last[ids[i]] == std::int64_t(i)) {
      at_ids.push_back(ids[i]);
      rows.push_back(std::int64_t(i));
    }
  return {to_device(at::tensor(at_ids, at::kLong), device), to_device(at::tensor(rows, at::kLong), device)};
}

// One side of the global loss on this rank. `similarity` [b, B]: local anchors against all partners; it also holds,
// as columns, all anchors of the other side against the local partners.
struct Side {
  at::Tensor similarity, margin;  // [b, B]; margin = (similarity - own diagonal) / tau, -inf on the diagonal
  at::Tensor log_g, log_u;        // [b]
};

Side make_side(const at::Tensor& mine, const at::Tensor& partners, const at::Tensor& diagonal, const at::Tensor& scale,
               const at::Tensor& own, std::int64_t global) {
  Side side;
  side.similarity = at::matmul(mine, partners.t());
  side.margin = ((side.similarity - diagonal.unsqueeze(1)) * scale).scatter(1, own, -infinity);
  side.log_g = at::logsumexp(side.margin, {1}) - std::log(double(global - 1));
  return side;
}

}  // namespace

void check_pairs(std::int64_t global) {
  if (global < 2) throw UsageError("batch_size", "a contrastive loss needs at least 2 pairs");
}

NormalizerTable::NormalizerTable(std::int64_t n, at::TensorOptions options)
    : image(at::full({n}, -infinity, options)), text(at::full({n}, -infinity, options)) {}

void NormalizerTable::write(std::span<const std::int64_t> ids, const at::Tensor& log_u, const at::Tensor& skip) {
  at::NoGradGuard no_grad;
  const TableRows rows = last_rows(ids, image.numel(), image.device());
  const auto put = [&](at::Tensor& table, const at::Tensor& values) {
    table.index_copy_(0, rows.ids,
                      at::where(skip > 0, table.index_select(0, rows.ids), values.index_select(0, rows.rows)));
  };
  put(image, log_u[0]);
  put(text, log_u[1]);
}

double gamma_at(std::string_view schedule, double gamma_min, std::int64_t decay_epochs, std::int64_t epoch) {
  if (epoch == 0) return 1;
  if (schedule == "constant" || epoch >= decay_epochs) return gamma_min;
  return 0.5 * (1 + std::cos(std::numbers::pi * double(epoch) / double(decay_epochs))) * (1 - gamma_min) + gamma_min;
}

LossResult global_loss(Communicator& comm, const at::Tensor& image, const at::Tensor& text, const at::Tensor& log_scale,
                       std::span<const std::int64_t> global_ids, double gamma, const NormalizerTable& table,
                       const GlobalLossOptions& o) {
  at::NoGradGuard no_grad;
  const auto b = image.size(0), global = b * comm.size(), first = b * comm.rank();
  check_pairs(global);
  TORCH_CHECK(std::int64_t(global_ids.size()) == global, "global_loss: ids do not match the batch");
  const at::Tensor scale = log_scale.detach().exp().to(image.scalar_type()), tau = 1 / scale;
  const Gathered all = gather_features(comm, image, text);
  const at::Tensor diagonal = (all.image * all.text).sum(1), own_diagonal = diagonal.narrow(0, first, b);
  const at::Tensor own = own_columns(comm, image);

  Side sides[2] = {make_side(image, all.text, own_diagonal, scale, own, global),
                   make_side(text, all.image, own_diagonal, scale, own, global)};
  const at::Tensor local_ids =
      to_device(at::tensor(at::ArrayRef<std::int64_t>(global_ids.data() + first, b), at::kLong), image.device());
  sides[0].log_u = moving_average(table.image.index_select(0, local_ids), sides[0].log_g, gamma);
  sides[1].log_u = moving_average(table.text.index_select(0, local_ids), sides[1].log_g, gamma);
  const at::Tensor log_u = gather_scalars(comm, sides[0].log_u, sides[1].log_u);

  // P_ij = X_ij / (u_i + eps) by rows for local anchors, and by columns for all anchors of the other side.
  const at::Tensor log_u_eps = at::logaddexp(log_u, at::full({}, std::log(o.eps), log_u.options()));
  at::Tensor rows_sum[2], weights[2], total, moment;
  for (int a = 0; a < 2; ++a) {
    const Side& s = sides[a];
    const at::Tensor by_row = (s.margin - log_u_eps[a].narrow(0, first, b).unsqueeze(1)).exp();
    const at::Tensor column_margin = s.similarity - diagonal.unsqueeze(0);
    const at::Tensor by_column = (column_margin * scale - log_u_eps[1 - a].unsqueeze(0)).exp().scatter(1, own, 0.0);
    rows_sum[a] = by_row.sum(1);
    weights[a] = by_row + by_column;
    const at::Tensor sum = weights[a].sum();
    const at::Tensor m = ((s.similarity - own_diagonal.unsqueeze(1)) * by_row + column_margin * by_column).sum();
    total = a ? total + sum : sum;
    moment = a ? moment + m : m;
  }
  const double pairs = double(b) * double(global - 1);
  const at::Tensor r = (rows_sum[0] + rows_sum[1]).unsqueeze(1);
  const at::Tensor c = o.multiply_tau ? at::full({}, 1 / (2 * pairs), image.options()) : scale / (2 * pairs);

  LossResult result;
  result.log_u = log_u;
  result.mean_log_u = log_u.mean();
  const at::Tensor local_log_u = 0.5 * (sides[0].log_u + sides[1].log_u).mean();
  result.d_image = c * (at::matmul(weights[0], all.text) - r * text);
  result.d_text = c * (at::matmul(weights[1], all.image) - r * image);
  const at::Tensor d = moment / (2 * pairs), mean = total / (2 * pairs);
  if (o.multiply_tau) {
    result.loss = tau * (mean + o.rho + local_log_u);
    result.d_log_scale = (o.exact_tau_gradient ? 0.5 * d : d) - tau * (o.rho + local_log_u);
  } else {
    result.loss = mean;
    result.d_log_scale = scale * d;
  }
  return result;
}

LossResult mini_batch_loss(Communicator& comm, const at::Tensor& image, const at::Tensor& text,
                           const at::Tensor& log_scale) {
  at::NoGradGuard no_grad;
  const auto b = image.size(0);
  check_pairs(b * comm.size());
  const at::Tensor scale = log_scale.detach().exp().to(image.scalar_type());
  const Gathered all = gather_features(comm, image, text);
  const at::Tensor own = own_columns(comm, image);
  const at::Tensor similarity[2] = {at::matmul(image, all.text.t()), at::matmul(text, all.image.t())};
  const at::Tensor lse[2] = {at::logsumexp(similarity[0] * scale, {1}), at::logsumexp(similarity[1] * scale, {1})};
  const at::Tensor all_lse = gather_scalars(comm, lse[0], lse[1]);

  LossResult result;
  at::Tensor weights[2], d_scale;
  const at::Tensor one = at::ones_like(own, similarity[0].options());
  for (int a = 0; a < 2; ++a) {
    const at::Tensor& s = similarity[a];
    const at::Tensor by_row = (s * scale - lse[a].unsqueeze(1)).exp().scatter_add(1, own, -one);
    const at::Tensor by_column = (s * scale - all_lse[1 - a].unsqueeze(0)).exp().scatter_add(1, own, -one);
    weights[a] = by_row + by_column;
    const at::Tensor loss = (lse[a] - scale * s.gather(1, own).squeeze(1)).mean() / 2, m = (by_row * s).sum();
    result.loss = a ? result.loss + loss : loss;
    d_scale = a ? d_scale + m : m;
  }
  const at::Tensor c = scale / (2 * double(b));
  result.d_image = c * at::matmul(weights[0], all.text);
  result.d_text = c * at::matmul(weights[1], all.image);
  result.d_log_scale = c * d_scale;
  return result;
}

}  // namespace trireme::fastclip
