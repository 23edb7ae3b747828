#include "recipes/supergen/refiner.h"

#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/kernels/window_means.h"

#include <algorithm>
#include <iterator>

#include <ATen/ATen.h>

namespace trireme {
namespace {

// Starts a kernel over the windows of one sample. Differences [d] = |a[d] - b[d]|, |a[d]| where b[d] is undefined; ->
// f32 [tiles, differences].
at::Tensor launch_means(const Canvas& canvas, std::int64_t shift,
                        const std::vector<std::pair<at::Tensor, at::Tensor>>& differences) {
  const at::Tensor& like = differences[0].first;  // [C, F, H, W]
  kernels::WindowMeansJob job;
  job.dtype = dtype_of(like);
  job.rows = canvas.rows().size(), job.columns = canvas.columns().size();
  job.planes = like.numel() / (job.rows * job.columns);
  job.window_rows = canvas.rows().window(), job.window_columns = canvas.columns().window();
  const auto rows = canvas.rows().starts(shift), columns = canvas.columns().starts(shift);
  job.row_starts = std::ssize(rows), job.column_starts = std::ssize(columns);
  std::copy(rows.begin(), rows.end(), job.row_start);
  std::copy(columns.begin(), columns.end(), job.column_start);
  job.differences = std::ssize(differences);
  for (std::size_t d = 0; d < differences.size(); ++d) {
    job.a[d] = differences[d].first.const_data_ptr();
    if (differences[d].second.defined()) job.b[d] = differences[d].second.const_data_ptr();
  }
  const std::int64_t windows = job.row_starts * job.column_starts;
  const at::Tensor means = at::empty({windows, job.differences}, like.options().dtype(at::kFloat));
  const at::Tensor partial =
      at::empty({windows * kernels::parts_of_a_window * job.differences}, like.options().dtype(at::kDouble));
  job.means = means.data_ptr<float>(), job.partial = partial.data_ptr<double>();
  kernels::window_means(job, buffer_of(means).place);
  return means;
}

}  // namespace

Refiner::Refiner(const RefinerConfig& config, const Canvas& canvas, Communicator& ranks, std::int64_t samples)
    : config_(config),
      canvas_(canvas),
      ranks_(ranks),
      gates_(std::size_t(samples), TileGate(config.gate, canvas)),
      maps_(std::size_t(samples)),
      records_(std::size_t(samples)) {
  if (std::max(canvas.rows().tiles(), canvas.columns().tiles()) > kernels::most_starts)
    throw UsageError("supergen.window", "more than " + std::to_string(kernels::most_starts) + " windows along a side",
                     "take larger windows");
  if (!config.pattern.empty() && std::ssize(config.pattern) != config.gate.steps)
    throw UsageError("supergen.cache.pattern",
                     std::to_string(config.pattern.size()) + " steps for " + std::to_string(config.gate.steps));
}

at::Tensor Refiner::predict(const at::Tensor& x, std::int64_t step, at::ScalarType wire, const Model& model) {
  const std::int64_t shift = config_.shift_every ? step / config_.shift_every : 0;
  const auto windows = canvas_.windows(shift);
  counts_ = {};
  const Flags flags = decide(x, step, windows, shift);
  const auto units = share_out(flags);
  const at::Tensor gathered = exchange(x, units, windows, wire, model);
  const at::Tensor y = compose(x, flags, units, gathered, windows, shift);
  if (config_.cache) remember(x, y, flags, windows, shift);
  return y;
}

Refiner::Flags Refiner::decide(const at::Tensor& x, std::int64_t step, const std::vector<CanvasWindow>& windows,
                               std::int64_t shift) {
  Flags flags(gates_.size(), std::vector<bool>(windows.size(), true));
  if (config_.cache) {
    const bool reads = gates_[0].reads(step);
    std::vector<std::vector<TileMeans>> means(gates_.size());
    if (reads)  // also beside a pattern: what a decision costs is part of a step
      for (std::size_t b = 0; b < gates_.size(); ++b) means[b] = means_of(x, std::int64_t(b), windows, shift);
    if (reads || gates_[0].ranks(step)) tell_predictions();
    for (std::size_t b = 0; b < gates_.size(); ++b) {
      if (config_.pattern.empty()) {
        flags[b] = gates_[b].decide(step, windows, means[b]);
      } else {
        const std::string& word = config_.pattern[std::size_t(step)];
        if (word.size() != windows.size())
          throw UsageError("supergen.cache.pattern", "step " + std::to_string(step) + " has " +
                                                         std::to_string(word.size()) + " tiles for " +
                                                         std::to_string(windows.size()));
        for (std::size_t w = 0; w < windows.size(); ++w) flags[b][w] = word[w] == '#' || step == 0;
      }
      if (config_.record) records_[b].push_back({windows, means[b], {}});
    }
    agree_on(flags);
  }
  for (std::size_t b = 0; b < flags.size(); ++b) {
    std::string line;
    for (const bool computed : flags[b]) line += computed ? '#' : '.';
    maps_[b].push_back(line);
  }
  return flags;
}

std::vector<TileMeans> Refiner::means_of(const at::Tensor& x, std::int64_t sample,
                                         const std::vector<CanvasWindow>& windows, std::int64_t shift) {
  const at::Tensor now = x[sample].contiguous(), x_p = x_p_[sample], y_p = y_p_[sample];
  const at::Tensor means =
      launch_means(canvas_, shift, {{now, x_p}, {x_p, x_pp_[sample]}, {y_p, y_pp_[sample]}, {y_p, {}}}).cpu();
  std::vector<TileMeans> all;
  for (const CanvasWindow& w : windows) {
    const float* m = means.data_ptr<float>() + w.tile * 4;
    all.push_back({m[0], m[1], m[2], m[3]});
  }
  return all;
}

void Refiner::tell_predictions() {
  for (const Pending& p : pending_) {
    const at::Tensor host = p.means.cpu();
    for (std::size_t b = 0; b < gates_.size(); ++b) {
      std::vector<float> means;
      for (const CanvasWindow& w : p.windows)
        means.push_back(host.data_ptr<float>()[std::int64_t(b) * host.size(1) + w.tile]);
      gates_[b].predicted(p.windows, means);
      if (config_.record)
        records_[b][records_[b].size() - (pending_.size() - std::size_t(&p - pending_.data()))].predicted = means;
    }
  }
  pending_.clear();
}

void Refiner::agree_on(Flags& flags) {
  if (config_.gates == RefinerConfig::Gates::replicated) return;
  std::string mine;
  for (const auto& sample : flags)
    for (const bool computed : sample) mine += computed ? '#' : '.';
  if (config_.gates == RefinerConfig::Gates::checked) {
    if (!same_on_all(ranks_, mine))
      throw Error(ExitCode::bug, "supergen", "ranks would compute different tiles",
                  "say `gates: broadcast` where their devices differ");
    return;
  }
  ranks_.broadcast({mine.data(), mine.size(), DType::u8}, 0).wait();
  std::size_t i = 0;
  for (auto& sample : flags)
    for (std::size_t w = 0; w < sample.size(); ++w) sample[w] = mine[i++] == '#';
}

std::vector<Refiner::Unit> Refiner::share_out(const Flags& flags) {
  const std::int64_t ranks = ranks_.size(), all = std::ssize(flags) * std::ssize(flags[0]) * config_.halves;
  std::vector<Unit> units;
  std::vector<std::int64_t> slots(std::size_t(ranks), 0);
  std::int64_t number = 0;
  for (std::size_t b = 0; b < flags.size(); ++b)
    for (std::size_t w = 0; w < flags[b].size(); ++w) {
      counts_.tiles += 1, counts_.computed += flags[b][w];
      for (std::int64_t half = 0; half < config_.halves; ++half, ++number) {
        if (!flags[b][w]) continue;
        const std::int64_t rank =
            config_.redistribute ? std::ssize(units) % ranks : number / ((all + ranks - 1) / ranks);
        units.push_back({std::int64_t(b), std::int64_t(w), half, int(rank), slots[std::size_t(rank)]++});
      }
    }
  return units;
}

at::Tensor Refiner::exchange(const at::Tensor& x, const std::vector<Unit>& units,
                             const std::vector<CanvasWindow>& windows, at::ScalarType wire, const Model& model) {
  if (units.empty()) return {};
  std::int64_t slots = 0;
  for (const Unit& u : units) slots = std::max(slots, u.slot + 1);
  const std::int64_t rows = canvas_.rows().window(), columns = canvas_.columns().window();
  const at::Tensor all =
      at::zeros({ranks_.size(), slots, x.size(1), x.size(2), rows, columns}, x.options().dtype(wire));
  const at::Tensor mine = all[ranks_.rank()];
  std::vector<Unit> own;
  std::copy_if(units.begin(), units.end(), std::back_inserter(own),
               [&](const Unit& u) { return u.rank == ranks_.rank(); });
  compute(x, std::move(own), windows, model, mine);
  ranks_.all_gather(buffer_of(mine), buffer_of(all)).wait();
  counts_.gathers = 1;
  counts_.wire = all.numel(), counts_.payload = std::ssize(units) * mine[0].numel();
  return all;
}

// This rank's units, as many to a forward as may be, into their slots.
void Refiner::compute(const at::Tensor& x, std::vector<Unit> mine, const std::vector<CanvasWindow>& windows,
                      const Model& model, const at::Tensor& to) {
  const auto forward = [&](const Unit& u) { return std::pair(u.half, config_.one_window ? u.window : 0); };
  std::stable_sort(mine.begin(), mine.end(), [&](const Unit& a, const Unit& b) { return forward(a) < forward(b); });
  for (std::size_t first = 0, last = 0; first < mine.size(); first = last) {
    std::vector<at::Tensor> cuts;
    std::vector<Tile> which;
    for (; last < mine.size() && std::ssize(which) < config_.batch && forward(mine[last]) == forward(mine[first]);
         ++last) {
      const Unit& u = mine[last];
      which.push_back({windows[std::size_t(u.window)], u.sample, u.half});
      cuts.push_back(canvas_.cut(x[u.sample], which.back().window).unsqueeze(0));
    }
    const at::Tensor y = model(cuts.size() == 1 ? cuts[0] : at::cat(cuts), which);
    for (std::size_t i = first; i < last; ++i) to[mine[i].slot].copy_(y[std::int64_t(i - first)]);
  }
}

at::Tensor Refiner::compose(const at::Tensor& x, const Flags& flags, const std::vector<Unit>& units,
                            const at::Tensor& gathered, const std::vector<CanvasWindow>& windows, std::int64_t shift) {
  const bool disjoint = canvas_.disjoint(shift);
  at::Tensor y = disjoint ? at::empty_like(x) : at::zeros_like(x);
  std::size_t next = 0;
  const auto prediction = [&] { return gathered[units[next].rank][units[next].slot].to(at::kFloat); };
  for (std::size_t b = 0; b < flags.size(); ++b) {
    at::Tensor canvas = y[std::int64_t(b)];
    for (std::size_t i = 0; i < windows.size(); ++i) {
      const CanvasWindow& w = windows[i];
      at::Tensor tile;
      if (flags[b][i]) {
        tile = prediction(), ++next;
        if (config_.halves == 2) {
          const at::Tensor unconditional = prediction();
          ++next;
          tile = at::add(unconditional, at::sub(tile, unconditional), config_.guidance);
        }
      } else {
        tile = canvas_.cut(x[std::int64_t(b)], w).add_(canvas_.cut(residual_[std::int64_t(b)], w));
      }
      disjoint ? canvas_.put(canvas, w, tile) : canvas_.add(canvas, w, tile);
    }
  }
  if (!disjoint) y.div_(to_device(canvas_.counts(shift), x.device()));
  return y;
}

// u8 [B, 1, 1, H, W]: 1 where a computed tile lies.
at::Tensor Refiner::computed_mask(const Flags& flags, const std::vector<CanvasWindow>& windows,
                                  const at::Tensor& like) {
  const at::Tensor ones = at::ones({canvas_.rows().window(), canvas_.columns().window()}, at::kByte);
  at::Tensor mask = at::zeros({like.size(0), 1, 1, like.size(3), like.size(4)}, at::kByte);
  for (std::size_t b = 0; b < flags.size(); ++b)
    for (std::size_t i = 0; i < windows.size(); ++i) {
      at::Tensor canvas = mask[std::int64_t(b)];
      if (flags[b][i]) canvas_.put(canvas, windows[i], ones.expand({1, 1, -1, -1}));
    }
  return to_device(mask, like.device()).to(at::kBool);
}

void Refiner::remember(const at::Tensor& x, const at::Tensor& y, const Flags& flags,
                       const std::vector<CanvasWindow>& windows, std::int64_t shift) {
  Pending p{at::empty({x.size(0), canvas_.tiles()}, x.options()), windows};
  for (std::int64_t b = 0; b < x.size(0); ++b) p.means[b].copy_(launch_means(canvas_, shift, {{y[b], {}}}).squeeze(1));
  pending_.push_back(p);

  x_pp_ = x_p_.defined() ? x_p_ : x;
  x_p_ = x.clone(at::MemoryFormat::Contiguous);
  const bool all = counts_.computed == counts_.tiles, none = counts_.computed == 0;
  if (none && !config_.gate.release) return;
  const at::Tensor mask = all ? at::Tensor() : computed_mask(flags, windows, x);
  const auto taken = [&](const at::Tensor& fresh, const at::Tensor& old) {
    return all || !old.defined() ? fresh : at::where(mask, fresh, old);
  };
  residual_ = taken(y - x, residual_);
  if (config_.gate.release) {  // its predictions count as computed ones
    y_pp_ = y_p_.defined() ? y_p_ : y, y_p_ = y;
    return;
  }
  y_pp_ = y_p_.defined() ? taken(y_p_, y_pp_) : y;
  y_p_ = taken(y, y_p_);
}

void Refiner::state(Archive& ar, const at::Tensor& x) {
  tell_predictions();
  std::int64_t started = x_p_.defined();
  ar.value("started", started);
  for (std::size_t b = 0; b < gates_.size(); ++b) {
    Archive::Group group(ar, "gate" + std::to_string(b));
    gates_[b].state(ar);
    std::string map;
    for (const auto& line : maps_[b]) map += line + "\n";
    ar.text("map", map);
    maps_[b].clear();
    for (std::size_t at = 0, end; (end = map.find('\n', at)) != std::string::npos; at = end + 1)
      maps_[b].push_back(map.substr(at, end - at));
  }
  if (!started || !config_.cache) return;
  for (auto [name, t] :
       {std::pair{"x_p", &x_p_}, {"x_pp", &x_pp_}, {"y_p", &y_p_}, {"y_pp", &y_pp_}, {"residual", &residual_}}) {
    if (!t->defined()) *t = at::empty_like(x);
    *t = t->contiguous();
    archive(ar, name, *t);
  }
}

}  // namespace trireme
