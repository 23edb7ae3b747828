// Softmax cross-entropies over the global batch: OpenCLIP's loss, and distillation from a frozen reference.
#include "framework/losses/similarity.h"

#include <ATen/ATen.h>

namespace trireme::fastclip {
namespace {

// Normalised: exp(tile - row) are softmax probabilities.
struct Softmax {
  Similarity sides[2];
  at::Tensor log_sum[2];  // [b]
  at::ScalarType type;

  Softmax(const Gathered& all, const at::Tensor& image, const at::Tensor& text, const at::Tensor& scale)
      : sides{{image * scale, all.text}, {text * scale, all.image}}, type(image.scalar_type()) {}
  void normalise() {
    for (int a = 0; a < 2; ++a) log_sum[a] = log_sums(sides[a]).to(type);
  }
  Pulled pulled(Communicator& comm, const Rows& rows, const Gathered& all, Reduction reduction) {
    const at::Tensor known =
        reduction == Reduction::scalars ? gather_scalars(comm, at::stack({log_sum[0], log_sum[1]})) : at::Tensor();
    const auto away = [&](int a) { return known.defined() ? known[a] : at::Tensor(); };
    return pull(comm, sides, {{.row = log_sum[0], .column = away(1)}, {.row = log_sum[1], .column = away(0)}}, rows,
                all, reduction);
  }
};

at::Tensor total(const Pulled& p) { return p.side[0].moment.sum() + p.side[1].moment.sum(); }

}  // namespace

LossResult mini_batch_loss(Communicator& comm, const Rows& rows, const at::Tensor& log_scale, Reduction reduction) {
  const Exactly exactly;
  const auto b = rows.image.size(0);
  check_pairs(b * comm.size());
  const at::Tensor scale = log_scale.detach().exp().to(rows.image.scalar_type());
  const Gathered all = gather_rows(comm, rows.image, rows.text);
  Softmax student(all, rows.image, rows.text, scale);
  if (rows.captions.defined())
    for (auto& side : student.sides) side.leave_out_equal(rows.captions, own_columns(comm, rows.image));
  student.normalise();
  const Pulled w = student.pulled(comm, rows, all, reduction);
  // A pair itself counts -1 in its row and -1 in its column.
  const double per_pair = 1 / (2 * double(b));
  const at::Tensor positive = 2 * scale * (rows.image * rows.text).sum();
  LossResult result;
  result.loss = (student.log_sum[0].sum() + student.log_sum[1].sum() - positive) * per_pair;
  result.d_log_scale = (total(w) - positive) * per_pair;
  result.d_image = scale * per_pair * (w.image - 2 * rows.text);
  result.d_text = scale * per_pair * (w.text - 2 * rows.image);
  return result;
}

LossResult distillation_loss(Communicator& comm, const Rows& rows, const at::Tensor& log_scale, double teacher_scale,
                             Reduction reduction) {
  const Exactly exactly;
  const auto b = rows.image.size(0);
  check_pairs(b * comm.size());
  const at::Tensor scale = log_scale.detach().exp().to(rows.image.scalar_type());
  const Gathered all = gather_rows(comm, rows.image, rows.text),
                 reference = gather_rows(comm, rows.reference_image, rows.reference_text);
  Softmax student(all, rows.image, rows.text, scale),
      teacher(reference, rows.reference_image, rows.reference_text, at::full({}, teacher_scale, scale.options()));
  student.normalise();
  teacher.normalise();
  at::Tensor cross = at::zeros({}, scale.options());
  for (int a = 0; a < 2; ++a)
    teacher.sides[a].sweep([&](const at::Tensor& tile, std::int64_t first, std::int64_t n) {
      const at::Tensor p = (tile - teacher.log_sum[a].narrow(0, first, n).unsqueeze(1)).exp_();
      cross.add_(at::dot(p.view(-1), student.sides[a].tile(first).view(-1)));
    });
  const Pulled w = student.pulled(comm, rows, all, reduction), t = teacher.pulled(comm, rows, all, reduction);
  const double per_pair = 1 / (2 * double(b));
  LossResult result;
  result.loss = (student.log_sum[0].sum() + student.log_sum[1].sum() - cross) * per_pair;
  result.d_log_scale = (total(w) - cross) * per_pair;
  result.d_image = scale * per_pair * (w.image - t.image);
  result.d_text = scale * per_pair * (w.text - t.text);
  return result;
}

}  // namespace trireme::fastclip
