// What a recipe is. A recipe owns a model, its data and its loss; the framework owns the loop, the reducer, the
// optimizer, precision, checkpoints, metrics and the command line.
//
// Gradient convention: loss() returns this rank's share, so that the SUM over ranks is the global loss. The reducer
// sums, never averages; the backward of an all-gather is a reduce-scatter sum.
#pragma once
#include "comm/archive.h"
#include "comm/communicator.h"
#include "comm/registry.h"
#include "data/dataset.h"
#include "framework/base/param.h"
#include "framework/config/config.h"
#include "framework/metrics/charts.h"

#include <iosfwd>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

class Context;
struct Plan;
struct TrainConfig;

class Recipe {
 public:
  virtual ~Recipe() = default;

  // Its configuration keys, at the top level of the YAML beside the framework's.
  virtual void fields(Fields&) = 0;
  // Builds model and data. Called once on every rank, after the fields are read.
  virtual void setup(Context&) = 0;
  virtual std::vector<Param> parameters() = 0;
  // Weights came in from elsewhere, at step 0: puts right those that the configuration speaks of.
  virtual void weights_loaded() {}

  virtual const Dataset& train_data() = 0;
  virtual std::vector<std::int64_t> train_ids() = 0;

  // A scalar on the graph: this rank's share of the global loss. May talk to other ranks.
  virtual at::Tensor loss(const Batch&, Context&);
  // Computes gradients by Context::backward and returns the (detached) share. Closed forms override this.
  virtual at::Tensor backward(const Batch&, Context&);
  // Communicators of its own besides "world" (Context::comm): duplicates of the world, made in sorted order.
  virtual std::vector<std::string> communicators() const { return {}; }
  // True: Context::next is set during a step, so that what the next one needs of other ranks can be on its way.
  virtual bool looks_ahead() const { return false; }
  // True: backward() gets all rows of the step and honours Context::accumulate() itself (contrastive losses).
  virtual bool whole_batch() const { return false; }

  // May a step on a GPU be recorded once and replayed for all batches of equal shapes? Then backward() and update()
  // enqueue the same work in every step: they find the batch's columns on the device, do not wait for it, and take what
  // changes from step to step from Context::replayed(). Empty: it may; else why not, for the user; without a value, as
  // by default, it may not (yet) and nothing is said. The same on all ranks.
  virtual std::optional<std::string> why_not_recorded(const Context&) const { return std::nullopt; }
  // Must the host see what a recorded step has received before it counts? Then it is recorded as two graphs, between
  // which the host waits for the device and asks accept(): with all gradients there and nothing updated. False, on all
  // ranks: the step is taken again, not recorded.
  virtual bool host_looks() const { return false; }
  virtual bool accept(Context&) { return true; }
  // After each step. recorded: backward() and update() may not have been called for it, their work was replayed.
  virtual void step_taken(bool recorded, Context&) { (void)recorded; }
  // Before such a step, whose columns nobody will look at: DataError. `next`: as Context::next, which is null in it.
  // Columns may lie on the device already.
  virtual void ready(const Batch& batch, const Batch* next) { (void)batch, (void)next; }

  // After the agreed finite check. Sparse rows are applied here, never inside backward.
  virtual void update(const Step&, Context&);
  virtual GroupSettings group(std::string_view name, const Step&, const Context&) const;

  // Collective. Metrics without the `eval/` prefix, equal on all ranks.
  virtual std::map<std::string, double> evaluate(Context&) { return {}; }
  // Collective. What the model says of each held-out sample, a line of CSV each below a heading, from rank 0.
  virtual void predict(Context&, std::ostream& out);
  // The metric (higher is better) that picks the best checkpoint; keys printed in the `done:` line.
  virtual std::string best_metric() const { return {}; }
  virtual std::vector<std::string> headline_metrics() const { return {}; }
  // How its metrics are shown, in this order; what is not named here is shown by its name.
  virtual std::vector<MetricChart> charts() const { return {}; }

  // State besides parameters and optimizer that changes the next step. Written in update() only, under
  // Context::skip(), so that a skipped step changes nothing.
  virtual void state(Archive&) {}
  // Which weights these are, for commands that know a model by itself: "clip"; empty: the recipe alone knows them.
  virtual std::string_view model() const { return {}; }
  // What samples_per_s counts, for the console.
  virtual std::string unit() const { return "samples"; }
  // What a rank of `ranks` will hold and send, by formula; also before setup(), where the configuration says how much
  // data there will be. False: not known.
  virtual bool plan(Plan&, int ranks, const TrainConfig&) const { return false; }
  // Of training on one sample: forward and backward of all weights, multiply-adds x 2; after setup(). 0: not known.
  virtual double flops_per_sample() const { return 0; }
  // Tells the peer-format exporters and reports what this model is; JSON, may be empty.
  virtual std::string describe() const { return "{}"; }
};

using Recipes = Factories<Recipe>;

}  // namespace trireme
