#include "framework/losses/contrastive.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <algorithm>
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

// Values of a similarity tile: on a CPU it stays in cache, on a GPU it fills the device.
std::int64_t tile_values(const at::Tensor& t) { return t.is_cpu() ? std::int64_t(1) << 18 : std::int64_t(1) << 26; }

// One side's similarities / tau on this rank, [b, B]: local anchors against all partners. As columns they are also all
// anchors of the other side against the local partners. Rows come a tile at a time and are computed again in each
// sweep, so that no [b, B] matrix is kept, unless one tile is all of it.
class Similarity {
 public:
  Similarity(const at::Tensor& mine, const at::Tensor& partners, const at::Tensor& scale)
      : scaled_(mine * scale),
        partners_(partners),
        rows_(std::clamp<std::int64_t>(tile_values(mine) / partners.size(0), 1, mine.size(0))) {}

  // visit(tile [n, B], first row, n). The tile is to be left as it is.
  template <class Visit>
  void sweep(const Visit& visit) {
    const auto b = scaled_.size(0);
    for (std::int64_t first = 0; first < b; first += rows_) {
      const auto n = std::min(rows_, b - first);
      const at::Tensor tile = whole_.defined() ? whole_ : make(first, n);
      if (n == b) whole_ = tile;
      visit(tile, first, n);
    }
  }
  // From now on the pairs themselves, at these columns [b, 1], are -inf.
  void leave_out(const at::Tensor& own) { own_ = own; }

 private:
  at::Tensor make(std::int64_t first, std::int64_t n) const {
    at::Tensor tile = at::mm(scaled_.narrow(0, first, n), partners_.t());
    return own_.defined() ? tile.scatter_(1, own_.narrow(0, first, n), -infinity) : tile;
  }

  at::Tensor scaled_, partners_, own_, whole_;
  std::int64_t rows_;
};

// Of the pair weights W [b, B] of one side, what gradients need.
struct Weighted {
  at::Tensor features;        // [b, d]: W times the partners
  at::Tensor by_row, by_col;  // [b] and [B]: sums of the weights that anchors here, and anchors elsewhere, give
  at::Tensor mean;            // scalar: similarities by the weights of the anchors here; NaN where pairs are left out
};

// W_ij = exp(s_ij - row_i) + exp(s_ij - column_j).
Weighted weigh(Similarity& similarity, const at::Tensor& row, const at::Tensor& column, const at::Tensor& partners) {
  const auto b = row.size(0), d = partners.size(1);
  Weighted w{at::empty({b, d}, partners.options()), at::empty({b}, row.options()), at::zeros_like(column),
             at::zeros({}, row.options())};
  similarity.sweep([&](const at::Tensor& tile, std::int64_t first, std::int64_t n) {
    at::Tensor rows = (tile - row.narrow(0, first, n).unsqueeze(1)).exp_(), out = w.features.narrow(0, first, n);
    w.by_row.narrow(0, first, n).copy_(rows.sum(1));
    w.mean.add_(at::dot(rows.view(-1), tile.view(-1)));
    const at::Tensor columns = (tile - column.unsqueeze(0)).exp_();
    w.by_col.add_(columns.sum(0));
    at::mm_out(out, rows.add_(columns), partners);
  });
  return w;
}

// Similarities are f32 (f64) products also where the model's are not: 1/tau makes 1e-4 of a cosine 1 % of a weight.
class Exactly {
  c10::impl::ExcludeDispatchKeyGuard no_autocast_{c10::autocast_dispatch_keyset};
  at::NoGradGuard no_grad_;
};

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
  const Exactly exactly;
  const auto b = image.size(0), global = b * comm.size(), first = b * comm.rank();
  check_pairs(global);
  TORCH_CHECK(std::int64_t(global_ids.size()) == global, "global_loss: ids do not match the batch");
  const at::Tensor scale = log_scale.detach().exp().to(image.scalar_type()), tau = 1 / scale;
  const Gathered all = gather_features(comm, image, text);
  const at::Tensor diagonal = (all.image * all.text).sum(1), own_diagonal = diagonal.narrow(0, first, b);
  const at::Tensor scaled_diagonal = diagonal * scale, own = own_columns(comm, image);
  const at::Tensor local_ids =
      to_device(at::tensor(at::ArrayRef<std::int64_t>(global_ids.data() + first, b), at::kLong), image.device());

  // First sweep: log g, and with it log u of the local anchors.
  Similarity sides[2] = {{image, all.text, scale}, {text, all.image, scale}};
  at::Tensor local_log_u[2];
  for (int a = 0; a < 2; ++a) {
    at::Tensor log_g = at::empty_like(own_diagonal);
    sides[a].leave_out(own);
    sides[a].sweep([&](const at::Tensor& tile, std::int64_t at, std::int64_t n) {
      log_g.narrow(0, at, n).copy_(at::logsumexp(tile, {1}));
    });
    log_g.sub_(scaled_diagonal.narrow(0, first, b)).sub_(std::log(double(global - 1)));
    local_log_u[a] = moving_average((a ? table.text : table.image).index_select(0, local_ids), log_g, gamma);
  }
  const at::Tensor log_u = gather_scalars(comm, local_log_u[0], local_log_u[1]);

  // Second sweep: P_ij = X_ij / (u_i + eps) by rows for local anchors, and by columns for all anchors of the other
  // side. The moment, sum of (s_ij - s_ii) P_ij, comes from the products with the features.
  const at::Tensor shift =
      at::logaddexp(log_u, at::full({}, std::log(o.eps), log_u.options())) + scaled_diagonal.unsqueeze(0);
  const Weighted w[2] = {weigh(sides[0], shift[0].narrow(0, first, b), shift[1], all.text),
                         weigh(sides[1], shift[1].narrow(0, first, b), shift[0], all.image)};
  const at::Tensor by_row = w[0].by_row + w[1].by_row, by_col = w[0].by_col + w[1].by_col;
  const at::Tensor total = by_row.sum() + by_col.sum();
  const at::Tensor moment = (image * w[0].features).sum() + (text * w[1].features).sum() -
                            (own_diagonal * by_row).sum() - (diagonal * by_col).sum();

  const double pairs = double(b) * double(global - 1);
  const at::Tensor r = by_row.unsqueeze(1);
  const at::Tensor c = o.multiply_tau ? at::full({}, 1 / (2 * pairs), image.options()) : scale / (2 * pairs);
  LossResult result;
  result.log_u = log_u;
  result.mean_log_u = log_u.mean();
  const at::Tensor mean_here = 0.5 * (local_log_u[0] + local_log_u[1]).mean();
  result.d_image = c * (w[0].features - r * text);
  result.d_text = c * (w[1].features - r * image);
  const at::Tensor d = moment / (2 * pairs), mean = total / (2 * pairs);
  if (o.multiply_tau) {
    result.loss = tau * (mean + o.rho + mean_here);
    result.d_log_scale = (o.exact_tau_gradient ? 0.5 * d : d) - tau * (o.rho + mean_here);
  } else {
    result.loss = mean;
    result.d_log_scale = scale * d;
  }
  return result;
}

LossResult mini_batch_loss(Communicator& comm, const at::Tensor& image, const at::Tensor& text,
                           const at::Tensor& log_scale) {
  const Exactly exactly;
  const auto b = image.size(0);
  check_pairs(b * comm.size());
  const at::Tensor scale = log_scale.detach().exp().to(image.scalar_type());
  const Gathered all = gather_features(comm, image, text);
  const at::Tensor own = own_columns(comm, image);
  Similarity sides[2] = {{image, all.text, scale}, {text, all.image, scale}};
  at::Tensor lse[2], pairs[2];
  for (int a = 0; a < 2; ++a) {
    lse[a] = at::empty({b}, image.options());
    pairs[a] = at::empty({b}, image.options());
    sides[a].sweep([&](const at::Tensor& tile, std::int64_t at, std::int64_t n) {
      lse[a].narrow(0, at, n).copy_(at::logsumexp(tile, {1}));
      pairs[a].narrow(0, at, n).copy_(tile.gather(1, own.narrow(0, at, n)).squeeze(1));
    });
  }
  const at::Tensor all_lse = gather_scalars(comm, lse[0], lse[1]);
  const Weighted w[2] = {weigh(sides[0], lse[0], all_lse[1], all.text), weigh(sides[1], lse[1], all_lse[0], all.image)};
  const double per_pair = 1 / (2 * double(b));
  const at::Tensor positive = pairs[0].sum() + pairs[1].sum();
  LossResult result;
  result.loss = (lse[0].sum() + lse[1].sum() - positive) * per_pair;
  result.d_log_scale = (w[0].mean + w[1].mean - positive) * per_pair;
  // A pair itself counts -1 in its row and -1 in its column.
  result.d_image = scale * per_pair * (w[0].features - 2 * text);
  result.d_text = scale * per_pair * (w[1].features - 2 * image);
  return result;
}

}  // namespace trireme::fastclip
