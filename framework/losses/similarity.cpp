#include "framework/losses/similarity.h"

#include "framework/base/tensor.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

namespace trireme::fastclip {

struct Exactly::Guards {
  c10::impl::ExcludeDispatchKeyGuard no_autocast{c10::autocast_dispatch_keyset};
  at::NoGradGuard no_grad;
};
Exactly::Exactly() : guards_(std::make_unique<Guards>()) {}
Exactly::~Exactly() = default;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// Values of a similarity tile: on a CPU it stays in cache, on a GPU it fills the device.
std::int64_t tile_values(const at::Tensor& t) { return t.is_cpu() ? std::int64_t(1) << 18 : std::int64_t(1) << 26; }

// exp(tile scale - shift). A shift in f64 is taken off in two parts: rounded at 1/tau it would be 4e-6 of a weight.
at::Tensor exponential(const at::Tensor& tile, const at::Tensor& scale, const at::Tensor& shift) {
  const at::Tensor most = shift.to(tile.scalar_type());
  at::Tensor x = scale.defined() ? at::mul(tile, scale).sub_(most) : at::sub(tile, most);
  if (shift.scalar_type() != tile.scalar_type()) x.sub_((shift - most).nan_to_num(0).to(tile.scalar_type()));
  return x.exp_();
}

at::Tensor part(const at::Tensor& v, std::int64_t first, std::int64_t n) {
  return v.defined() ? v.narrow(0, first, n).unsqueeze(1) : v;
}

// to [b, d]: weights times partners, of anchors here, and with `scalars` of anchors elsewhere. away [B, d]: what the
// anchors here give to the partners.
Weighted weigh(Similarity& similarity, const Exponents& e, const at::Tensor& partners, const at::Tensor& anchors,
               at::Tensor& to, const at::Tensor& away) {
  const auto options = partners.options();
  const at::Tensor by_row = at::empty(e.row.sizes(), options);
  Weighted w{by_row, at::zeros({partners.size(0)}, options), at::empty_like(by_row), at::zeros({}, options)};
  similarity.sweep([&](const at::Tensor& tile, std::int64_t first, std::int64_t n) {
    at::Tensor rows = exponential(tile, part(e.row_scale, first, n), part(e.row, first, n));
    at::Tensor out = to.narrow(0, first, n);
    w.by_row.narrow(0, first, n).copy_(rows.sum(1));
    w.moment.narrow(0, first, n).copy_(at::bmm(rows.unsqueeze(1), tile.unsqueeze(2)).view(-1));
    if (away.defined()) {
      away.addmm_(rows.t(), anchors.narrow(0, first, n));
    } else {
      const at::Tensor columns = exponential(tile, e.column_scale, e.column.unsqueeze(0));
      w.by_column.add_(columns.sum(0));
      if (e.column_moment) w.column_moment.add_(at::dot(columns.view(-1), tile.view(-1)));
      rows.add_(columns);
    }
    at::mm_out(out, rows, partners);
  });
  return w;
}

}  // namespace

Gathered gather_rows(Communicator& comm, const at::Tensor& image, const at::Tensor& text) {
  const auto b = image.size(0), d = image.size(1), k = std::int64_t(comm.size());
  const at::Tensor mine = at::stack({image, text}).contiguous();
  at::Tensor all = at::empty({k, 2, b, d}, mine.options());
  comm.all_gather(buffer_of(mine), buffer_of(all)).wait();
  return {all.select(1, 0).reshape({k * b, d}), all.select(1, 1).reshape({k * b, d})};
}

at::Tensor gather_scalars(Communicator& comm, const at::Tensor& mine) {
  const auto c = mine.size(0), b = mine.size(1), k = std::int64_t(comm.size());
  const at::Tensor sent = mine.contiguous();
  at::Tensor all = at::empty({k, c, b}, mine.options());
  comm.all_gather(buffer_of(sent), buffer_of(all)).wait();
  return all.permute({1, 0, 2}).reshape({c, k * b});
}

at::Tensor own_columns(const Communicator& comm, const at::Tensor& rows) {
  const auto b = rows.size(0);
  return (at::arange(b, rows.options().dtype(at::kLong)) + comm.rank() * b).unsqueeze(1);
}

Similarity::Similarity(at::Tensor anchors, at::Tensor partners)
    : anchors_(std::move(anchors)),
      partners_(std::move(partners)),
      rows_(std::clamp<std::int64_t>(tile_values(anchors_) / partners_.size(0), 1, anchors_.size(0))) {}

void Similarity::leave_out_equal(const at::Tensor& captions, const at::Tensor& own) {
  if (captions.defined()) captions_ = captions, pair_ = own, whole_ = at::Tensor();
}

at::Tensor Similarity::tile(std::int64_t first) {
  if (whole_.defined()) return whole_;
  const auto n = std::min(rows_, anchors_.size(0) - first);
  at::Tensor made = at::mm(anchors_.narrow(0, first, n), partners_.t());
  if (captions_.defined()) {
    const at::Tensor own = pair_.narrow(0, first, n);
    at::Tensor equal = captions_.index_select(0, own.squeeze(1)).unsqueeze(1) == captions_.unsqueeze(0);
    made.masked_fill_(equal.scatter_(1, own, false), left_out);
  }
  if (own_.defined()) made.scatter_(1, own_.narrow(0, first, n), left_out);
  if (n == anchors_.size(0)) whole_ = made;
  return made;
}

at::Tensor log_sums(Similarity& side, const at::Tensor& scale) {
  std::vector<at::Tensor> sums;
  side.sweep([&](const at::Tensor& tile, std::int64_t first, std::int64_t n) {
    const at::Tensor x = scale.defined() ? tile * part(scale, first, n) : tile, most = x.amax({1}, /*keepdim=*/true);
    sums.push_back(most.squeeze(1).to(at::kDouble) + (x - most).exp_().sum(1).to(at::kDouble).log());
  });
  return sums.size() == 1 ? sums[0] : at::cat(sums);
}

at::Tensor log_means(Similarity& side, const at::Tensor& scale, const at::Tensor& diagonal, std::int64_t n) {
  const at::Tensor sums = log_sums(side, scale);
  return at::where(sums < left_out / 1e10, at::full({}, -infinity, sums.options()),
                   sums - diagonal - std::log(double(n)));
}

at::Tensor mean_visited(const at::Tensor& log_u) {
  return at::where(at::isneginf(log_u), at::zeros({}, log_u.options()), log_u).mean();
}

Pulled pull(Communicator& comm, Similarity (&sides)[2], const Exponents (&exponents)[2], const Rows& rows,
            const Gathered& all, Reduction reduction) {
  const bool send = reduction == Reduction::reduce_scatter;
  const auto b = rows.image.size(0), d = rows.image.size(1), k = std::int64_t(comm.size());
  Pulled p;
  p.image = at::empty({b, d}, rows.image.options());
  p.text = at::empty_like(p.image);
  const at::Tensor to_text = send ? at::zeros({k * b, d}, rows.image.options()) : at::Tensor(),
                   to_image = send ? at::zeros_like(to_text) : at::Tensor();
  p.side[0] = weigh(sides[0], exponents[0], all.text, rows.image, p.image, to_text);
  p.side[1] = weigh(sides[1], exponents[1], all.image, rows.text, p.text, to_image);
  if (send) {
    const at::Tensor away = at::stack({to_image.view({k, b, d}), to_text.view({k, b, d})}, 1).contiguous();
    at::Tensor mine = at::empty({2, b, d}, away.options());
    comm.reduce_scatter(buffer_of(away), buffer_of(mine), Op::sum).wait();
    p.image.add_(mine[0]);
    p.text.add_(mine[1]);
  }
  return p;
}

}  // namespace trireme::fastclip
