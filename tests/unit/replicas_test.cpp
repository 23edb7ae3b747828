// Parameters that ranks hold differently: on one rank alone, by rows, in groups, beside shared ones. Their gradients
// are the sums over their replicas whatever travels beside them, and a resumed run goes on where it stood.
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "comm/local/self.h"
#include "data/rng.h"
#include "framework/gradients/reducer.h"
#include "framework/io/checkpoint.h"
#include "framework/session.h"
#include "tests/fault/memory_io.h"
#include "tests/max_difference.h"

#include <algorithm>
#include <map>
#include <mutex>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme {
namespace {

at::Tensor drawn(std::string_view key, std::vector<std::int64_t> shape, std::uint64_t a, std::uint64_t b = 0) {
  at::Tensor t = at::empty(shape, at::kDouble);
  Rng rng(7, key, a, b);
  for (std::int64_t i = 0; i < t.numel(); ++i) t.data_ptr<double>()[i] = rng.normal();
  return t;
}

template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no error";
}

// Every rank's error, in rank order.
template <class F>
std::vector<std::string> errors_of(int ranks, F f) {
  std::vector<std::string> errors{std::size_t(ranks)};
  run_loopback(ranks, [&](Communicator& c) { errors[std::size_t(c.rank())] = error_of([&] { f(c); }); });
  return errors;
}

// ---- gradients ----

// A gradient of rank one, so that PowerSGD loses nothing of it.
at::Tensor gradient(const std::string& name, at::IntArrayRef shape, int rank, std::int64_t step) {
  const at::Tensor scale = drawn("scale/" + name, {1}, std::uint64_t(rank), std::uint64_t(step));
  if (shape.size() < 2) return scale * drawn("vector/" + name, shape.vec(), 0);
  return scale * at::outer(drawn("left/" + name, {shape[0]}, 0), drawn("right/" + name, {shape[1]}, 0));
}

struct Mixed {
  std::unique_ptr<Communicator> self, pair;
  std::vector<Param> params;
  std::map<std::string, std::vector<int>> holders;

  // Tables between shared weights; their number, sizes and places differ from rank to rank.
  explicit Mixed(Communicator& world) {
    const int r = world.rank(), n = world.size();
    self = world.split(r, 0);
    pair = world.split(r / 2, r);
    const auto add = [&](const std::string& name, std::vector<std::int64_t> shape, Communicator* replicas) {
      params.push_back({name, at::zeros(shape, at::kFloat).requires_grad_(), replicas});
      if (replicas == self.get())
        holders[name] = {r};
      else if (replicas == pair.get())
        holders[name] = {r / 2 * 2, r / 2 * 2 + 1};
      else
        for (int k = 0; k < n; ++k) holders[name].push_back(k);
    };
    if (r % 2 == 0) add("table/first", {50 + 10 * r, 8}, self.get());
    add("w0", {40, 30}, nullptr);
    for (int k = 0; k <= r; ++k) add("table/" + std::to_string(r) + "/" + std::to_string(k), {30, 4}, self.get());
    add("b0", {40}, nullptr);
    add("pair/w", {40, 32}, pair.get());
    if (r / 2 == 1) add("pair/second", {64, 8}, pair.get());
    add("w1", {64, 40}, nullptr);
    if (r % 2 == 1) add("table/last", {9}, self.get());
    add("pair/b", {17}, pair.get());
    add("b1", {64}, nullptr);
  }
  at::Tensor sum(const Param& p, std::int64_t step) const {
    at::Tensor all = at::zeros(p.value.sizes(), at::kDouble);
    for (const int k : holders.at(p.name)) all += gradient(p.name, p.value.sizes(), k, step);
    return all;
  }
};

// `steps` backwards of Mixed; `check` sees each gradient beside the plain sum.
void reduce_mixed(int ranks, const HookConfig& hook, bool shard, bool overlap,
                  const std::function<void(const Param&, const at::Tensor& sum, int rank, double largest)>& check) {
  run_loopback(ranks, [&](Communicator& comm) {
    Mixed mixed(comm);
    Reducer reducer(mixed.params, comm,
                    {.bucket_mib = 0.006, .first_bucket_mib = 0.004, .overlap = overlap, .shard = shard, .hook = hook});
    for (std::int64_t step = 0; step < 4; ++step) {
      reducer.begin_step(step);
      reducer.arm(true);
      at::Tensor loss = at::zeros({}, at::kDouble);
      for (std::size_t i = 0; i < mixed.params.size(); ++i) {  // odd ranks the other way round
        const auto& p = mixed.params[comm.rank() % 2 ? mixed.params.size() - 1 - i : i];
        loss = loss + (p.value.to(at::kDouble) * gradient(p.name, p.value.sizes(), comm.rank(), step)).sum();
      }
      torch::autograd::backward({loss}, {});
      reducer.finish();
      double squares = 0, largest = 0;
      for (int k = 0; k < ranks; ++k) {
        double most = 0;
        for (const auto& p : mixed.params)
          if (!p.replicas || p.replicas->size() > 1)
            most = test::nan_max(most, gradient(p.name, p.value.sizes(), k, step).abs().max().item<double>());
        largest += most;
      }
      for (const auto& p : mixed.params) {
        const at::Tensor sum = mixed.sum(p, step);
        squares += sum.square().sum().item<double>() / double(mixed.holders.at(p.name).size());
        if (!shard) check(p, sum, comm.rank(), largest);
      }
      if (hook.name == "none") {
        comm.all_reduce({&squares, 1, DType::f64}, Op::sum).wait();
        const Reducer::Totals totals = reducer.totals(at::scalar_tensor(comm.rank() + 0.5, at::kDouble));
        EXPECT_NEAR(totals.norm.item<double>() / std::sqrt(squares), 1, 1e-5) << "each value counts once";
        EXPECT_EQ(totals.loss.item<double>(), comm.size() * comm.size() / 2.0);
      }
      if (!shard) continue;
      for (const Slice& s : reducer.owned()) {
        const auto& p = mixed.params[s.param];
        Param part{p.name, p.value.detach(), p.replicas};
        part.value.mutable_grad() = p.value.grad().view(-1).narrow(0, s.begin, s.end - s.begin);
        if (s.end > s.begin)
          check(part, mixed.sum(p, step).view(-1).narrow(0, s.begin, s.end - s.begin), comm.rank(), largest);
      }
      reducer.gather_weights();
    }
  });
}

TEST(Replicas, GradientsAreTheSumsWhateverEachRankHoldsBeside) {
  for (const int ranks : {2, 4})
    for (const bool overlap : {true, false})
      for (const std::string name : {"none", "int8", "top_k", "powersgd", "shard"}) {
        HookConfig hook;
        hook.name = name == "shard" ? "none" : name;
        hook.density = 1;
        hook.rank = 1;
        reduce_mixed(ranks, hook, name == "shard", overlap,
                     [&](const Param& p, const at::Tensor& sum, int rank, double largest) {
                       const bool alone = p.replicas && p.replicas->size() == 1;
                       // int8 is off by 1/254 of the largest value: in the codes of the ranks and in that of the sum,
                       // and by as much in what error feedback brings from the step before.
                       const double bound = alone ? 1e-6 : name == "int8" ? 4.1 * largest / 254 : 1e-4;
                       const double off = (p.value.grad().to(at::kDouble) - sum).abs().max().item<double>();
                       const double size = sum.abs().max().item<double>();
                       EXPECT_LE(off, name == "int8" && !alone ? bound : bound * (size > 1e-3 ? size : 1e-3))
                           << name << ", " << p.name << " on rank " << rank << " of " << ranks
                           << (overlap ? "" : ", no overlap");
                     });
      }
}

TEST(Replicas, ParametersThatDoNotFitAreRefusedByNameOnAllRanks) {
  const auto refused = [](const std::function<std::vector<Param>(Communicator&, Communicator & self)>& params) {
    return errors_of(2, [&](Communicator& c) {
      const auto self = c.split(c.rank(), 0);
      Reducer reducer(params(c, *self), c, {});
    });
  };
  const auto leaf = [](std::vector<std::int64_t> shape) { return at::zeros(shape, at::kFloat).requires_grad_(); };
  for (const auto& e : refused([&](Communicator&c, Communicator&) {
         std::vector<Param> p{{"shared", leaf({3})}};
         if (c.rank() == 1) p.push_back({"only_here", leaf({3})});
         return p;
       }))
    EXPECT_NE(e.find("only_here"), std::string::npos) << e;
  for (const auto& e : refused([&](Communicator&c, Communicator&) {
         return std::vector<Param>{{"shape", leaf({3 + c.rank()})}};
       }))
    EXPECT_NE(e.find("shape"), std::string::npos) << e;
  for (const auto& e : refused([&](Communicator&c, Communicator&self) {
         return std::vector<Param>{{"half", leaf({3}), c.rank() == 1 ? &self : nullptr}};
       }))
    EXPECT_NE(e.find("half"), std::string::npos) << e;
  for (const auto& e : refused([&](Communicator&, Communicator&) { return std::vector<Param>{{"fits", leaf({3})}}; }))
    EXPECT_EQ(e, "no error");
}

// ---- saved orders ----

TEST(Replicas, ASavedBucketOrderIsChecked) {
  const auto world = make_self();
  const auto leaves = [] {
    std::vector<Param> p;
    for (const char* name : {"a", "b", "c"}) p.push_back({name, at::zeros({4}, at::kFloat).requires_grad_()});
    return p;
  };
  Snapshot good;
  {
    const auto params = leaves();
    Reducer reducer(params, *world, {});
    reducer.begin_step(0);
    reducer.finish();
    good = Snapshot::take([&](Archive& ar) { reducer.state(ar); }, 0);
  }
  const auto with = [&](const std::vector<std::int64_t>& order, const std::string& names = "a\nb\nc\n") {
    Snapshot s = good;
    s.place = "ckpt/step_00000007";
    auto& text = s.entries.at("names");
    text.shape = {std::int64_t(names.size())};
    text.bytes = SharedBytes(names.data(), names.size());
    auto& e = s.entries.at("order");
    e.shape = {std::int64_t(order.size())};
    e.bytes = SharedBytes(order.data(), order.size() * sizeof(std::int64_t));
    const auto params = leaves();
    Reducer reducer(params, *world, {});
    return error_of([&] {
      try {
        s.restore([&](Archive& ar) { reducer.state(ar); });
      } catch (const DataError&) {
        throw;
      } catch (const std::exception& e) {
        throw std::runtime_error(std::string("another error: ") + e.what());
      }
    });
  };
  EXPECT_EQ(with({2, 0, 1}), "no error");
  EXPECT_EQ(with({2, 0, 1}, "c\na\nb\n"), "no error");
  for (const std::string names : {"a\nb\nx\n", "a\nb\n", "a\nb\nb\n", "a\nb\nc\na\n", "\n\n\n", ""})
    EXPECT_NE(with({0, 1, 2}, names).find("ckpt/step_00000007: order"), std::string::npos) << names;
  for (const auto& bad : std::vector<std::vector<std::int64_t>>{
           {0, 1}, {0, 1, 2, 3}, {}, {0, 1, 1}, {0, -1, 2}, {0, 1, 3}, {0, 1, INT64_MAX}, {INT64_MIN, 1, 2}}) {
    const std::string e = with(bad);
    EXPECT_NE(e.find("ckpt/step_00000007: order"), std::string::npos) << e;
    EXPECT_EQ(e.find("another error"), std::string::npos) << e;
  }
}

// ---- checkpoints ----

struct NoRows : Dataset {
  std::int64_t size() const override { return 1; }
  Batch read(std::span<const std::int64_t> ids, std::int64_t) const override {
    Batch b;
    b.ids.assign(ids.begin(), ids.end());
    return b;
  }
};

// Linear in its parameters; gradients are keyed by name and step. Shares of a shared one are powers of two of the
// whole, so that their sum is exact on 1, 2 and 4 ranks.
struct Tables : Recipe {
  bool local = false, pairs = false;
  std::unique_ptr<Communicator> self, pair;
  std::vector<Param> params;
  NoRows data;
  static constexpr std::int64_t rows = 13, width = 5;
  std::int64_t first = 0;

  void fields(Fields&) override {}
  void setup(Context& c) override {
    const int r = c.rank(), n = c.size();
    self = c.comm().split(r, 0);
    pair = c.comm().split(r / 2, r);
    const auto start = [&](std::string_view key, std::vector<std::int64_t> shape, int who) {
      return drawn(key, shape, std::uint64_t(who)).to(c.param_type());
    };
    params.push_back({"shared", start("shared", {8, 4}, 0)});
    first = rows * r / n;
    const std::int64_t held = rows * (r + 1) / n - first;
    params.push_back({"rows",
                      start("rows", {rows, width}, 0).narrow(0, first, held).clone(),
                      self.get(),
                      "decay",
                      {Sharing::rows, first, rows}});
    if (local) params.push_back({"local", start("local", {6, 2}, r), self.get(), "no_decay"});
    if (pairs) params.push_back({"pair", start("pair", {7, 3}, r / 2), pair.get()});
    params.push_back({"bias", start("bias", {8}, 0)});
  }
  std::vector<Param> parameters() override { return params; }
  const Dataset& train_data() override { return data; }
  std::vector<std::int64_t> train_ids() override { return {}; }
  at::Tensor loss(const Batch&, Context& c) override {
    const auto s = std::uint64_t(c.now.step);
    at::Tensor sum = at::zeros({}, at::kDouble);
    for (const auto& p : params) {
      at::Tensor g;
      if (p.name == "rows")
        g = drawn("g/rows", {rows, width}, s).narrow(0, first, p.value.size(0));
      else if (p.name == "local")
        g = drawn("g/local", p.value.sizes().vec(), s, std::uint64_t(c.rank()));
      else if (p.name == "pair")
        g = drawn("g/pair", p.value.sizes().vec(), s, std::uint64_t(c.rank() / 2)) / pair->size();
      else
        g = drawn("g/" + p.name, p.value.sizes().vec(), s) / c.size();
      sum = sum + (p.value * g).sum();
    }
    return sum;
  }
};

struct Setting {
  int ranks = 2;
  std::int64_t zero = 0;
  bool local = false, pairs = false;
};

// Steps [first, last), from the checkpoint at `first` if there is one; saves at `last`. Returns each rank's weights and
// moments by name.
using Values = std::vector<std::map<std::string, at::Tensor>>;
Values train(MemoryIo& io, const Setting& run, std::int64_t first, std::int64_t last) {
  Values values{std::size_t(run.ranks)};
  TrainConfig config;
  config.steps = 20;
  config.batch_size = run.ranks;
  config.precision = "f64";
  config.device = "cpu";
  config.zero = run.zero;
  config.ema = 0.9;
  run_loopback(run.ranks, [&](Communicator& world) {
    Tables recipe;
    recipe.local = run.local;
    recipe.pairs = run.pairs;
    Session session(world, config, recipe);
    Checkpoints checkpoints("ckpt", 9, world, io);
    const auto state = [&](Archive& ar) { session.state(ar); };
    if (first > 0) checkpoints.load(first).restore(state);
    const std::vector<std::int64_t> ids{world.rank()};
    for (std::int64_t s = first; s < last; ++s) {
      session.context().now.step = s;
      session.step(recipe.data.read(ids, 0));
    }
    const Snapshot snapshot = Snapshot::take(state, world.rank());
    checkpoints.save(last, snapshot, "{}");
    checkpoints.finish();
    auto& mine = values[std::size_t(world.rank())];
    for (const auto& p : session.parameters()) mine[p.name] = p.value.detach().clone();
  });
  return values;
}

TEST(Replicas, AResumedRunIsTheUnbrokenOneOnEveryRank) {
  for (const int ranks : {2, 4})
    for (const std::int64_t zero : {0, 1}) {
      MemoryIo io, other;
      const Setting run{ranks, zero, true, true};
      const Values whole = train(io, run, 0, 8);
      train(other, run, 0, 5);
      const Values resumed = train(other, run, 5, 8);
      for (int r = 0; r < ranks; ++r)
        for (const auto& [name, value] : whole[std::size_t(r)])
          EXPECT_TRUE(at::equal(value, resumed[std::size_t(r)].at(name)))
              << name << " on rank " << r << " of " << ranks << ", zero " << zero;
    }
}

// The whole of a parameter, put together from the ranks.
at::Tensor whole_of(const Values& values, const std::string& name) {
  if (name != "rows") return values[0].at(name);
  std::vector<at::Tensor> parts;
  for (const auto& v : values) parts.push_back(v.at(name));
  return at::cat(parts);
}

TEST(Replicas, RowsGoOnOnAnotherNumberOfRanks) {
  for (const std::int64_t zero : {0, 1})
    for (const auto& [from, to] : std::vector<std::pair<int, int>>{{4, 2}, {2, 4}, {1, 2}, {4, 1}}) {
      MemoryIo io, other;
      const Values whole = train(io, {from, zero}, 0, 8);
      train(other, {from, zero}, 0, 5);
      const Values resumed = train(other, {to, zero}, 5, 8);
      for (const char* name : {"shared", "rows", "bias"}) {
        const at::Tensor a = whole_of(whole, name), b = whole_of(resumed, name);
        ASSERT_EQ(a.sizes(), b.sizes());
        EXPECT_LE((a - b).abs().max().item<double>(), 1e-13)
            << name << ", " << from << " to " << to << ", zero " << zero;
      }
    }
}

TEST(Replicas, WhatAFewRanksHoldIsRefusedByNameOnAnotherNumberOfRanks) {
  for (const std::int64_t zero : {0, 1})
    for (const bool local : {true, false}) {
      MemoryIo io;
      train(io, {4, zero, local, !local}, 0, 3);
      const std::string e = error_of([&] { train(io, {2, zero, local, !local}, 3, 4); });
      EXPECT_NE(e.find(local ? "model/local" : "model/pair"), std::string::npos) << e;
      EXPECT_NE(e.find("4 ranks"), std::string::npos) << e;
    }
}

TEST(Replicas, EachGroupSavesItsValuesOnce) {
  TrainConfig config;
  config.batch_size = 4;
  config.precision = "f64";
  config.device = "cpu";
  config.ema = 0.5;
  std::vector<int> pairs(4), locals(4), shared(4);
  run_loopback(4, [&](Communicator& world) {
    Tables recipe;
    recipe.local = recipe.pairs = true;
    Session session(world, config, recipe);
    const auto r = std::size_t(world.rank());
    const Snapshot s = Snapshot::take([&](Archive& ar) { session.state(ar); }, world.rank());
    for (const auto& [name, entry] : s.entries) {
      pairs[r] += name.ends_with("/pair");
      locals[r] += name.ends_with("/local");
      shared[r] += name.ends_with("/shared");
    }
  });
  EXPECT_EQ(pairs, (std::vector<int>{4, 0, 4, 0}));  // weight, average and two moments
  EXPECT_EQ(locals, (std::vector<int>{4, 4, 4, 4}));
  EXPECT_EQ(shared, (std::vector<int>{4, 0, 0, 0}));
}

TEST(Replicas, RowsThatOverlapOrLeaveGapsAreRefused) {
  for (const std::int64_t shift : {-1, 1}) {
    const auto errors = errors_of(2, [&](Communicator& c) {
      const auto self = c.split(c.rank(), 0);
      const std::int64_t first = c.rank() == 0 ? 0 : 5 + shift;
      Reducer reducer(
          {{"table", at::zeros({5, 2}).requires_grad_(), self.get(), "decay", {Sharing::rows, first, 10 + shift}}}, c,
          {});
    });
    for (const auto& e : errors) EXPECT_NE(e.find("table"), std::string::npos) << e;
  }
  // Also where all ranks say the same: each claims the first rows, or some are nobody's.
  for (const std::int64_t total : {5, 10}) {
    const auto errors = errors_of(2, [&](Communicator& c) {
      const auto self = c.split(c.rank(), 0);
      Communicator* replicas = total == 5 ? self.get() : nullptr;
      Reducer reducer({{"table", at::zeros({5, 2}).requires_grad_(), replicas, "decay", {Sharing::rows, 0, total}}}, c,
                      {});
    });
    for (const auto& e : errors) EXPECT_NE(e.find("table"), std::string::npos) << e;
  }
}

TEST(Replicas, ANameThatIsThereTwiceIsRefused) {
  for (const int ranks : {1, 2})
    for (const auto& e : errors_of(ranks, [&](Communicator& c) {
           Reducer reducer({{"w", at::zeros({3}).requires_grad_()}, {"w", at::zeros({3}).requires_grad_()}}, c, {});
         }))
      EXPECT_NE(e.find("parameter w: is there twice"), std::string::npos) << e;
}

}  // namespace
}  // namespace trireme
