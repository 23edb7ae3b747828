// The two MLPs of DLRM and what lies between them, by the names of facebookresearch/dlrm's state_dict.
#pragma once
#include "framework/nn/parameters.h"

#include <functional>
#include <string>
#include <vector>

namespace trireme::dlrm {

struct Shape {
  std::int64_t dense = 0, dim = 0, tables = 0;
  std::vector<std::int64_t> bottom, top;  // hidden widths; the bottom ends in dim, the top in 1
  std::int64_t interactions() const { return dim + (tables + 1) * tables / 2; }
};

// Linear layers with ReLU between them: weights normal with variance 2 / (in + out), biases with 1 / out.
class Mlp {
 public:
  // widths: of the input, of each layer. Weights are PREFIX.0.weight, PREFIX.2.weight, ... as in a Sequential whose odd
  // members are activations.
  Mlp(nn::Parameters& params, const std::string& prefix, const std::vector<std::int64_t>& widths, bool relu_at_end);
  at::Tensor operator()(at::Tensor x) const;

 private:
  std::vector<at::Tensor> weights_, biases_;
  bool relu_at_end_;
};

class Model {
 public:
  Model(const Shape& shape, nn::Parameters& params);
  const Shape& shape() const { return shape_; }
  at::Tensor bottom(const at::Tensor& dense) const { return bottom_(dense); }  // [n, dense] -> [n, dim]
  // rows [tables, n, dim], table k at place[k], i64 -> logits [n]. `known`: see nn::interaction.
  at::Tensor top(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& place,
                 std::function<void(const at::Tensor&)> known = {}) const;

 private:
  Shape shape_;
  Mlp bottom_, top_;
};

std::string table_name(std::int64_t k);  // emb_l.K.weight

}  // namespace trireme::dlrm
