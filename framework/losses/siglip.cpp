// SigLIP (arXiv 2303.15343): every pair is a binary question of its own, so that no scalar is gathered at all.
#include "framework/base/tensor.h"
#include "framework/losses/similarity.h"

#include <ATen/ATen.h>

namespace trireme::fastclip {

LossResult siglip_loss(Communicator& comm, const Rows& rows, const at::Tensor& log_scale, const at::Tensor& bias,
                       Reduction reduction) {
  const Exactly exactly;
  const auto b = rows.image.size(0), d = rows.image.size(1), k = std::int64_t(comm.size());
  check_pairs(b * k);
  const auto type = rows.image.scalar_type();
  const at::Tensor scale = log_scale.detach().exp().to(type), shift = bias.detach().to(type);
  const Gathered all = gather_rows(comm, rows.image, rows.text);
  const at::Tensor own = own_columns(comm, rows.image);
  const bool send = reduction == Reduction::reduce_scatter;
  Similarity sides[2] = {{rows.image * scale, all.text}, {rows.text * scale, all.image}};
  at::Tensor pulled[2], away = send ? at::zeros({k * b, d}, rows.image.options()) : at::Tensor();
  LossResult result;
  result.loss = at::zeros({}, scale.options());
  at::Tensor moment = at::zeros_like(result.loss), sum = at::zeros_like(result.loss);
  for (int a = 0; a < (send ? 1 : 2); ++a) {
    const at::Tensor &partners = a ? all.image : all.text, &anchors = a ? rows.text : rows.image;
    pulled[a] = at::empty_like(anchors);
    sides[a].leave_out_equal(rows.captions, own);
    sides[a].sweep([&](const at::Tensor& tile, std::int64_t first, std::int64_t n) {
      const at::Tensor at_pair = own.narrow(0, first, n), z = tile + shift;
      at::Tensor g = at::sigmoid(z);  // dL/dz: one less at the pairs
      g.scatter_add_(1, at_pair, at::full({n, 1}, -1, g.options()));
      at::Tensor out = pulled[a].narrow(0, first, n);
      at::mm_out(out, g, partners);
      if (a) return;
      // log(1 + e^z), and log(1 + e^-z) = log(1 + e^z) - z at the pairs.
      result.loss.add_(-at::log_sigmoid(-z).sum() - z.gather(1, at_pair).sum());
      moment.add_(at::dot(g.view(-1), tile.view(-1)));
      sum.add_(g.sum());
      if (send) away.addmm_(g.t(), anchors.narrow(0, first, n));
    });
  }
  if (send) {
    pulled[1] = at::empty_like(rows.text);
    comm.reduce_scatter(buffer_of(away), buffer_of(pulled[1]), Op::sum).wait();
  }
  result.loss = result.loss / double(b);
  result.d_log_scale = moment / double(b);
  result.d_bias = sum / double(b);
  result.d_image = scale / double(b) * pulled[0];
  result.d_text = scale / double(b) * pulled[1];
  return result;
}

}  // namespace trireme::fastclip
