// Tasks beside each other as their scheduler hears of them: what one is taken for before it has begun, what it says
// once it runs, and what a like one takes from it.
#include "comm/local/loopback.h"
#include "framework/models/causal_lm_load.h"
#include "tests/fault/program.h"
#include "tests/forwarding.h"
#include "tests/needs.h"
#include "trainers/sweep/run.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme::sweep {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::vector<json> events(const fs::path& out, const std::string& event, const std::string& task) {
  std::vector<json> all;
  std::ifstream in(out / "schedule.jsonl");
  for (std::string line; std::getline(in, line);)
    if (const json j = json::parse(line); j.at("event") == event && j.value("task", task) == task) all.push_back(j);
  return all;
}

// One task of a sweep, as little of its file as matters here.
struct Asked {
  std::string model, name = "t", data = "data: arithmetic, train: 640", batches = "8", train = "{epochs: 1}";
  int jobs = 2, ranks = 1, length = 64;

  std::string task() const {
    return "  " + name + ": {" + data + ", length: " + std::to_string(length) + ", held_out: 8, test: 0, " +
           "template: plain, ranks: " + std::to_string(ranks) + "}\n";
  }
  std::string yaml(const std::string& more = "") const {
    std::string lr;
    for (int i = 0; i < jobs; ++i) lr += (i ? ", " : "") + std::to_string(1 + i) + ".0e-3";
    return "recipe: lora_sweep\nmodel: " + model + "\nthreads: 1\ncheckpoint: {every: 0}\nsearch: {lr: [" + lr +
           "], rank: [4], batch_size: [" + batches + "]}\ntrain: " + train +
           "\nearly_exit: {enabled: false}\ntasks:\n" + task() + more;
  }
};

struct Beside : ::testing::Test {
  void SetUp() override { at::set_num_threads(1); }

  // A stop comes before anything begins.
  double guess(const Asked& asked, at::Device device) {
    const fs::path out = folder.path / ("guess" + std::to_string(runs++));
    fs::create_directories(out);
    const SweepConfig sweep = parse_sweep(asked.yaml(), "test");
    run_loopback(2, [&](Communicator& world) {
      EXPECT_TRUE(run_beside(sweep, world, out, {device}, {[] { return true; }}).stopped);
    });
    return events(out, "arrive", asked.name).at(0).at("seconds");
  }
  std::string weights_of(const std::string& name, std::uintmax_t bytes) {
    fs::create_directories(folder.path / name);
    std::ofstream(folder.path / name / "model.safetensors").put('\0');
    fs::resize_file(folder.path / name / "model.safetensors", bytes);  // no block of it is on the disk
    return (folder.path / name).string();
  }
  std::string lines(const std::string& name, int count) {
    std::ofstream out(folder.path / name);
    for (int i = 0; i < count; ++i) out << "{\"instruction\": \"2 and 3\", \"output\": \"5\"}\n";
    return (folder.path / name).string();
  }

  test::TempFolder folder;
  int runs = 0;
};

// On GPUs steps of a small model take what launching them takes, however many jobs are in one.
TEST_F(Beside, ASmallModelsGuessCountsTheStepsOfAJob) {
  const at::Device gpu(at::kCUDA, 0);
  Asked asked{weights_of("small", 1 << 10)};
  const double begin = 2, steps = guess(asked, gpu) - begin;
  EXPECT_GT(steps, 0.1);
  const auto changed = [&](auto change) {
    Asked other = asked;
    change(other);
    return (guess(other, gpu) - begin) / steps;
  };
  EXPECT_NEAR(changed([](Asked& a) { a.data = "data: arithmetic, train: 1280"; }), 2, 1e-9);
  EXPECT_NEAR(changed([](Asked& a) { a.batches = "16, 4"; }), 2, 1e-9) << "the smallest batch has the most steps";
  EXPECT_NEAR(changed([](Asked& a) { a.jobs = 6; }), 1, 1e-9);
  EXPECT_NEAR(changed([](Asked& a) { a.length = 128; }), 1, 1e-9);
  EXPECT_NEAR(changed([](Asked& a) { a.ranks = 2; }), 1, 1e-9) << "each of the ranks records its own";
  EXPECT_GT(changed([](Asked& a) { a.train = "{epochs: 1, pad: \"off\"}"; }), 1)
      << "steps of many shapes are not recorded";
  // Of a file its lines count, without those that become the validation.
  const std::string file = lines("data.jsonl", 1280), other = lines("other.jsonl", 10);
  EXPECT_NEAR(changed([&](Asked& a) { a.data = "data: " + file + ", validation_share: 0.25"; }), 1.5, 1e-9);
  EXPECT_NEAR(changed([&](Asked& a) { a.data = "data: " + file + ", validation: " + other; }), 2, 1e-9);
}

// Of a large model what its weights' products take.
TEST_F(Beside, ALargeModelsGuessCountsItsProducts) {
  Asked asked{weights_of("large", std::uintmax_t(200) << 30)};
  for (const at::Device device : {at::Device(at::kCUDA, 0), at::Device(at::kCPU)}) {
    const double begin = device.is_cuda() ? 2 : 1, products = guess(asked, device) - begin;
    EXPECT_GT(products, 10);
    const auto changed = [&](auto change) {
      Asked other = asked;
      change(other);
      return (guess(other, device) - begin) / products;
    };
    EXPECT_NEAR(changed([&](Asked& a) { a.model = weights_of("half", std::uintmax_t(100) << 30); }), 0.5, 1e-9);
    EXPECT_NEAR(changed([](Asked& a) { a.data = "data: arithmetic, train: 1280"; }), 2, 1e-9);
    EXPECT_NEAR(changed([](Asked& a) { a.length = 128; }), 2, 1e-9);
    EXPECT_NEAR(changed([](Asked& a) { a.jobs = 4; }), 2, 1e-9);
    EXPECT_NEAR(changed([](Asked& a) { a.batches = "8, 4"; }), 2, 1e-9) << "twice the jobs";
    EXPECT_NEAR(changed([](Asked& a) { a.batches = "4"; }), 1, 1e-9);
    EXPECT_NEAR(changed([](Asked& a) { a.ranks = 2; }), 0.5, 1e-9);
  }
}

// The ticks of an executor, each of which asks all ranks for the kind of the next, take so long from one of them on.
struct Delay {
  int from = 0;
  std::chrono::milliseconds each{};
  std::atomic<int> ticks = 0;
};
class Delayed : public test::Forwarding {
 public:
  Delayed(Communicator& inner, Delay& delay) : Forwarding(inner), delay_(delay) {}
  Delayed(std::unique_ptr<Communicator> inner, Delay& delay) : Forwarding(std::move(inner)), delay_(delay) {}
  Work all_reduce(Buffer b, Op op) override {
    if (b.dtype == DType::i64 && b.count == 2 && op == Op::max && delay_.ticks++ >= delay_.from)
      std::this_thread::sleep_for(delay_.each);
    return Forwarding::all_reduce(b, op);
  }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<Delayed>(inner_.split(color, key), delay_);
  }

 private:
  Delay& delay_;
};

CausalLm small_backbone() {
  const json config{{"architectures", {"LlamaForCausalLM"}},
                    {"model_type", "llama"},
                    {"vocab_size", 320},
                    {"hidden_size", 16},
                    {"intermediate_size", 24},
                    {"num_hidden_layers", 1},
                    {"num_attention_heads", 2},
                    {"num_key_value_heads", 1},
                    {"hidden_act", "silu"},
                    {"max_position_embeddings", 512},
                    {"rms_norm_eps", 1e-5}};
  return CausalLm::random(parse_causal_lm_config(config.dump(), "test"), 3, at::kCPU, at::kFloat);
}

std::string backbone(const fs::path& folder) {
  std::vector<std::string> texts;
  for (int i = 0; i < 40; ++i) texts.push_back(std::to_string(i) + " + 3 = " + std::to_string(i + 3) + "\n");
  fs::create_directories(folder / "tokenizer");
  BytePairTokenizer::train(texts, 300).save((folder / "tokenizer").string());
  write_hf_folder((folder / "model").string(), small_backbone(), 1 << 20, (folder / "tokenizer").string());
  return (folder / "model").string();
}

// Steps turn out to take longer than those that were measured before the first: the scheduler hears of it, not at every
// evaluation, and what it hears last is so. A like task is taken for what this one took.
TEST_F(Beside, TellsTheEndAgainWhereStepsSaySo) {
  TRIREME_NEEDS("PCRE2");
  Asked asked{backbone(folder.path)};
  asked.data = "data: arithmetic, level: 1, train: 80", asked.length = 256;
  const fs::path out = folder.path / "out";
  fs::create_directories(out);
  const auto run = [&](const std::string& yaml, Delay& delay, bool stop) {
    const SweepConfig sweep = parse_sweep(yaml, "test");
    run_loopback(2, [&](Communicator& world) {
      Delayed delayed(world, delay);
      EXPECT_EQ(run_beside(sweep, delayed, out, {}, {[&] { return stop; }}).stopped, stop);
    });
  };
  Delay delay{4, std::chrono::milliseconds(60)};
  run(asked.yaml(), delay, false);
  const double began = events(out, "start", "t").at(0).at("t"), done = events(out, "done", "t").at(0).at("t");
  const auto said = events(out, "measured", "t");
  ASSERT_GE(said.size(), 2u);
  EXPECT_LE(said.size(), 10u) << "of 20 evaluations";
  const auto end = [&](const json& event) { return event.at("t").get<double>() + event.at("remaining").get<double>(); };
  EXPECT_LT(end(said.front()), done - 0.5);
  const double left = done - said.back().at("t").get<double>();
  EXPECT_NEAR(end(said.back()), done, 0.3 * left + 0.5);

  Asked like = asked, longer = asked;
  like.name = "like", longer.name = "longer", longer.length = 300;
  Delay none;
  run(asked.yaml(like.task() + longer.task()), none, true);
  EXPECT_NEAR(events(out, "arrive", "like").at(0).at("seconds").get<double>(), done - began,
              0.3 * (done - began) + 0.5);
  EXPECT_LT(events(out, "arrive", "longer").at(0).at("seconds").get<double>(), 1.5) << "guessed at";
}

// The file that differs is named; what is left out of the data is told once.
TEST_F(Beside, InputsAreTheSameOnAllRanks) {
  TRIREME_NEEDS("PCRE2");
  SweepConfig sweep = parse_sweep(Asked{backbone(folder.path)}.yaml(), "test");
  TaskConfig& task = sweep.tasks.at(0);
  task.data.data = lines("samples.jsonl", 40);
  const std::string same = lines("questions.jsonl", 4), other = lines("others.jsonl", 5);
  const auto read = [&](const std::string& of_second) {
    std::string told;
    try {
      run_loopback(2, [&](Communicator& world) {
        TaskConfig own = task;
        own.data.test_file = world.rank() ? of_second : same;
        (void)read_inputs(sweep, own, world, at::kCPU, (folder.path / "t").string());
      });
    } catch (const std::exception& e) {
      told = e.what();
    }
    return told;
  };
  EXPECT_EQ(read(same), "");
  const std::string told = read(other);
  EXPECT_TRUE(told.find("questions.jsonl: or") != told.npos || told.find("others.jsonl: or") != told.npos) << told;
  std::ofstream(other, std::ios::app) << R"({"instruction": ")" + std::string(999, '1') + R"(", "output": "5"})"
                                      << "\n";
  task.data.test_file = other;
  const auto said = [&] {
    testing::internal::CaptureStderr();
    run_loopback(
        1, [&](Communicator& world) { (void)read_inputs(sweep, task, world, at::kCPU, (folder.path / "t").string()); });
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_NE(said().find("1 of 6 questions"), std::string::npos);
  fs::create_directories(folder.path / "t/ckpt/step_1");
  EXPECT_EQ(said(), "");
}

// Of its own task alone: that it starts, that steps of it are done, and that there is none.
TEST_F(Beside, ARankSaysWhatItDoes) {
  TRIREME_NEEDS("PCRE2");
  Asked asked{backbone(folder.path)};
  asked.data = "data: arithmetic, level: 1, train: 40", asked.length = 256;
  const SweepConfig sweep = parse_sweep(asked.yaml(), "test");
  const fs::path out = folder.path / "out";
  fs::create_directories(out);
  std::array<std::string, 2> said;
  run_loopback(2, [&](Communicator& world) {
    const auto say = [&mine = said[std::size_t(world.rank())]](char what) {
      return [&mine, what] { mine += mine.ends_with(what) ? "" : std::string(1, what); };
    };
    EXPECT_FALSE(run_beside(sweep, world, out, {}, {[] { return false; }, say('s'), say('t'), say('i')}).stopped);
  });
  std::ranges::sort(said);
  EXPECT_EQ(said, (std::array<std::string, 2>{"i", "isti"}));
}

// The first steps of other jobs than before make plans and are recorded: slow as they are, they say nothing of those to
// come, whether a task begins or one of its jobs is over. Evaluations in between change nothing.
TEST_F(Beside, WhatIsLeftIsBySteadySteps) {
  SweepConfig sweep;
  sweep.train.epochs = 4;
  sweep.early_exit.enabled = false, sweep.early_exit.eval_fraction = 0.25;
  sweep.checkpoint_every = 0;
  TaskConfig task;
  task.name = "t", task.search = {{1e-3}, {4}, {2, 4}};  // 48 and 24 steps
  Instructions data;
  for (std::int32_t i = 0; i < 30; ++i)
    (i < 24 ? data.train : data.validation).push_back({{i, i + 1, i + 2, i + 3}, {false, true, true, true}});
  constexpr double slow = 0.4, steady = 0.02;
  Delay delay;
  int judged = 0;
  run_loopback(1, [&](Communicator& world) {
    Delayed ranks(world, delay);
    Executor executor(sweep, task, {small_backbone()}, data, ranks, (folder.path / "t").string());
    executor.restore();
    std::int64_t steps = 0;  // both jobs take each
    std::ptrdiff_t over = -1;
    for (int warm = 0, counted = 0;;) {
      const auto now =
          std::ranges::count_if(executor.roster().jobs(), [](const auto& j) { return j.phase == Roster::Phase::done; });
      if (std::exchange(over, now) != now) warm = Pace::warm_passes, counted = 0;
      delay.each = std::chrono::milliseconds(std::int64_t(1000 * (warm > 0 ? slow : steady)));
      if (executor.tick(false) == Executor::Progress::over) break;
      if (executor.evaluated() && counted >= 3 && steps < 48) {
        const double seconds = executor.remaining_seconds(), expected = steady * double(48 - steps);
        EXPECT_GT(seconds, 0.25 * expected) << steps;  // steps of one job may be taken for a third of those of both
        EXPECT_LT(seconds, 2 * expected + 0.2) << steps;
        ++judged;
      }
      if (executor.evaluated()) continue;
      warm > 0 ? --warm : ++counted;
      ++steps;
    }
  });
  EXPECT_GE(judged, 5);
}

}  // namespace
}  // namespace trireme::sweep
