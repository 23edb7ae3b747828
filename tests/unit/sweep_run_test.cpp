// The executor of a sweep on a tiny random Llama: packed jobs are solo jobs, a broken one ends alone, a killed sweep
// goes on to the bit, and adapter parallelism is the same packs on their own.
#include "comm/wrappers/traced.h"
#include "data/file.h"
#include "framework/formats/safetensors.h"
#include "framework/io/folder_lock.h"
#include "framework/losses/token_loss.h"
#include "framework/models/adapters.h"
#include "framework/models/causal_lm_load.h"
#include "framework/models/generate.h"
#include "framework/step_graph.h"
#include "tests/unit/reference_files.h"
#include "tests/unit/said.h"
#include "tests/unit/task_run.h"
#include "trainers/sweep/replay.h"
#include "trainers/sweep/run.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace trireme::sweep {
namespace {

using test::said;
namespace fs = std::filesystem;

TEST_F(TaskRun, PackedJobsAreSoloJobs) {
  const Result packed = alone();
  EXPECT_EQ(packed.outcome.jobs.size(), 8u);
  EXPECT_GE(packed.outcome.winner, 0);
  EXPECT_GT(exits(packed.decisions).size(), 7u);
  EXPECT_LT(packed.outcome.samples, packed.outcome.all_samples);
  for (const auto& [arm, slots] :
       std::vector<std::pair<std::string, std::int64_t>>{{"sequential", 0}, {"loop", 0}, {"wide", 0}, {"grouped", 3}}) {
    sweep.arm = arm;
    sweep.slots = slots;
    const Result other = alone();
    expect_close(packed.losses, other.losses, 2e-4);
    EXPECT_EQ(exits(packed.decisions), exits(other.decisions)) << arm;
    EXPECT_EQ(packed.outcome.winner, other.outcome.winner) << arm;
  }
}

// Ids behind the end of a sample change no loss and no gradient of what stands before them.
TEST_F(TaskRun, PaddingChangesNoGradient) {
  CausalLm model = tiny(at::kDouble);
  PeftConfig config;
  config.rank = 4, config.regex = "all-linear";
  const auto store = make_adapter_store(model, {&config, 1}, 2, nn::LoraBackend::kernels);
  at::manual_seed(8);
  for (const std::int64_t slot : {0, 1}) {
    const auto init = adapter_init(model, *store, config, std::uint64_t(slot), "adapter");
    store->fill(slot, init);
    const auto drawn = at::randn_like(store->flat_weights(slot)) * 0.1;
    store->clear(slot);
    store->fill(slot, init, drawn);
  }
  const auto gradients = [&](std::int64_t length) {
    Pack pack(length);
    pack.begin_job(0, 0);
    for (const std::int64_t i : {0, 1, 3}) pack.add(sequence(i));
    pack.begin_job(1, 0);
    pack.add(sequence(2));
    EXPECT_EQ(pack.tokens_of(0), 7 + 8 + 10);
    EXPECT_EQ(pack.count(1), 9 - 3);
    EXPECT_EQ(pack.size(), length ? 4 * length : 34);
    store->begin(pack.rows(), true);
    store->zero_gradients();
    const at::Tensor each = token_losses(model.hidden(pack.tokens(at::kCPU)), model.head(), pack.labels(at::kCPU));
    at::stack({pack.loss_sum(0, each, 0) / 17, pack.loss_sum(1, each, 0) / 6}).sum().backward();
    return std::vector{pack.loss_sum(0, each, 0).detach(), pack.loss_sum(1, each, 0).detach(),
                       store->flat_gradients(0).clone(), store->flat_gradients(1).clone()};
  };
  const auto plain = gradients(0), padded = gradients(11);
  for (std::size_t i = 0; i < plain.size(); ++i) {
    const double most = plain[i].abs().max().item<double>();
    EXPECT_GT(most, 1e-3);
    EXPECT_LT((plain[i] - padded[i]).abs().max().item<double>(), 1e-12 * (1 + most)) << i;
  }
}

// What a graph is to a sweep: work that runs when it is replayed, on what lies in the recorded places then.
struct Replayed : StepGraph {
  static constexpr int any = 1 << 30;
  static inline int steps = any, evaluations = any;  // so many more can be captured
  std::function<void()> work;
  std::size_t capture(const std::function<void()>& f) override {
    if ((at::GradMode::is_enabled() ? steps : evaluations)-- <= 0) throw std::runtime_error("out of memory");
    work = f;
    return 1;
  }
  void replay() override { work(); }
};

TEST_F(TaskRun, PaddedJobsAreTheJobsAndAreReplayed) {
  own_data = sequences(false);
  own_data->train.resize(23);  // the last batches of an epoch are smaller
  sweep.train.epochs = 4;
  task.search.lr = {1e-3, 4e-3};
  const auto run_with = [&](const char* pad, bool graphs) {
    if (graphs)
      set_step_graphs([](int, GraphMemory) -> std::unique_ptr<StepGraph> { return std::make_unique<Replayed>(); });
    sweep.train.pad = pad;
    Result r = alone();
    set_step_graphs(nullptr);
    return r;
  };
  const Result plain = run_with("off", false), alone_padded = run_with("longest", false);
  EXPECT_EQ(plain.replayed, 0);
  EXPECT_EQ(run_with("auto", false).losses, plain.losses) << "nothing can be recorded here";
  const Result own_lengths = run_with("off", true), padded = run_with("auto", true);
  EXPECT_EQ(own_lengths.losses, plain.losses);
  EXPECT_EQ(padded.losses, alone_padded.losses);
  std::int64_t steps = 0;
  for (const auto& j : padded.outcome.jobs) steps = std::max(steps, j.steps);
  EXPECT_GT(padded.replayed - own_lengths.replayed, steps / 2);
  for (const auto* r : {&padded, &alone_padded}) {
    expect_close(plain.losses, r->losses, 2e-4);
    EXPECT_EQ(exits(plain.decisions), exits(r->decisions));
    EXPECT_EQ(plain.outcome.winner, r->outcome.winner);
    EXPECT_EQ(plain.outcome.samples, r->outcome.samples);
    ASSERT_EQ(plain.best[0].size(), r->best[0].size());
    for (std::size_t i = 0; i < plain.best[0].size(); ++i)
      EXPECT_TRUE(at::allclose(plain.best[0][i].second, r->best[0][i].second, 1e-3, 1e-4)) << plain.best[0][i].first;
  }
  sweep.train.pad = "longest", sweep.checkpoint_every = 5;
  const std::string where = folder();
  std::optional<Result> resumed;
  while (!resumed) {
    int ticks = 0;
    resumed = run(*make_self(), where, [&] { return ++ticks > 17; });
  }
  EXPECT_EQ(resumed->losses, alone_padded.losses);
  EXPECT_EQ(resumed->decisions, alone_padded.decisions);
}

// Whether samples are padded depends on no capture: one that fails changes no bit, nor does a run that goes on.
TEST_F(TaskRun, AFailedCaptureChangesNoBit) {
  set_step_graphs([](int, GraphMemory) -> std::unique_ptr<StepGraph> { return std::make_unique<Replayed>(); });
  task.search.lr = {1e-3, 4e-3};
  sweep.checkpoint_every = 4;
  const auto after = [&](int steps, int evaluations, const std::string& where, int ticks = Replayed::any) {
    Replayed::steps = steps, Replayed::evaluations = evaluations;
    ::testing::internal::CaptureStderr();
    auto r = run(*make_self(), where, [&] { return --ticks < 0; });
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_EQ(said.find("steps of adapters are not recorded") != said.npos, Replayed::steps < 0);
    EXPECT_EQ(said.find("evaluations of adapters are not recorded") != said.npos, Replayed::evaluations < 0);
    Replayed::steps = Replayed::evaluations = Replayed::any;
    return r;
  };
  const Result whole = *after(Replayed::any, Replayed::any, folder());
  const Result no_steps = *after(1, Replayed::any, folder()), no_evaluations = *after(Replayed::any, 0, folder());
  EXPECT_LT(no_steps.replayed, no_evaluations.replayed);
  EXPECT_LT(no_evaluations.replayed, whole.replayed);
  const std::string where = folder();
  EXPECT_FALSE(after(1, Replayed::any, where, 30));
  const Result resumed = *after(Replayed::any, Replayed::any, where);
  for (const Result* r : {&no_steps, &no_evaluations, &resumed}) {
    EXPECT_EQ(r->losses, whole.losses);
    EXPECT_EQ(r->decisions, whole.decisions);
  }
  set_step_graphs(nullptr);
}

// A mask is keyed by the job and its own step and rows: it differs from step to step, and nobody in the pack moves it.
TEST_F(TaskRun, DropoutIsTheJobsOwn) {
  sweep.lora.dropout = 0.5;
  const Result packed = alone();
  for (const auto& [arm, slots] :
       std::vector<std::pair<std::string, std::int64_t>>{{"sequential", 0}, {"loop", 0}, {"grouped", 3}}) {
    sweep.arm = arm, sweep.slots = slots;
    const Result other = alone();
    expect_close(packed.losses, other.losses, 2e-4);
    EXPECT_EQ(exits(packed.decisions), exits(other.decisions)) << arm;
  }
  // One sample again and again: under one mask its loss falls at every step, under others it jumps.
  own_data = Instructions{};
  own_data->train = {sequence(1)};
  own_data->validation = {sequence(1)};
  sweep.early_exit.enabled = false;
  sweep.train.epochs = 60;
  sweep.arm = "grouped", sweep.slots = 0;
  task.search = {{3e-3}, {4}, {1}};
  const auto rises = [&] {
    const auto losses = by_line(alone().losses);
    int n = 0;
    for (int step = 2; step <= 60; ++step) {
      const auto at = [&](int s) { return losses.at("lr0.003-r4-b1 " + std::to_string(s) + "train_loss"); };
      n += at(step) > at(step - 1);
    }
    return n;
  };
  EXPECT_GT(rises(), 10);
  sweep.lora.dropout = 0;
  EXPECT_EQ(rises(), 0);
}

// In pieces a batch gives the same gradients and masks, on ranks that share the backbone too.
TEST_F(TaskRun, AccumulatedBatchesAreWholeBatches) {
  sweep.lora.dropout = 0.3;
  task.search.batch_size = {1, 4};
  const Result whole = alone();
  for (const std::int64_t pieces : {2, 3}) {
    sweep.train.accumulate = pieces;
    const Result cut = alone();
    expect_close(whole.losses, cut.losses, 2e-4);
    EXPECT_EQ(exits(whole.decisions), exits(cut.decisions)) << pieces;
  }
  expect_close(whole.losses, on(2).losses, 2e-4);
}

TEST_F(TaskRun, ItsLossesReplayToItsDecisions) {
  const std::string where = folder();
  const Result r = alone(where);
  std::string again;
  for (const auto& d : replay(where + "/losses.jsonl", {})) again += d.json() + "\n";
  EXPECT_EQ(again, r.decisions);
  EXPECT_TRUE(fs::exists(where + "/winner/adapter_model.safetensors"));
}

TEST_F(TaskRun, PreferencePairs) {
  task.objective = "dpo";
  task.search.lr = {1e-2};
  const Result r = alone();
  const auto losses = by_line(r.losses);
  // Before any step the margin is that of the reference: log 2.
  EXPECT_NEAR(losses.at("lr0.01-r2-b2 1train_loss"), std::log(2), 1e-6);
  const auto best = r.outcome.jobs[std::size_t(r.outcome.winner)].best;
  EXPECT_LT(best, std::log(2));
  sweep.arm = "sequential";
  expect_close(r.losses, alone().losses, 2e-4);
}

// Each is a sign of life, also of ranks that share layers; and what moves those is recorded with the ranks.
TEST_F(TaskRun, AWatchdogSeesThePassesOfTheReference) {
  task.objective = "dpo";
  const Instructions data = sequences(true);  // 24 and 6 pairs, 8 at a time
  for (const int ranks : {1, 2}) {
    const std::string where = folder();
    run_loopback(ranks, [&](Communicator& plain) {
      Traced job(plain, {}, "job");
      Executor executor(sweep, task, backbone_of(tiny(), ranks > 1), data, job, where);
      EXPECT_EQ(std::ranges::count(job.recent(), std::string_view("barrier"), &CommCall::name), 4);
      const auto logs = job.recorder()->logs();
      EXPECT_EQ(std::ranges::count_if(logs, [](const auto& log) { return log->name == "job/layers"; }), ranks - 1);
    });
  }
}

// Loss and gradients of a batch of pairs by trl (tests/reference/make_dpo_vectors.py), inside of which norms and
// softmax are f32, and by DPO's formula in f64, one sample at a time.
TEST_F(TaskRun, PreferenceLossIsTrls) {
  const std::string folder = trireme::test::reference_file("lm/llama");
  const Safetensors trl(folder + "/dpo.safetensors");
  const at::Tensor ids = trl.tensor("ids"), lengths = trl.tensor("lengths"), prompt = trl.tensor("prompt");
  CausalLm model = load_causal_lm(folder, at::kCPU, at::kDouble);
  const PeftAdapter adapter = read_peft(folder + "/adapter");
  const auto store = make_adapter_store(model, {&adapter.config, 1}, 1, nn::LoraBackend::kernels);
  load_adapter(model, *store, 0, adapter, "adapter");
  const auto n = prompt.size(0);
  const auto example = [&](std::int64_t row) {
    Example e;
    for (std::int64_t k = 0; k < lengths[row].item<std::int64_t>(); ++k) {
      e.ids.push_back(ids[row][k].item<int>());
      e.mask.push_back(k >= prompt[row % n].item<std::int64_t>());
    }
    return e;
  };
  std::vector<Pair> pairs;
  for (std::int64_t i = 0; i < n; ++i) pairs.push_back({example(i), example(i + n)});
  const auto losses = [&](const Pack& pack) {
    return token_losses(model.hidden(pack.tokens(at::kCPU)), model.head(), pack.labels(at::kCPU));
  };
  Pack reference, pack;
  reference.begin_job(0, 0), pack.begin_job(0, 0);
  for (const auto& pair : pairs) reference.add(ReferencedPair{&pair});
  store->begin({}, false);
  const at::Tensor base = reference.log_probabilities(losses(reference));
  for (std::int64_t i = 0; i < n; ++i)
    pack.add({&pairs[std::size_t(i)], base[2 * i].item<double>(), base[2 * i + 1].item<double>()});
  store->begin(pack.rows(), true);
  const at::Tensor loss = pack.loss_sum(0, losses(pack), trl.tensor("beta").item<double>()) / double(n);
  EXPECT_NEAR(loss.item<double>(), trl.tensor("loss").item<double>(), 1e-6);
  loss.backward();
  std::vector<at::Tensor> packed;
  for (const auto& t : store->gradients(0)) packed.insert(packed.end(), {t.a.clone(), t.b.clone()});
  store->zero_gradients();
  const auto log_probability = [&](const Example& e) {
    const at::Tensor all = at::tensor(std::vector<std::int64_t>(e.ids.begin(), e.ids.end()), at::kLong);
    store->begin({{.slot = 0, .first = 0, .last = all.numel()}}, true);
    const at::Tensor p = at::log_softmax(model.logits(model.hidden({all, {all.numel()}})), 1);
    at::Tensor sum = at::zeros({}, at::kDouble);
    for (std::size_t k = 1; k < e.ids.size(); ++k)
      if (e.mask[k]) sum = sum + p[std::int64_t(k) - 1][e.ids[k]];
    return sum;
  };
  at::Tensor formula = at::zeros({}, at::kDouble);
  for (std::int64_t i = 0; i < n; ++i) {
    const Pair& pair = pairs[std::size_t(i)];
    const at::Tensor margin =
        log_probability(pair.chosen) - base[2 * i] - log_probability(pair.rejected) + base[2 * i + 1];
    formula = formula - at::log_sigmoid(trl.tensor("beta").item<double>() * margin) / double(n);
  }
  EXPECT_NEAR(formula.item<double>(), loss.item<double>(), 1e-12);
  formula.backward();
  std::size_t at = 0;
  for (const auto& t : store->gradients(0))
    for (const auto& g : {t.a, t.b}) EXPECT_LT((g - packed[at++]).abs().max().item<double>(), 1e-12) << t.target;
  int compared = 0;
  for (const auto& t : store->gradients(0))
    for (const auto& [end, ours] : {std::pair(".lora_A.weight", t.a), {".lora_B.weight", t.b}}) {
      const at::Tensor theirs = trl.tensor("grad.base_model.model." + t.target + end);
      EXPECT_LT((ours - theirs).abs().max().item<double>(), 2e-5) << t.target << end;
      ++compared;
    }
  EXPECT_EQ(compared, 12);
}

// The winner answers with the likeliest ids; ranks that share the backbone gather for the one that holds it.
TEST_F(TaskRun, WinnersAnswerQuestions) {
  task.search = {{2e-2}, {4}, {2}};
  own_data = sequences(false);
  const std::string where = folder();
  const double untold = alone(where).outcome.exact_match;
  EXPECT_TRUE(std::isnan(untold)) << "there are no questions";
  CausalLm model = tiny();
  const PeftAdapter winner = read_peft(where + "/winner");
  const CausalLm whole = merged(model, winner, "winner");
  std::vector<std::vector<std::int64_t>> prompts;
  for (std::int64_t i = 0; i < 10; ++i) prompts.push_back({i, 2 * i + 1, 3});
  GreedyOptions one;
  one.most = 1;
  const auto answers = greedy(whole, prompts, one);
  for (std::size_t i = 0; i < prompts.size(); ++i)  // seven right ones
    own_data->test.push_back(
        {{std::int32_t(prompts[i][0]), std::int32_t(prompts[i][1]), 3}, std::to_string(answers[i][0] + (i % 3 == 2))});
  EXPECT_NEAR(alone().outcome.exact_match, 0.7, 1e-12);
  EXPECT_NEAR(on(2).outcome.exact_match, 0.7, 1e-12);
}

// Several jobs answer in one pass what each answers alone, on whatever rank it is; the best alone are asked.
TEST_F(TaskRun, JobsAnswerInOnePass) {
  task.search = {{1e-2, 2e-2, 4e-2}, {2, 4}, {2}};
  sweep.early_exit.enabled = false;
  own_data = sequences(false);
  std::vector<std::vector<std::int64_t>> prompts;
  for (std::int64_t i = 0; i < 150; ++i) prompts.emplace_back(std::size_t(1 + i % 3), i % 61);  // more than a pass has
  for (const auto& p : prompts) own_data->test.push_back({{p.begin(), p.end()}, "", true});
  task.data.length = 3;
  own_data->end = 5;
  // What an adapter answers by itself.
  CausalLm model = tiny();
  PeftConfig config;
  config.regex = "all-linear", config.rank = 4;
  const auto store = make_adapter_store(model, {&config, 1}, 1, nn::LoraBackend::loop);
  const auto answers_of = [&](std::int64_t rank, const at::Tensor& flat) {
    config.rank = rank, config.alpha = 2.0 * double(rank);
    store->fill(0, adapter_init(model, *store, config, 1, "job"), flat);
    GreedyOptions options{.most = 3, .ends = {5}};
    options.before_pass = [&](std::span<const std::int64_t> lengths) {
      store->begin({{.slot = 0, .first = 0, .last = std::accumulate(lengths.begin(), lengths.end(), std::int64_t(0))}},
                   false);
    };
    const auto ids = greedy(model, prompts, options);
    store->clear(0);
    std::vector<std::string> texts;
    for (const auto& a : ids) texts.push_back(std::to_string(a.empty() ? -1 : a[0]));
    return texts;
  };
  const auto check = [&](const Result& r) {
    std::vector<std::size_t> order(r.outcome.jobs.size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::sort(order, {}, [&](std::size_t i) { return r.outcome.jobs[i].best; });
    EXPECT_EQ(std::int64_t(order[0]), r.outcome.winner);
    EXPECT_EQ(r.outcome.jobs[order[0]].exact_match, r.outcome.exact_match);
    for (std::size_t k = 0; k < order.size(); ++k) {
      const JobOutcome& job = r.outcome.jobs[order[k]];
      EXPECT_EQ(std::isfinite(job.exact_match), k < 4) << k;
      for (const auto& [name, flat] : r.best[0]) {
        if (k >= 4 || !job.candidate.job.ends_with(name)) continue;
        const auto answers = answers_of(job.candidate.rank, flat);
        double right = 0;
        for (std::size_t q = 0; q < answers.size(); ++q) right += answers[q] == own_data->test[q].answer;
        EXPECT_EQ(job.exact_match, right / 150) << job.candidate.job;
      }
    }
    return order;
  };
  const Result first = alone();
  const auto winner = std::size_t(first.outcome.winner);
  const auto right = answers_of(first.outcome.jobs[winner].candidate.rank, first.best[0].at(winner).second);
  for (std::size_t i = 0; i < right.size(); ++i) own_data->test[i].answer = i % 10 ? right[i] : "no";
  const Result all = alone();
  const auto order = check(all);
  check(on(2));
  EXPECT_EQ(all.outcome.exact_match, 0.9);
  const std::string table = outcome_table(all.outcome, task);
  EXPECT_NE(table.find("exact match"), table.npos);
  EXPECT_NE(table.find("     90.0 % "), table.npos) << table;
  const TaskOutcome read = parse_outcome(print_outcome(all.outcome, task), "result.json");
  EXPECT_EQ(read.jobs[order[1]].exact_match, all.outcome.jobs[order[1]].exact_match);
  EXPECT_TRUE(std::isnan(read.jobs[order[5]].exact_match));
}

// Stopped at every so many ticks and taken up again: the same files, to the bit. Three places for eight jobs, so that
// some are parked.
TEST_F(TaskRun, GoesOnToTheBit) {
  sweep.slots = 3;
  sweep.lora.dropout = 0.2;  // whose masks follow from a job's steps
  const Result whole = alone();
  sweep.checkpoint_every = 5;
  for (const int every : {3, 17}) {
    const std::string where = folder();
    std::optional<Result> r;
    int runs = 0;
    for (; !r; ++runs) {
      int ticks = 0;
      r = run(*make_self(), where, [&] { return ++ticks > every; });
      ASSERT_LT(runs, 200);
    }
    EXPECT_GE(runs, 2);
    EXPECT_EQ(r->losses, whole.losses);
    EXPECT_EQ(r->decisions, whole.decisions);
    ASSERT_EQ(r->best[0].size(), whole.best[0].size());
    for (std::size_t i = 0; i < whole.best[0].size(); ++i)
      EXPECT_TRUE(at::equal(r->best[0][i].second, whole.best[0][i].second)) << whole.best[0][i].first;
  }
}

// Other samples than those the sweep was stopped with are no continuation; ids beyond the embedding none at all.
TEST_F(TaskRun, RefusesOtherData) {
  sweep.checkpoint_every = 2;
  const std::string where = folder();
  Instructions data = sequences(false);
  data.identity = "24 samples";
  const auto go = [&] {
    int ticks = 0;
    const auto self = make_self();
    Executor(sweep, task, {tiny()}, data, *self, where).run([&] { return ++ticks > 7; });
  };
  go();
  // Questions are part of it; a sweep from before they counted goes on with any, and has them from then on.
  data.questions = "3 questions, ids 1", go();
  data.questions = "3 questions, ids 2", task.data.test_file = "mine.jsonl";
  EXPECT_SAYS(said(go), "mine.jsonl: is not what this sweep began with (24 samples, 3 questions, ids 1)");
  data.questions = "3 questions, ids 1", go();
  data.identity = "23 samples";
  EXPECT_SAYS(said(go), "is not what this sweep began with (24 samples, 3 questions");
  data.validation[2].ids[1] = 61;
  EXPECT_SAYS(said(go), "holds token 61, the model's vocabulary has 61");
}

// The first so many passes on two ranks, the rest on one.
TEST_F(TaskRun, GoesOnOnOtherRanks) {
  const Result whole = alone();
  sweep.checkpoint_every = 5;
  const std::string where = folder();
  run_loopback(2, [&](Communicator& world) {
    int ticks = 0;
    EXPECT_FALSE(run(world, where, [&] { return ++ticks > 9; }));
  });
  const Result rest = alone(where);
  expect_close(whole.losses, rest.losses, 2e-4);
  EXPECT_EQ(exits(whole.decisions), exits(rest.decisions));
}

// Six jobs warm up in two places on two ranks; a rank without jobs takes one that was parked on the other.
TEST_F(TaskRun, RanksTakeParkedJobs) {
  task.search.rank = {4};
  task.search.lr = {1e-3, 5e-3, 2e-2};
  const Result one = alone();
  sweep.slots = 1;
  const Result two = on(2);
  expect_close(one.losses, two.losses, 2e-4);
  EXPECT_EQ(exits(one.decisions), exits(two.decisions));
  EXPECT_EQ(one.outcome.winner, two.outcome.winner);
}

TEST_F(TaskRun, ABrokenJobEndsAlone) {
  task.search.rank = {4};
  sweep.early_exit.keep_ratio = 1;
  task.search.lr = {1e-3};
  const Result good = alone();
  task.search.lr = {1e-3, 1e30};
  const Result both = alone();
  const auto x = by_line(good.losses), y = by_line(both.losses);
  for (const auto& [key, value] : x) EXPECT_NEAR(value, y.at(key), 2e-4 * (1 + std::abs(value))) << key;
  int diverged = 0;
  for (const auto& j : both.outcome.jobs) diverged += j.candidate.lr > 1 && j.end == "diverging";
  EXPECT_EQ(diverged, 2);
  EXPECT_LT(both.outcome.jobs[std::size_t(both.outcome.winner)].candidate.lr, 1);
}

// Those that do not fit end alone, before their first step; the others do what they do without them.
TEST_F(TaskRun, JobsThatDoNotFitEndAlone) {
  sweep.memory_capacity = 1.1e6;
  sweep.early_exit.patience_div = 100;
  task.search.lr = {1e-3, 5e-3};
  task.place = "f.yaml:7: tasks.t";
  for (const char* cut : {"barrier", "asha"}) {
    sweep.early_exit.cut = cut;
    task.search.batch_size = {1, 2};
    const Result without = alone();
    task.search.batch_size = {1, 2, 64};
    testing::internal::CaptureStderr();
    const std::string where = folder();
    const Result r = alone(where);
    const std::string told = testing::internal::GetCapturedStderr();
    for (const char* job : {"02-lr0.001-r2-b64", "05-lr0.001-r4-b64", "08-lr0.005-r2-b64", "11-lr0.005-r4-b64"})
      EXPECT_SAYS(told, "f.yaml:7: tasks.t: job " + std::string(job) + " needs 8.34 MB alone");
    EXPECT_SAYS(told, "a rank has 990 kB: it ends as too_large, the others go on; take smaller search.batch_size");
    EXPECT_EQ(by_line(r.losses), by_line(without.losses));
    int ended = 0;
    for (const auto& j : r.outcome.jobs) ended += j.end == "too_large" && j.steps == 0 && j.candidate.batch_size == 64;
    EXPECT_EQ(ended, 4);
    EXPECT_EQ(r.outcome.all_samples, without.outcome.all_samples);
    EXPECT_EQ(r.outcome.samples, without.outcome.samples);
    ASSERT_GE(without.outcome.winner, 0);
    ASSERT_GE(r.outcome.winner, 0);
    const auto name = [](const Result& o) { return o.outcome.jobs[std::size_t(o.outcome.winner)].candidate.key; };
    EXPECT_EQ(name(r), name(without));
    EXPECT_EQ(exits(r.decisions).size(), exits(without.decisions).size() + 4);
    std::string again;
    for (const auto& d : replay(where + "/losses.jsonl", {})) again += d.json() + "\n";
    EXPECT_EQ(again, r.decisions);
    const TaskOutcome read = parse_outcome(print_outcome(r.outcome, task), "result.json");
    EXPECT_EQ(read.jobs[2].end, "too_large");
    EXPECT_SAYS(outcome_table(read, task), " -     0/2       too_large");
  }
  const Result two = on(2);
  for (const auto& j : two.outcome.jobs) EXPECT_EQ(j.end == "too_large", j.candidate.batch_size == 64) << j.end;
}

TEST_F(TaskRun, JobsThatDoNotFitStayEnded) {
  sweep.memory_capacity = 1.1e6;
  sweep.slots = 2;
  task.search.rank = {4};
  task.search.batch_size = {1, 64};
  const Result whole = alone();
  sweep.checkpoint_every = 5;
  const std::string where = folder();
  int ticks = 0;
  EXPECT_FALSE(run(*make_self(), where, [&] { return ++ticks > 9; }));
  sweep.memory_capacity = 0;  // by now there is room
  ticks = 0;
  EXPECT_FALSE(run(*make_self(), where, [&] { return ++ticks > 17; }));
  sweep.memory_capacity = 1e3;
  EXPECT_SAYS(said([&] { alone(where); }), "has begun, and now needs");
  sweep.memory_capacity = 1.1e6;
  const Result rest = alone(where);
  EXPECT_EQ(rest.losses, whole.losses);
  EXPECT_EQ(rest.decisions, whole.decisions);
  // One that began may not fit later: what it was is kept for the machine that it fits on.
  const std::string large = folder();
  sweep.memory_capacity = 0, ticks = 0;
  EXPECT_FALSE(run(*make_self(), large, [&] { return ++ticks > 1; }));
  sweep.memory_capacity = 1.1e6;
  EXPECT_SAYS(said([&] { alone(large); }), "-b64: has begun, and now needs 8.34 MB alone");
}

// A job that waits when a sweep goes on with less room ends then, wherever the others are, as if it had been refused at
// the start: with a decision, and a line that a replay heeds.
TEST_F(TaskRun, AJobThatWaitsMayBeTooLargeLater) {
  sweep.slots = 1, sweep.early_exit.keep_ratio = 0.5, sweep.early_exit.patience_div = 100;
  task.search = {{5e-3}, {2, 4, 128}, {2}};
  const std::string large = "2-lr0.005-r128-b2";
  sweep.memory_capacity = 1e6;
  const Result whole = alone();
  ASSERT_EQ(whole.outcome.jobs[2].end, "too_large");
  sweep.checkpoint_every = 100;
  int ends = 0;
  for (int stop = 1; stop < 40; stop += 4) {
    const std::string where = folder();
    int ticks = 0;
    sweep.memory_capacity = 0;
    ASSERT_FALSE(run(*make_self(), where, [&] { return ++ticks > stop; }));
    if (text_of(where + "/losses.jsonl").find("\"" + large + "\",\"step\":1,") != std::string::npos) break;
    sweep.memory_capacity = 1e6;
    testing::internal::CaptureStderr();
    std::optional<Result> r;
    const std::string begun = said([&] { r = alone(where); }), told = testing::internal::GetCapturedStderr();
    if (!r) {
      EXPECT_SAYS(begun, "has begun, and now needs");
      break;
    }
    ++ends;
    EXPECT_SAYS(told, "job " + large + " needs ");
    EXPECT_EQ(by_line(r->losses), by_line(whole.losses)) << stop;
    EXPECT_EQ(exits(r->decisions), exits(whole.decisions)) << stop;
    EXPECT_EQ(r->outcome.jobs[2].end, "too_large");
    std::string again;
    for (const auto& d : replay(where + "/losses.jsonl", {})) again += d.json() + "\n";
    EXPECT_EQ(again, r->decisions) << stop;
  }
  EXPECT_GT(ends, 1) << "stopped while it waited";
}

TEST_F(TaskRun, KnowsWhetherTheCutWasSaved) {
  sweep.checkpoint_every = 100;
  const Instructions data = sequences(false);
  const auto self = make_self();
  bool cut = false;
  for (int stop = 3; !cut && stop < 200; stop += 20) {
    const std::string where = folder();
    ASSERT_FALSE(run(*self, where, [&, ticks = 0]() mutable { return ++ticks > stop; }));
    const std::string decisions = text_of(where + "/decisions.jsonl");
    Executor executor(sweep, task, backbone_of(tiny(), false), data, *self, where);
    cut = executor.restore();
    EXPECT_EQ(cut, decisions.find("underperforming") != std::string::npos) << stop;
    EXPECT_TRUE(cut || stop > 3 || !executor.roster().exits().cut_done());
  }
  EXPECT_TRUE(cut);
}

TEST_F(TaskRun, NamesJobAndModule) {
  sweep.memory_capacity = 1.1e6;
  task.search.batch_size = {64};
  task.place = "f.yaml:7: tasks.t";
  const std::string none = said([&] { alone(); });
  EXPECT_SAYS(none, "f.yaml:7: tasks.t: no job fits: job 0-lr0.001-r2-b64 needs 8.34 MB alone");
  EXPECT_SAYS(none, " MB alone, and a rank has 990 kB; take smaller search.batch_size");
  sweep.memory_capacity = 0;
  sweep.lora.targets = {"q_proj", "qq_proj"};
  EXPECT_SAYS(said([&] { alone(); }), "f.yaml:7: tasks.t: lora.targets: the model has no linear module 'qq_proj'");
  sweep.lora.targets = {"up_proj"}, sweep.precision = "fp8";
  CausalLmConfig c = tiny().config();
  c.intermediate = 40;
  const Instructions data = sequences(false);
  const auto self = make_self();
  const std::string odd =
      said([&] { Executor(sweep, task, {CausalLm::random(c, 3, at::kCPU, at::kBFloat16)}, data, *self, folder()); });
  EXPECT_SAYS(odd, "model.layers.0.mlp.up_proj has 40; say precision: bf16");
}

TEST_F(TaskRun, RanksReadTheSameFile) {
  const std::string file = dir / "sweep.yaml";
  std::ofstream(file) << "recipe: lora_sweep\nmodel: " << dir.string() << "/none\ntasks: {t: {data: arithmetic}}\n";
  const auto on_two = [&](const std::string& of_second) {
    return said([&] {
      run_loopback(2, [&](Communicator& world) {
        SweepRun own{file, dir / "out", {}};
        if (world.rank() == 1) own.overrides = {of_second};
        run_sweep(own, world, 2);
      });
    });
  };
  EXPECT_SAYS(on_two("seed=7"), "rank 1: was started with another configuration");
  EXPECT_SAYS(on_two("train.epochs=77"), "rank 1: was started with another configuration");
  EXPECT_SAYS(on_two("seed=2024"), "");
}

TEST_F(TaskRun, FreshLeavesAFolderInUseAlone) {
  const std::string file = dir / "sweep.yaml", out = dir / "out";
  std::ofstream(file) << "recipe: lora_sweep\nmodel: " << dir.string() << "/none\ntasks: {t: {data: arithmetic}}\n";
  fs::create_directories(out);
  const FolderLock used(out);
  const auto why = said([&] {
    run_loopback(1, [&](Communicator& world) {
      SweepRun own{file, out, {}};
      own.fresh = true;
      run_sweep(own, world, 1);
    });
  });
  EXPECT_SAYS(why, "process");
  EXPECT_TRUE(fs::exists(out));
  EXPECT_FALSE(fs::exists(out + ".old-1"));
}

TEST_F(TaskRun, GoesOnFromAnAdapter) {
  task.search = {{2e-2}, {4}, {4}};
  const std::string first = folder(), second = folder();
  const double best = alone(first).outcome.jobs[0].best;
  task.adapter = first + "/winner";
  task.search.lr = {1e-14};
  const double again = alone(second).outcome.jobs[0].best;
  EXPECT_NEAR(again, best, 1e-6);
  const PeftAdapter a = read_peft(task.adapter), b = read_peft(second + "/winner");
  ASSERT_EQ(a.modules.size(), b.modules.size());
  for (std::size_t i = 0; i < a.modules.size(); ++i) {
    EXPECT_TRUE(at::allclose(a.modules[i].a, b.modules[i].a, 1e-6, 1e-9)) << a.modules[i].name;
    EXPECT_TRUE(at::allclose(a.modules[i].b, b.modules[i].b, 1e-6, 1e-9)) << a.modules[i].name;
  }
  task.search.rank = {2};
  EXPECT_SAYS(said([&] { alone(); }), task.adapter + " has rank 4 and alpha 8, job 0-lr1e-14-r2-b4 rank 2 and alpha 4");
  task.search.rank = {4};
  task.search.alpha = "3r";
  EXPECT_SAYS(said([&] { alone(); }),
              task.adapter + " has rank 4 and alpha 8, job 0-lr1e-14-r4-b4 rank 4 and alpha 12");
  PeftAdapter bad = a;
  bad.modules[0].a = bad.modules[0].a * std::nan("");
  write_peft(dir / "bad", bad, "llama");
  task.adapter = dir / "bad";
  EXPECT_SAYS(said([&] { alone(); }), (dir / "bad").string() + "/adapter_model.safetensors: tensor");
}

// The winner says what PEFT needs to read it, and goes on with it though `lora:` says nothing.
TEST_F(TaskRun, AdaptersHavePatternsOfTheirOwn) {
  task.search = {{2e-2}, {4}, {4}};
  sweep.lora.expression = "model\\.layers\\.[12]\\..*";
  sweep.lora.exclude = {"o_proj", "2.mlp.down_proj"};
  sweep.lora.rank_pattern = {{"v_proj", 8}, {"layers.1.mlp.*", 1}};
  sweep.lora.alpha_pattern = {{"up_proj", 3}};
  sweep.lora.rslora = true, sweep.lora.init = "gaussian";
  const std::string first = folder(), second = folder();
  const double best = alone(first).outcome.jobs[0].best;
  const PeftAdapter a = read_peft(first + "/winner");
  EXPECT_EQ(a.config.regex, *sweep.lora.expression);
  EXPECT_EQ(a.config.excluded, sweep.lora.exclude);
  EXPECT_EQ(a.config.rank_pattern, sweep.lora.rank_pattern);
  EXPECT_EQ(a.config.alpha_pattern, sweep.lora.alpha_pattern);
  EXPECT_TRUE(a.config.rslora && a.config.gaussian);
  std::map<std::string, std::int64_t> ranks;
  for (const auto& m : a.modules) ranks[m.name] = m.a.size(0);
  EXPECT_EQ(ranks.size(), 2 * 3 + 3 + 2u);
  EXPECT_EQ(ranks.at("model.layers.2.self_attn.v_proj"), 8);
  EXPECT_EQ(ranks.at("model.layers.1.mlp.up_proj"), 1);
  EXPECT_EQ(ranks.at("model.layers.2.mlp.up_proj"), 4);
  for (const char* parallel : {"gather", "pipeline"}) {
    sweep.parallel = parallel;
    const Result two = on(2);
    EXPECT_EQ(two.pipelined, sweep.parallel == "pipeline");
    EXPECT_NEAR(two.outcome.jobs[0].best, best, 2e-4 * (1 + best));
  }
  sweep.lora = {}, sweep.parallel = "auto";
  task.adapter = first + "/winner";
  task.search.lr = {1e-14};
  EXPECT_NEAR(alone(second).outcome.jobs[0].best, best, 1e-6);
  const PeftAdapter b = read_peft(second + "/winner");
  EXPECT_EQ(b.config.rank_pattern, a.config.rank_pattern);
  ASSERT_EQ(a.modules.size(), b.modules.size());
  for (std::size_t i = 0; i < a.modules.size(); ++i)
    EXPECT_TRUE(at::allclose(a.modules[i].b, b.modules[i].b, 1e-6, 1e-9)) << a.modules[i].name;
  task.adapter = "";
  sweep.lora.rank_pattern = {{"v_proj", 8}, {"v_porj", 2}};
  EXPECT_SAYS(said([&] { alone(); }), "no linear module 'v_porj' of lora.rank_pattern");
  sweep.lora = {};
  sweep.lora.exclude = {"kproj"};
  EXPECT_SAYS(said([&] { alone(); }), "no linear module 'kproj' of lora.exclude");
  sweep.lora = {};
  sweep.lora.excluded = ".*(q|k|v|o)_proj";
  const std::string third = folder();
  alone(third);
  EXPECT_EQ(read_peft(third + "/winner").modules.size(), 4 * 3u);
  EXPECT_EQ(read_peft(third + "/winner").config.excluded_regex, *sweep.lora.excluded);
  sweep.lora.excluded = "q_proj";
  EXPECT_SAYS(said([&] { alone(); }), "no linear module 'q_proj' of lora.exclude");
}

TEST_F(TaskRun, RanksKeepWholeAdapters) {
  sweep.early_exit.enabled = false;
  sweep.train.checkpointing = true;
  sweep.steal = false;
  const Result two = on(2), four = on(4);
  const auto bits_of = [](const Result& r) {
    std::map<std::string, at::Tensor> all;
    for (const auto& [key, t] : r.best[0]) all[key] = t;
    return all;
  };
  const auto all_two = bits_of(two), all_four = bits_of(four);
  ASSERT_EQ(all_two.size(), 8u);
  ASSERT_EQ(all_four.size(), 8u);
  const auto compare = [&](const std::map<std::string, at::Tensor>& all, const std::string& losses) {
    const Result separate = alone();
    const auto x = by_line(losses);
    for (const auto& [key, value] : by_line(separate.losses)) EXPECT_EQ(value, x.at(key)) << key;
    for (const auto& [key, t] : separate.best[0]) EXPECT_TRUE(at::equal(t, all.at(key))) << key;
  };
  // Two ranks: one job of each rank goes to each, in turn; four: lr and rank.
  for (const std::int64_t rank : {2, 4}) {
    task.search.rank = {rank};
    task.search.lr = {1e-3, 2e-2};
    compare(all_two, two.losses);
    for (const double lr : {1e-3, 2e-2}) {
      task.search.lr = {lr};
      compare(all_four, four.losses);
    }
  }
  // What travels: layers of the backbone, as bytes, of which a rank sends its share; and scalars. No f32.
  for (const auto& [ranks, r] : {std::pair{2, &two}, {4, &four}}) {
    for (const auto& [what, bytes] : r->counts)
      EXPECT_TRUE(what.ends_with("u8") || what.ends_with("f64") || what.ends_with("i64")) << what << " " << bytes;
    EXPECT_EQ(std::int64_t(r->counts.at("all_gather u8")) * (ranks - 1), r->outcome.gathered_bytes);
    EXPECT_FALSE(r->counts.contains("all_to_all f64"));
    EXPECT_EQ(r->outcome.moves_between_ranks, 0);
    // A layer has q and o [32, 32], k and v [16, 32], three of the MLP [48, 32] and two norms: 7,744 values.
    EXPECT_EQ(r->outcome.gathered_bytes * ranks, r->outcome.gathers * 4 * 7744 * (ranks - 1));
  }
}

// On codes that travel adapters have the bits of codes that are held, and losses are bf16's but for their rounding.
TEST_F(TaskRun, AnFp8BaseIsTheSameOnRanks) {
  sweep.early_exit.enabled = false, sweep.train.checkpointing = true, sweep.steal = false;
  task.search.rank = {4};
  task.search.lr = {1e-3, 2e-2};
  sweep.precision = "fp8";
  const Result two = on(2);
  std::map<std::string, at::Tensor> shared;
  for (const auto& [key, t] : two.best[0]) shared[key] = t;
  ASSERT_EQ(shared.size(), 4u);
  EXPECT_GT(two.outcome.gathered_bytes, 0);
  for (const double lr : {1e-3, 2e-2}) {  // a rank's own jobs
    task.search.lr = {lr};
    const Result separate = alone();
    for (const auto& [key, t] : separate.best[0]) EXPECT_TRUE(at::equal(t, shared.at(key))) << key;
  }
  task.search.lr = {1e-3, 2e-2};
  const Result codes = alone();
  sweep.precision = "bf16";
  const Result plain = alone();
  expect_close(plain.losses, codes.losses, 0.05);
  EXPECT_NE(plain.losses, codes.losses);
  EXPECT_LT(codes.outcome.memory_forecast, plain.outcome.memory_forecast);
  EXPECT_SAYS(said([&] {
                parse_sweep(
                    "recipe: lora_sweep\nmodel: m\nprecision: fp8\nexecution: {parallel: pipeline}\n"
                    "tasks: {t: {data: d, template: plain}}",
                    "f");
              }),
              "stages of a pipeline are not made of FP8 codes");
  sweep.precision = "fp8", sweep.parallel = "pipeline";
  EXPECT_SAYS(said([&] { on(2); }), "stages are not made of FP8 codes");
}

// What is read of a layer fails on one rank: all say so, and none waits. Nothing that was read stays.
TEST_F(TaskRun, LayersAreReadOneAtATime) {
  const Instructions data = sequences(false);
  const auto read_with = [&](const std::function<at::Tensor(int rank, const LmWeight&)>& read) {
    std::vector<std::string> all(2);
    const std::string where = folder();
    run_loopback(2, [&](Communicator& world) {
      const LmWeights weights{tiny().config(), [&](const LmWeight& w) { return read(world.rank(), w); },
                              at::TensorOptions(at::kFloat)};
      all[std::size_t(world.rank())] = said([&] {
        Executor(sweep, task, {without_layers(weights), weights.read}, data, world, where);
      });
    });
    return all;
  };
  const auto value_of = [&](const LmWeight& w) { return at::ones(w.shape) / 32; };
  std::mutex mutex;
  std::map<int, std::vector<at::Tensor>> layers;  // of a rank: what it read of them and holds
  std::size_t most = 0;
  const auto held = [&](int rank) {
    std::erase_if(layers[rank], [](const at::Tensor& t) { return t.use_count() == 1 && t.storage().use_count() == 1; });
    return layers[rank].size();
  };
  EXPECT_EQ(read_with([&](int rank, const LmWeight& w) {
              at::Tensor value = value_of(w);
              if (w.layer < 0) return value;
              const std::lock_guard lock(mutex);
              layers[rank].push_back(value);
              most = std::max(most, held(rank));
              return value;
            }),
            std::vector<std::string>(2, "nothing"));
  EXPECT_EQ(most, 1u);
  EXPECT_EQ(held(0) + held(1), 0u);
  for (const auto& one : read_with([&](int rank, const LmWeight&w) {
         if (rank == 1 && w.name == "model.layers.2.mlp.up_proj.weight") throw DataError("model", "is cut short", "");
         return value_of(w);
       }))
    EXPECT_SAYS(one, "model: is cut short");
}

}  // namespace
}  // namespace trireme::sweep
