// Training on a GPU through the program: several ranks give the losses of one, over NCCL, CUDA IPC and pinned
// staging, and a trace shows reduction beside backward. Data is drawn here, so that nothing has to be there.
#include "tests/gpu/training.h"

namespace trireme::test {
namespace {

TEST_F(Gpu, LossesOfOneRankOverMpi) {
  for (int n : {2, 4}) {
    expect_losses_of_one("ipc" + std::to_string(n), n, {"communicator=mpi"});
    expect_losses_of_one("staged" + std::to_string(n), n, {"communicator=mpi"}, {"TRIREME_CUDA_TRANSPORT=staged"});
    expect_losses_of_one("no overlap" + std::to_string(n), n, {"communicator=mpi", "overlap=false"});
    EXPECT_EQ(losses(folder.path / ("ipc" + std::to_string(n))), losses(folder.path / ("staged" + std::to_string(n))))
        << "both sum in rank order";
    EXPECT_EQ(losses(folder.path / ("ipc" + std::to_string(n))),
              losses(folder.path / ("no overlap" + std::to_string(n))));
  }
}

TEST_F(Gpu, LossesOfOneRankOverNccl) {
  if (const auto why = no_nccl(2); !why.empty()) GTEST_SKIP() << why;
  for (int n : {2, 4})
    if (no_nccl(n).empty()) expect_losses_of_one("nccl" + std::to_string(n), n, {"communicator=nccl"});
  expect_losses_of_one("checked", 2, {"communicator=nccl", "checked=true"});
}

// Recorded with NCCL's collectives, steps have the bits of those that are not.
TEST_F(Gpu, RecordedStepsOverNccl) {
  if (const auto why = no_nccl(2); !why.empty()) GTEST_SKIP() << why;
  for (const std::string recipe : {"mlp", "transformer"}) {
    std::ofstream(folder.path / "it.yaml") << "recipe: " + recipe + "\nsteps: 30\nlog_every: 1\nbucket_mib: 0.05\n";
    for (const std::string graph : {"off", "on"}) {
      const Outcome o = run_program({"train", "it.yaml", "--out", recipe + graph, "--ranks", "2", "device=cuda",
                                     "communicator=nccl", "graph=" + graph}, {folder.path, {}});
      ASSERT_EQ(o.code, 0) << o;
      EXPECT_EQ((o.out + o.err).find("steps are replayed") != std::string::npos, graph == "on") << o;
    }
    EXPECT_EQ(losses(folder.path / (recipe + "off")), losses(folder.path / (recipe + "on"))) << recipe;
  }
}

// A bucket that a large weight made too long leaves in pieces: the same ones with and without overlap.
TEST_F(Gpu, BucketsLeaveInPieces) {
  Words kinds{"mpi"};
  if (no_nccl(2).empty()) kinds.push_back("nccl");
  for (const auto& kind : kinds) {
    std::map<int, double> found[2];
    for (const bool overlap : {false, true}) {
      const std::string name = kind + (overlap ? " beside" : " after");
      const Outcome o = train(name, 2, {"communicator=" + kind, overlap ? "overlap=true" : "overlap=false",
                                        "bucket_mib=0.25", "first_bucket_mib=0.25", "model.vision_width=384",
                                        "model.vision_heads=6", "steps=20"});
      ASSERT_EQ(o.code, 0) << o;
      found[overlap] = losses(folder.path / name);
    }
    EXPECT_EQ(found[0].size(), 20u);
    EXPECT_EQ(found[0], found[1]) << kind;
  }
}

TEST_F(Gpu, TrainsInHalfPrecision) {
  const Outcome o = train("one", 1);
  ASSERT_EQ(o.code, 0) << o;
  const auto exact = losses(folder.path / "one");
  for (const std::string precision : {"bf16", "fp16"}) {
    const Outcome half = train(precision, 2, {"precision=" + precision, "optimizer.clip_norm=1"});
    ASSERT_EQ(half.code, 0) << half;
    const auto found = losses(folder.path / precision);
    // (fp16 may skip steps while its loss scale comes down.)
    EXPECT_NEAR(found.at(1), exact.at(1), 0.01 * std::fabs(exact.at(1))) << precision;
    EXPECT_LT(found.at(50), 0.95 * found.at(1)) << precision;
  }
}

// The same towers on a CPU, in f32: patches dropped alike, blocks computed again, batch statistics over ranks.
TEST_F(Gpu, TowersTrainAsOnACpu) {
  const std::string resnet = "model.resnet_layers=[1,1,1,1]", narrow = "model.vision_width=16",
                    heads = "model.vision_heads=8", sync = "model.sync_bn=true";
  const std::pair<const char*, Words> kinds[] = {{"dropout", {"model.patch_dropout=0.5"}},
                                                 {"again", {"model.patch_dropout=0.5", "model.checkpointing=true"}},
                                                 {"locked", {"model.lock_image=true"}},
                                                 {"resnet", {resnet, narrow, heads}},
                                                 {"locked resnet", {resnet, narrow, heads, "model.lock_image=true"}}};
  const auto expect_near = [&](const std::string& a, const std::string& b) {
    const auto x = losses(folder.path / a), y = losses(folder.path / b);
    ASSERT_EQ(x.size(), 8u);
    double worst = 0;
    for (const auto& [step, loss] : x) worst = nan_max(worst, std::fabs(y.at(step) - loss) / std::fabs(loss));
    EXPECT_LE(worst, 1e-3) << a << ", " << b;
  };
  const auto run = [&](const std::string& out, int ranks, Words keys, const std::string& more) {
    keys.insert(keys.end(), {"steps=8", more});
    const Outcome o = train(out, ranks, keys);
    ASSERT_EQ(o.code, 0) << o;
  };
  for (const auto& [name, keys] : kinds) {
    SCOPED_TRACE(name);
    run(std::string(name) + " cpu", 1, keys, "device=cpu");
    run(std::string(name) + " gpu", 1, keys, "device=cuda");
    expect_near(std::string(name) + " cpu", std::string(name) + " gpu");
    run(std::string(name) + " bf16", 1, keys, "precision=bf16");
  }
  run("sync 2", 2, {resnet, narrow, heads, sync}, "communicator=mpi");
  expect_near("resnet gpu", "sync 2");  // of one rank, whose statistics are all ranks' anyway
}

// Batch statistics over all ranks give the losses of one rank; each rank's own, as open_clip has them, do not. In f64:
// at a kink of a ReLU AdamW makes 1e-4 of a rounding of f32 within 20 steps, on a CPU as well; f32 is told.
TEST_F(Gpu, SyncBnOverNccl) {
  if (const auto why = no_nccl(2); !why.empty()) GTEST_SKIP() << why;
  const auto run = [&](int ranks, const std::string& precision, const std::string& sync) {
    const std::string out = "bn" + std::to_string(ranks) + precision + sync;
    const Outcome o = train(out, ranks,
                            {"communicator=nccl", "model.resnet_layers=[1,1,1,1]", "model.vision_width=16",
                             "model.vision_heads=8", "steps=20", "precision=" + precision, "model.sync_bn=" + sync});
    EXPECT_EQ(o.code, 0) << o;
    return losses(folder.path / out);
  };
  for (const std::string precision : {"f64", "f32"}) {
    const auto whole = run(1, precision, "true");
    ASSERT_EQ(whole.size(), 20u);
    for (int n : {2, 4}) {
      if (!no_nccl(n).empty()) continue;
      for (const std::string sync : {"true", "false"}) {
        const auto found = run(n, precision, sync);
        ASSERT_EQ(found.size(), 20u);
        double worst = 0;
        for (const auto& [step, loss] : whole)
          worst = nan_max(worst, std::fabs(found.at(step) - loss) / std::fabs(loss));
        std::printf("%s, sync_bn %s, %d ranks over nccl: worst relative difference of a loss in 20 steps %.1e\n",
                    precision.c_str(), sync.c_str(), n, worst);
        if (sync == "false") {
          EXPECT_GT(worst, 1e-3) << n << " ranks saw each other's statistics";
        } else if (precision == "f64") {
          EXPECT_LE(worst, 1e-8) << n;
        }
      }
    }
  }
}

// Adds up, rank by rank, the time of reductions inside the backward kernels of the same rank.
struct Overlap {
  double reduction_ms = 0, backward_ms = 0, inside_ms = 0;
};
std::map<int, Overlap> overlap_of(const fs::path& trace) {
  std::map<std::pair<int, int>, std::string> track;
  std::map<int, std::vector<std::pair<double, double>>> backward, reduction;
  const auto events = nlohmann::json::parse(std::ifstream(trace))["traceEvents"];
  for (const auto& e : events)
    if (e["ph"] == "M" && e["name"] == "thread_name") track[{e["pid"], e["tid"]}] = e["args"]["name"];
  for (const auto& e : events) {
    if (e["ph"] != "X") continue;
    const std::string row = track[{e["pid"], e["tid"]}], name = e["name"];
    const std::pair<double, double> span{e["ts"], e["ts"].get<double>() + e["dur"].get<double>()};
    if (row.starts_with("device") && name == "backward") backward[e["pid"]].push_back(span);
    // The gradient norm and the loss are an all-reduce of two values.
    if (row.starts_with("communication") && name == "all_reduce" && e["args"]["bytes"] > 1000)
      reduction[e["pid"]].push_back(span);
  }
  std::map<int, Overlap> found;
  for (const auto& [rank, spans] : backward)
    for (const auto& [b, e] : spans) found[rank].backward_ms += (e - b) / 1000;
  for (const auto& [rank, spans] : reduction)
    for (const auto& [b, e] : spans) {
      found[rank].reduction_ms += (e - b) / 1000;
      for (const auto& [from, to] : backward[rank])
        found[rank].inside_ms += std::max(0.0, std::min(e, to) - std::max(b, from)) / 1000;
    }
  return found;
}

TEST_F(Gpu, ReducesBesideBackward) {
  const int ranks = 4;
  Words kinds{"mpi"};
  if (no_nccl(ranks).empty()) kinds.push_back("nccl");
  for (const auto& kind : kinds) {
    const Outcome o = train(kind, ranks,
                            {"communicator=" + kind, "trace=true", "steps=20", "bucket_mib=0.25",
                             "model.vision_width=384", "model.vision_layers=8", "model.vision_heads=6"});
    ASSERT_EQ(o.code, 0) << o;
    const auto found = overlap_of(folder.path / kind / "trace.json");
    EXPECT_EQ(found.size(), 4u) << kind;
    for (const auto& [rank, x] : found) {
      EXPECT_GT(x.inside_ms, 0.1 * x.backward_ms) << kind << " rank " << rank;
      std::printf(
          "%s rank %d, 20 steps: backward %.0f ms on the device, %.0f ms of it (%.0f %%) beside reductions, "
          "which took %.0f ms\n",
          kind.c_str(), rank, x.backward_ms, x.inside_ms, 100 * x.inside_ms / x.backward_ms, x.reduction_ms);
    }
    if (const char* out = std::getenv("TRIREME_TEST_KEEP"))
      fs::copy_file(folder.path / kind / "trace.json", fs::path(out) / (kind + "-trace.json"),
                    fs::copy_options::overwrite_existing);
  }
}

// The phases of a step are the device's: together they fill it, though the host only enqueues.
TEST_F(Gpu, PhasesAreTheDevices) {
  const Outcome o = train("phases", 2, {"communicator=mpi", "threads=0", "log_every=5"});
  ASSERT_EQ(o.code, 0) << o;
  EXPECT_EQ(nlohmann::json::parse(read_text(folder.path / "phases/env.json"))["threads_per_rank"], 1);
  const auto lines = lines_of(read_text(folder.path / "phases/metrics.jsonl"));
  for (std::size_t i = 1; i < lines.size(); ++i) {  // the first one has the libraries' start
    const auto j = nlohmann::json::parse(lines[i]);
    if (!j["step_ms"].is_number()) continue;  // an evaluation
    double sum = 0;
    for (const char* phase : {"forward_ms", "backward_ms", "comm_exposed_ms", "optimizer_ms"}) {
      EXPECT_GT(j[phase], 0) << phase;
      sum += j[phase].get<double>();
    }
    EXPECT_GT(sum, 0.5 * j["step_ms"].get<double>()) << lines[i];
    EXPECT_LT(sum, 1.2 * j["step_ms"].get<double>()) << lines[i];
  }
}

// The host reads the device every 20 steps, and sees the steps between.
TEST_F(Gpu, NonFiniteStepsBetweenReadsAreSeen) {
  const char* faulty = std::getenv("TRIREME_FAULTY");
  write_text(folder.path / "faulty.yaml",
             "recipe: faulty\ndevice: cuda\ncommunicator: mpi\nsteps: 60\nbatch_size: 48\nthreads: 1\nlog_every: 20\n"
             "checkpoint: {every: 0}\nfault: {kind: nan, at: 6, rank: 1}\n");
  const auto run = [&](const Words& more) {
    Words words{"train", "faulty.yaml", "--ranks", "2", "--fresh", "--out", "faulty"};
    words.insert(words.end(), more.begin(), more.end());
    Program::Options options{folder.path};
    options.program = faulty ? faulty : fs::path(program_path()).parent_path() / "trireme_faulty";
    return run_program(words, options);
  };
  const auto expect_end = [](const Outcome& o, const std::string& said) {
    EXPECT_EQ(o.code, 5) << o;
    ASSERT_EQ(o.errors().size(), 1u) << o;
    EXPECT_NE(o.errors()[0].find(said), std::string::npos) << o;
    std::printf("%s\n", o.errors()[0].c_str());
  };
  expect_end(run({}), "step 7: ");
  expect_end(run({"checkpoint.every=10"}), "step 7: ");  // before it is saved
  EXPECT_FALSE(fs::exists(folder.path / "faulty/ckpt/step_00000010")) << "a checkpoint after a step that should stop";
  expect_end(run({"fault.steps=11", "nonfinite=skip"}), "for 11 steps in a row");
  expect_end(run({"fault.at=15", "fault.steps=11", "nonfinite=skip"}), "for 11 steps in a row");  // across a read
  const Outcome skipped = run({"fault.steps=10", "nonfinite=skip"});
  EXPECT_EQ(skipped.code, 0) << skipped;
  EXPECT_NE((skipped.out + skipped.err).find("step 7 and 9 more up to step 20: loss or gradient not finite, skipped"),
            std::string::npos)
      << skipped;
}

// tau falls through 0.03, where its learning rate changes: the device knows, however seldom the host looks.
TEST_F(Gpu, HowOftenItLogsChangesNothing) {
  const Words falling{"communicator=mpi", "loss.tau=0.0304", "loss.lr_tau=1e-2", "loss.rho=8", "steps=21"};
  std::map<std::string, std::map<int, double>> found;
  for (const std::string log : {"1", "7"})
    for (const std::string zero : {"0", "1"}) {
      Words more = falling;
      more.insert(more.end(), {"log_every=" + log, "zero=" + zero});
      const Outcome o = train("every" + log + zero, 2, more);
      ASSERT_EQ(o.code, 0) << o;
      found[log + zero] = losses(folder.path / ("every" + log + zero));
    }
  ASSERT_EQ(found["70"].size(), 3u);
  for (const auto& [step, loss] : found["70"]) {
    EXPECT_EQ(loss, found["10"].at(step)) << "step " << step;
    EXPECT_EQ(found["71"].at(step), found["11"].at(step)) << "step " << step << " with zero: 1";
  }
}

// memory_gib is the device's: more for a wider model, and less than the whole of it.
TEST_F(Gpu, MetricsHaveTheMemoryOfTheDevice) {
  std::map<std::string, double> gib;
  for (const std::string width : {"192", "768"}) {
    const Outcome o = train("wide" + width, 1, {"steps=3", "model.vision_width=" + width, "communicator=mpi"});
    ASSERT_EQ(o.code, 0) << o;
    const auto line = nlohmann::json::parse(lines_of(read_text(folder.path / ("wide" + width) / "metrics.jsonl"))[0]);
    ASSERT_TRUE(line["memory_gib"].is_number()) << line;
    gib[width] = line["memory_gib"];
    std::printf("vision_width %s: %.4f GiB of the device\n", width.c_str(), gib[width]);
  }
  EXPECT_GT(gib["192"], 0.01);
  EXPECT_GT(gib["768"], 3 * gib["192"]);
  EXPECT_LT(gib["768"], 8);
}

TEST_F(Gpu, ScaleMeasuresDeviceMemory) {
  const Outcome o = run_program(
      {"scale", "blots.yaml", "communicator=mpi", "log_every=8", "--ranks", "1,2", "--steps", "20", "--out", "study"},
      {folder.path, {}});
  ASSERT_EQ(o.code, 0) << o;
  const auto study = nlohmann::json::parse(read_text(folder.path / "study/scale.json"));
  EXPECT_EQ(study["setting"].get<std::string>().find("GPUs over "), 0u) << study["setting"];
  for (const auto& m : study["measured"]) {
    double sum = 0;
    for (const char* phase : {"data_ms", "forward_ms", "backward_ms", "comm_exposed_ms", "optimizer_ms"})
      sum += m[phase]["mean"].get<double>();
    EXPECT_NEAR(sum, m["step_ms"].get<double>(), 0.5 * m["step_ms"].get<double>());
  }
}

// 4 ranks, then 2, then 4 again (half of it where NCCL lacks cards): weights, moments, both tables of normalisers go on.
TEST_F(Gpu, ResumesOnOtherNumbersOfRanks) {
  for (const std::string kind : {"mpi", "nccl"}) {
    if (const auto why = no_nccl(2); kind == "nccl" && !why.empty()) GTEST_SKIP() << why;
    const int all = kind == "nccl" && !no_nccl(4).empty() ? 2 : 4;
    for (const std::string zero : {"zero=0", "zero=1"}) {
      const Words settings{"communicator=" + kind, zero, "checkpoint.every=15", "checkpoint.keep=9"};
      const std::string through = kind + zero + "whole", cut = kind + zero + "cut";
      ASSERT_EQ(train(through, all, settings).code, 0);
      const auto whole = losses(folder.path / through);
      ASSERT_EQ(train(cut, all, settings).code, 0);
      for (const auto& [after, ranks] : {std::pair(15, all / 2), std::pair(30, all)}) {
        // As if the job had ended at that step.
        for (const auto& entry : fs::directory_iterator(folder.path / cut / "ckpt"))
          if (std::stoi(entry.path().filename().string().substr(5)) > after) fs::remove_all(entry.path());
        const Outcome o = train(cut, ranks, settings);
        ASSERT_EQ(o.code, 0) << o;
        ASSERT_NE((o.out + o.err).find("resumed at step " + std::to_string(after)), std::string::npos) << o;
      }
      double worst = 0;
      const auto found = losses(folder.path / cut);
      ASSERT_EQ(found.size(), whole.size());
      for (const auto& [step, loss] : whole) worst = nan_max(worst, std::fabs(found.at(step) - loss) / std::fabs(loss));
      EXPECT_LE(worst, 1e-5) << kind << " " << zero;
      std::printf("%s %s: %d, %d, %d ranks: worst relative difference of a loss %.1e\n", kind.c_str(), zero.c_str(),
                  all, all / 2, all, worst);
    }
  }
}

// A checkpoint of a GPU run, taken up again: the last steps have the same losses.
TEST_F(Gpu, ResumesFromItsCheckpoint) {
  const Words settings{"communicator=mpi", "steps=20", "checkpoint.every=10"};
  ASSERT_EQ(train("run", 2, settings).code, 0);
  const auto whole = losses(folder.path / "run");
  fs::remove_all(folder.path / "run/ckpt/step_00000020");
  const Outcome again = train("run", 2, settings);
  ASSERT_EQ(again.code, 0) << again;
  EXPECT_EQ(losses(folder.path / "run"), whole);
}

// `trireme eval` on the device, on the host and on two ranks: the same shares but for a pair whose scores nearly tie.
// Online and from a file, with selection, in bf16: and on a GPU as on a CPU.
TEST_F(Gpu, IsSteeredByAReference) {
  const Words steps{"steps=10", "recipe=drrho_clip", "loss.tau=0.1", "data.crop_scale=1"};
  const auto run = [&](const std::string& out, Words more) {
    more.insert(more.begin(), steps.begin(), steps.end());
    const Outcome o = train(out, 1, more);
    EXPECT_EQ(o.code, 0) << out << "\n" << o;
    return losses(folder.path / out);
  };
  // The first steps: a row that is drawn by a rounding changes what follows.
  const auto furthest = [](const std::map<int, double>& a, const std::map<int, double>& b) {
    double worst = a.size() == b.size() ? 0 : HUGE_VAL;
    for (const auto& [step, loss] : a)
      if (step <= 3) worst = nan_max(worst, std::fabs(b.at(step) - loss) / (1 + std::fabs(loss)));
    return worst;
  };
  ASSERT_EQ(train("reference", 1, {"steps=10", "seed=7", "checkpoint.every=10"}).code, 0);
  for (const std::string type : {"f16", "f32"}) {
    const Outcome o = run_program(
        {"data", "cache-reference", "reference", "blots.h5", "--type", type, "--device", "cuda", "--out", type + ".h5"},
        {folder.path, {}});
    ASSERT_EQ(o.code, 0) << o;
  }
  for (const std::string use : {"[shift, distill]", "[shift, select]"}) {
    const std::string name = use.substr(1, 5) + use.substr(8, 4), online = "reference.model=reference",
                      cached = "reference.features=f32.h5", how = "reference.use=" + use,
                      half = "reference.select_fraction=0.5";
    const auto here = run(name, {online, how, half});
    EXPECT_LE(furthest(here, run(name + "file", {cached, how, half})), 1e-3) << use << ": the file is not the model";
    EXPECT_LE(furthest(here, run(name + "cpu", {online, how, half, "device=cpu"})), 1e-3) << use << ": on a CPU";
    const auto bf16 = run(name + "bf16", {"reference.features=f16.h5", how, half, "precision=bf16"});
    EXPECT_TRUE(std::isfinite(bf16.at(10))) << use;
    EXPECT_EQ(here.size(), bf16.size());
  }
}

TEST_F(Gpu, EvaluatesAsTheHostDoes) {
  ASSERT_EQ(train("one", 1).code, 0);
  const auto metrics = [&](Words more) {
    Words words{"eval", "one", "--linear-probe", "blots.h5", "--json"};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome o = run_program(words, {folder.path});
    EXPECT_EQ(o.code, 0) << o;
    return nlohmann::json::parse(o.out, nullptr, false);
  };
  const auto host = metrics({"--device", "cpu"});
  for (const Words& more : {Words{"--device", "cuda"}, Words{"--device", "cuda", "--ranks", "2"}}) {
    const auto device = metrics(more);
    double worst = 0;
    for (const auto& [key, value] : host.items()) {
      if (!value.is_number_float() || key == "linear_probe_c") continue;
      ASSERT_TRUE(device[key].is_number()) << key;
      const double apart = std::fabs(device[key].get<double>() - value.get<double>());
      // The probe may choose another penalty.
      EXPECT_LE(apart, key.starts_with("linear_probe") ? 0.1 : 0.01) << key;
      worst = nan_max(worst, apart);
    }
    std::printf("evaluation with %s: shares differ from the host's by %.2g at most\n", more.back().c_str(), worst);
  }
}

}  // namespace
}  // namespace trireme::test
