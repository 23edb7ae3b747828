// DLRM (Naumov et al., arXiv 1906.00091) with hybrid parallelism: each embedding table lies on one rank, the MLPs on
// all. A step: ids to the tables' owners, rows to the samples while the bottom MLP computes, interaction and top MLP;
// gradients of the rows back while the bottom MLP's backward computes; each owner updates the rows it looked up.
#include "comm/error.h"
#include "framework/base/tensor.h"
#include "framework/context.h"
#include "framework/losses/binary_loss.h"
#include "framework/micro_batch.h"
#include "framework/models/binary.h"
#include "framework/plan.h"
#include "recipes/dlrm/charts.h"
#include "recipes/dlrm/coder.h"
#include "recipes/dlrm/exchange_switch.h"
#include "recipes/dlrm/ids_ahead.h"
#include "recipes/dlrm/link.h"
#include "recipes/dlrm/plan.h"
#include "recipes/dlrm/whole_job.h"

#include <cstdio>
#include <numeric>
#include <ostream>

#include <ATen/autocast_mode.h>
#include <nlohmann/json.hpp>
#include <torch/csrc/autograd/autograd.h>

namespace trireme::dlrm {
namespace {

class Dlrm : public Recipe, public ExchangeSwitch {
 public:
  void fields(Fields& f) override { config_.fields(f); }

  void setup(Context& c) override {
    check_training(config_.compression, c.config());
    data_ = open_data(config_.data);
    const auto tables = std::int64_t(data_->tables().size());
    const Shape shape = shape_of(config_.model, config_.data, data_->dense(), tables);
    coder_.emplace(config_.compression, config_.data, tables);
    nn::Parameters params(std::uint64_t(c.config().seed), c.param_type(), c.device());
    model_.emplace(shape, params);
    tables_.emplace(data_->tables(), shape.dim, config_.embedding.rule(),
                    owners_of(config_, *data_, shape.dim, c.size(), c.config(), memory_of_ranks(c)), c);
    ids_.emplace(*tables_, c);
    params_ = params.all();
    for (auto& p : tables_->parameters()) params_.push_back(std::move(p));
  }

  std::vector<Param> parameters() override { return params_; }
  const Dataset& train_data() override { return *data_; }
  std::vector<std::int64_t> train_ids() override {
    const auto part = data_->train();
    std::vector<std::int64_t> ids(std::size_t(part.size()));
    std::iota(ids.begin(), ids.end(), part.begin);
    return ids;
  }
  bool looks_ahead() const override { return true; }
  std::vector<std::string> communicators() const override { return ShardedTables::communicators(); }

  at::Tensor backward(const Batch& batch, Context& c) override {
    if (ids_->at_begin()) tables_->forget();
    coder_->run_length(c.steps);
    begin_once(batch, c);
    const auto gradient_known = [&](const at::Tensor& g) { tables_->start_return(g, coder_->backward(true)); };
    const at::Tensor label = to_device(batch.columns.at("label"), c.device()).to(c.param_type());
    const at::Tensor logits = forward(batch, c.recorded() ? ids_->recorded(batch) : ids_->take(batch), c,
                                      coder_->forward(tables_->mine(), c.now.step, true), gradient_known);
    const at::Tensor share = binary_loss(logits.to(c.param_type()), label.view({-1}), double(label.size(0) * c.size()));
    c.backward({&share, 1});
    tables_->finish_return();
    if (c.recorded()) ids_->join_next();
    return share.detach() + tables_->blame();
  }

  void update(const Step& s, Context& c) override {
    c.step_optimizers(s);
    tables_->update(lr_of_tables(s, c), c.skip(), c.replayed([this, &c] { return lr_of_tables(c.now, c); }));
    if (c.recorded()) ids_->advance();
  }

  std::optional<std::string> why_not_recorded(const Context& c) const override {
    if (!codes()) return "";
    if (c.size() == 1 || !coder_->has_room()) return "the host waits for the sizes of codes";
    if (coder_->simulates() || tables_->stays()) return "codes do not travel";
    if (coder_->factor(c.now.step) != 1) return std::nullopt;  // bounds change still
    return "";
  }
  bool host_looks() const override { return codes(); }
  bool accept(Context&) override { return tables_->accept(); }
  void step_taken(bool recorded, Context& c) override {
    if (recorded && !codes()) tables_->accept();
    report(c);
  }
  void ready(const Batch& batch, const Batch* next) override { ids_->ready(batch, next); }

  std::map<std::string, double> evaluate(Context& c) override {
    Judged judged;
    each_test_batch(c, [&](const auto& batch, const auto& logits, auto own) { add(judged, batch, logits, own); });
    auto metrics = binary_metrics(judged, c.comm("control"));
    if (codes() && c.param_type() == at::kFloat) c.size() == 1 ? add_alone(metrics, c) : add_exchange(metrics, c);
    return metrics;
  }

  void predict(Context& c, std::ostream& out) override {
    if (c.rank() == 0) out << "sample,label,probability\n";
    std::int64_t sample = data_->test().begin;
    each_test_batch(c, [&](const Batch& batch, const at::Tensor& logits, std::int64_t own) {
      Judged mine;
      add(mine, batch, logits, own);
      const Judged all = gathered(mine, c.comm("control"));
      for (std::size_t i = 0; i < all.labels.size(); ++i)
        out << sample++ << ',' << int(all.labels[i]) << ',' << 1 / (1 + std::exp(-all.logits[i])) << '\n';
    });
  }

  std::string best_metric() const override { return "auc"; }
  std::vector<std::string> headline_metrics() const override {
    return {"auc", "accuracy", "bce", "bayes_auc", "forward_ratio", "backward_ratio"};
  }
  std::vector<MetricChart> charts() const override {
    std::vector<std::string> names;
    if (data_ && coder_->forward_on())
      for (const auto& t : data_->tables()) names.push_back(t.name);
    return dlrm_charts(names);
  }

  // f(batch, logits f64 [b], how many rows of it are this rank's own: the last batch may be filled up).
  template <class F>
  void each_test_batch(Context& c, const F& f) {
    const at::NoGradGuard no_grad;
    coder_->run_length(c.steps);
    const auto part = data_->test();
    const std::int64_t most = (part.size() + c.size() - 1) / c.size();  // no batch is larger than the data
    const std::int64_t b = std::max<std::int64_t>(1, std::min(config_.eval_batch / c.size(), most));
    for (std::int64_t first = part.begin; first < part.end; first += b * c.size()) {
      std::vector<std::int64_t> ids;
      for (std::int64_t i = 0; i < b; ++i) ids.push_back(std::min(first + c.rank() * b + i, part.end - 1));
      const Batch batch = data_->read(ids, 0);
      const auto coding = config_.compression.eval ? coder_->forward(tables_->mine(), c.now.step) : nullptr;
      const at::Tensor logits =
          forward(batch, tables_->send_ids(batch.columns.at("ids")), c, coding, {}).to(at::kCPU, at::kDouble);
      f(batch, logits, std::clamp<std::int64_t>(part.end - first - c.rank() * b, 0, b));
    }
  }

  void state(Archive& ar) override {
    std::string identity = data_->identity();
    ar.text("data", identity);
    if (identity != data_->identity())
      throw DataError("data.file", "is other data than this run was started with: " + identity.substr(0, 200),
                      "put it back, or use --fresh to start over");
    if (ar.has("exchange")) ar.text("exchange", exchange_);
    send_as_chosen();
    if (coder_->has_room()) tables_->room_state(ar);
    tables_->state(ar);
  }

  bool plan(Plan& plan, int ranks, const TrainConfig& train) const override {
    return plan_dlrm(plan, config_, ranks, train), true;
  }

  std::string describe() const override {
    nlohmann::json tables = nlohmann::json::array();
    for (std::size_t t = 0; t < data_->tables().size(); ++t) {
      const char c = coder_->bounds().class_of(std::int64_t(t));
      const std::string bound = c == 'T' ? "tight" : c == 'L' ? "loose" : "base";
      tables.push_back({{"name", data_->tables()[t].name},
                        {"rows", data_->tables()[t].rows},
                        {"rank", tables_->owners().of_table[t]},
                        {"codec", coder_->codec_of(std::int64_t(t))},
                        {"bound", bound}});
    }
    nlohmann::json all{{"data", config_.data.file}, {"tables", tables}};
    const auto told = [](const Direction& d) {
      return nlohmann::json{{"choice", d.choice()}, {"raw_ms", d.raw}, {"coded_ms", d.coded}};
    };
    if (measured_) all["exchange"] = {{"forward", told(measured_->forward)}, {"backward", told(measured_->backward)}};
    return all.dump();
  }

  void use(const CompressionConfig& compression, Local local, Context& c) override {
    for (const auto& list : tables_->owners().tables)
      if (list.empty())
        throw UsageError("exchange", "stays local only where every rank holds a table", "use fewer ranks");
    config_.compression = compression;
    coder_.emplace(compression, config_.data, std::int64_t(data_->tables().size()));
    coder_->check_device(c.device(), false);
    tables_->forward().stay(local.forward);
    tables_->backward().stay(local.backward);
    c.record_anew();
  }
  ExchangeRatios take_ratios(Context& c) override {
    std::array<double, 4> all = std::exchange(bytes_, {});
    c.comm("control").all_reduce({all.data(), all.size(), DType::f64}, Op::sum).wait();
    return {all[1] > 0 ? all[0] / all[1] : 0, all[3] > 0 ? all[2] / all[3] : 0};
  }

 private:
  bool codes() const { return coder_->forward_on() || coder_->backward_on(); }

  // Before the first step that this process takes; an evaluation may have what training may not.
  void begin_once(const Batch& batch, Context& c) {
    if (!std::exchange(begun_, true)) coder_->check_device(c.device(), c.saved_text("recipe/data").has_value());
    choose_by_link(batch, c);
  }

  // Once, at the first step of the run: the choice is part of its state, so that a resumed run takes the same bits.
  void choose_by_link(const Batch& batch, Context& c) {
    if (config_.compression.choose != "link" || !exchange_.empty()) return;
    const ExchangeTimes t = time_exchange(*tables_, *coder_, batch.columns.at("ids"), c);
    exchange_ = std::string(t.forward.choice()) + " " + t.backward.choice();
    measured_ = t;
    const bool combined = coder_->combines();
    send_as_chosen();
    char line[200];
    std::snprintf(
        line, sizeof line, "exchange measured: forward raw %.3f ms, coded %.3f; backward raw %.3f, coded %.3f: %s%s",
        t.forward.raw, t.forward.coded, t.backward.raw, t.backward.coded, exchange_.c_str(),
        combined && !coder_->combines() ? "; gradients are not combined, which spares bytes of codes alone" : "");
    c.message(line);
  }
  void send_as_chosen() {
    if (!exchange_.empty()) coder_->send_raw(exchange_.starts_with("raw"), exchange_.ends_with("raw"));
  }

  // Ratios since the last evaluation, and times now.
  void add_exchange(std::map<std::string, double>& metrics, Context& c) {
    std::array<double, 4> all = std::exchange(since_evaluation_, {});
    c.comm("control").all_reduce({all.data(), all.size(), DType::f64}, Op::sum).wait();
    if (all[1] > 0) metrics["forward_ratio"] = all[0] / all[1];
    if (all[3] > 0) metrics["backward_ratio"] = all[2] / all[3];
    std::vector<std::int64_t> ids;
    const std::int64_t b = c.config().batch_size / c.size() / c.config().accumulate;  // as much memory as a pass
    const auto part = data_->train();
    for (std::int64_t i = 0; i < b; ++i) ids.push_back(part.begin + (c.rank() * b + i) % part.size());
    const Batch batch = data_->read(ids, 0);
    const ExchangeTimes t = time_exchange(*tables_, *coder_, batch.columns.at("ids"), c);
    metrics["exchange_raw_ms"] = t.forward.raw + t.backward.raw;
    metrics["exchange_coded_ms"] = t.forward.coded + t.backward.coded;
    add_step(metrics, batch, c);
  }

  // A step but for the MLPs' all-reduce and all updates, which codes do not change: no weight does either.
  void add_step(std::map<std::string, double>& metrics, const Batch& batch, Context& c) {
    std::vector<at::Tensor> trained;
    for (const auto& p : params_)
      if (p.group != "sparse") trained.push_back(p.value);
    if (!std::all_of(trained.begin(), trained.end(), [](const at::Tensor& w) { return w.requires_grad(); })) return;
    const auto known = [&](const at::Tensor& g) { tables_->start_return(g, coder_->backward()); };
    at::autocast::clear_cache();  // of casts without a gradient (Context::without_graph)
    const Direction ms = time_steps(*tables_, c, [&](bool coded) {
      const at::AutoGradMode grad(true);
      coder_->send_raw(!coded, !coded);
      if (coded) send_as_chosen();
      const at::Tensor label = to_device(batch.columns.at("label"), c.device()).to(c.param_type());
      const at::Tensor logits = forward(batch, tables_->send_ids(batch.columns.at("ids")), c,
                                        coder_->forward(tables_->mine(), c.now.step), known);
      const at::Tensor loss =
          binary_loss(logits.to(c.param_type()), label.view({-1}), double(label.size(0) * c.size()));
      return torch::autograd::grad({loss}, trained).front();
    });
    metrics["step_raw_ms"] = ms.raw, metrics["step_coded_ms"] = ms.coded;
  }

  // One rank sends nothing: what (at most 2,048 samples of) a batch of training data would come to, each table a chunk.
  void add_alone(std::map<std::string, double>& metrics, Context& c) {
    std::vector<std::int64_t> ids;
    const std::int64_t first = data_->train().begin,
                       n = std::min({c.config().batch_size, data_->train().size(), std::int64_t(2048)});
    for (std::int64_t i = 0; i < n; ++i) ids.push_back(first + i);
    const Batch batch = data_->read(ids, 0);
    const at::NoGradGuard no_grad;
    tables_->start_fetch(tables_->send_ids(batch.columns.at("ids")), {});
    const at::Tensor rows = tables_->finish_fetch().index_select(0, tables_->places()).cpu();
    std::map<std::string, at::Tensor> weights;
    for (const auto& p : params_)
      if (p.group != "sparse") weights[p.name] = p.value.detach().cpu();
    const at::AutoGradMode grad(true);
    const Looked looked = look_up(model_->shape(), weights, rows, batch.columns.at("dense"), batch.columns.at("label"));
    std::vector<double> bounds;
    std::vector<std::string> codecs;
    for (std::int64_t t = 0; t < rows.size(0); ++t)
      bounds.push_back(coder_->relative(t, c.now.step)), codecs.push_back(coder_->codec_of(t));
    if (coder_->forward_on()) metrics["forward_ratio"] = coded_ratio(looked.rows, codecs, bounds);
    const BackwardConfig& b = config_.compression.backward;
    std::vector<std::int64_t> widths;
    for (const auto& t : data_->tables()) widths.push_back(t.width);
    const at::Tensor gradients =
        b.combine ? combined_for(looked.gradients, batch.columns.at("ids"), widths, 1) : looked.gradients;
    if (coder_->backward_on())
      metrics["backward_ratio"] =
          coded_ratio(gradients, std::vector(codecs.size(), b.codec), std::vector(codecs.size(), b.bound));
  }

  double lr_of_tables(const Step& s, const Context& c) const {
    const double own = config_.embedding.lr, peak = c.config().optimizer.lr;
    return own > 0 ? own * (peak > 0 ? s.lr / peak : 1) : s.lr;
  }

  at::Tensor forward(const Batch& batch, ShardedTables::Ids ids, Context& c, const ShardedTables::CodingOf& coding,
                     const std::function<void(const at::Tensor&)>& gradient_known) {
    tables_->start_fetch(std::move(ids), coding);
    if (gradient_known && coder_->combines()) tables_->combine_gradients();
    if (gradient_known && c.accumulate() == 1) tables_->prepare_update();
    const at::Tensor x = model_->bottom(to_device(batch.columns.at("dense"), c.device()).to(c.param_type()));
    at::Tensor rows = tables_->finish_fetch();
    if (gradient_known && c.recorded()) ids_->send_next();
    if (gradient_known) rows.requires_grad_();
    at::Tensor logits = model_->top(x, rows, tables_->places(), gradient_known);
    if (tables_->settle_fetch()) logits = model_->top(x, rows, tables_->places(), gradient_known);
    return logits;
  }

  static void add(Judged& judged, const Batch& batch, const at::Tensor& logits, std::int64_t n) {
    const auto* l = logits.const_data_ptr<double>();
    const auto* y = batch.columns.at("label").const_data_ptr<float>();
    judged.logits.insert(judged.logits.end(), l, l + n);
    judged.labels.insert(judged.labels.end(), y, y + n);
    if (const auto truth = batch.columns.find("truth"); truth != batch.columns.end()) {
      const auto* t = truth->second.const_data_ptr<float>();
      judged.truth.insert(judged.truth.end(), t, t + n);
    }
  }

  // Sums over ranks of what travelled since the last line of metrics.
  void report(Context& c) {
    const ExchangeBytes f = tables_->forward().take_bytes(), b = tables_->backward().take_bytes();
    c.spared(f.plain - f.sent + b.plain - b.sent);
    for (auto* sum : {&bytes_, &since_evaluation_})
      (*sum)[0] += f.plain, (*sum)[1] += f.sent, (*sum)[2] += b.plain, (*sum)[3] += b.sent;
    if (c.logs_now())
      for (RowExchange* x : {&tables_->forward(), &tables_->backward()})
        if (const auto bad = x->take_bad())
          throw CommError(
              "compressed exchange",
              "a code was damaged up to step " + std::to_string(c.now.step + 1) + ", chunk " + std::to_string(*bad),
              "do all ranks run the same program and configuration?");
    if (!c.logs_now() || !codes()) return;
    std::array<double, 4> all = std::exchange(bytes_, {});
    c.comm("control").all_reduce({all.data(), all.size(), DType::f64}, Op::sum).wait();
    if (all[1] > 0) c.log("forward_ratio", all[0] / all[1]);
    if (all[3] > 0) c.log("backward_ratio", all[2] / all[3]);
    c.log("bound_factor", coder_->factor(c.now.step));
    if (coder_->forward_on()) report_tables(c);
    if (coder_->has_room()) report_room(c);
  }

  void report_room(Context& c) {
    std::array<double, 4> use{};  // forward and backward: room, needed
    Room* rooms[] = {&tables_->forward().room(), &tables_->backward().room()};
    for (std::size_t k = 0; k < 2; ++k) {
      const RoomUse u = rooms[k]->take_use();
      use[2 * k] = u.room, use[2 * k + 1] = u.needed;
    }
    c.comm("control").all_reduce({use.data(), use.size(), DType::f64}, Op::sum).wait();
    for (std::size_t k = 0; k < 2; ++k) {
      if (use[2 * k] == 0) continue;
      const std::string name = k == 0 ? "forward" : "backward";
      c.log(name + "_capacity", use[2 * k]);
      c.log(name + "_fill", use[2 * k + 1] / use[2 * k]);
      c.log(name + "_overflows", double(rooms[k]->overflows()));
    }
  }

  // Of this step's rows, as they left for other ranks.
  void report_tables(Context& c) {
    const auto& mine = tables_->mine();
    const auto& sizes = tables_->forward().sizes();
    std::vector<double> bytes(2 * data_->tables().size());  // plain and sent of each
    for (std::size_t k = 0; k < sizes.size(); ++k) {
      if (sizes[k] == 0) continue;
      const auto t = std::size_t(mine[k % mine.size()]);
      bytes[2 * t] += double(tables_->forward().chunk_bytes()), bytes[2 * t + 1] += double(sizes[k]) + 8;
    }
    c.comm("control").all_reduce({bytes.data(), bytes.size(), DType::f64}, Op::sum).wait();
    for (std::size_t t = 0; 2 * t < bytes.size(); ++t)
      if (bytes[2 * t + 1] > 0) c.log(ratio_of_table(data_->tables()[t].name), bytes[2 * t] / bytes[2 * t + 1]);
  }

  DlrmConfig config_;
  std::unique_ptr<TableData> data_;
  std::optional<Model> model_;
  std::optional<ShardedTables> tables_;
  std::optional<Coder> coder_;
  std::vector<Param> params_;
  std::optional<IdsAhead> ids_;
  bool begun_ = false;
  std::optional<ExchangeTimes> measured_;  // by this process, for `exchange_`
  std::string exchange_;  // what the link decided: forward and backward, raw or coded; empty: nothing yet
  std::array<double, 4> bytes_{}, since_evaluation_{};  // forward and backward: plain, sent
};

const Recipes::Entry registered("dlrm", [] { return std::make_unique<Dlrm>(); });

}  // namespace
}  // namespace trireme::dlrm
