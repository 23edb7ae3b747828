#include "framework/recipe.h"

#include "comm/error.h"
#include "framework/context.h"
#include "framework/optim/schedule.h"

namespace trireme {

at::Tensor Recipe::loss(const Batch&, Context&) {
  throw Error(ExitCode::bug, "recipe", "overrides neither loss() nor backward()");
}

at::Tensor Recipe::backward(const Batch& batch, Context& context) {
  at::Tensor l = loss(batch, context);
  context.backward({&l, 1});
  return l.detach();
}

void Recipe::predict(Context& context, std::ostream&) {
  throw UsageError("--predictions", "the recipe " + context.config().recipe + " has none", "leave it out");
}

void Recipe::update(const Step& s, Context& context) { context.step_optimizers(s); }

GroupSettings Recipe::group(std::string_view name, const Step& s, const Context& context) const {
  return {s.lr, name == "decay" ? context.config().optimizer.weight_decay : 0.0};
}

}  // namespace trireme
