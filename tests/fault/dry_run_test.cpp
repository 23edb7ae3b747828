// links: comm
// `train --dry-run`: what it says about a run is what a run then does.
#include "tests/fault/experiment.h"

namespace trireme::test {
namespace {

struct Call {
  std::string on, collective;
  std::uint64_t bytes;
};

// The lines "1  grad  all_reduce  1234" at the end.
std::vector<Call> schedule(const Outcome& o) {
  std::vector<Call> calls;
  for (const auto& line : lines_of(o.out)) {
    std::istringstream in(line);
    std::size_t number = 0;
    Call c;
    if (in >> number >> c.on >> c.collective >> c.bytes && number == calls.size() + 1) calls.push_back(c);
  }
  return calls;
}

std::uint64_t bytes(const std::vector<Call>& calls, const std::string& on = "") {
  std::uint64_t sum = 0;
  for (const auto& c : calls)
    if (on.empty() || c.on == on) sum += c.bytes;
  return sum;
}

TEST(DryRun, CountsWhatARunSends) {
  if (const auto why = missing_for_pairs(); !why.empty()) GTEST_SKIP() << why;
  TempFolder folder;
  write_text(folder.path / "mlp.yaml",
             "recipe: mlp\nsteps: 6\nbatch_size: 16\neval_every: 0\nfirst_bucket_mib: 0.01\n"
             "bucket_mib: 0.02\nsizes: [64, 128, 64, 10]\n");
  prepare_pairs(folder.path);
  write_text(folder.path / "clip.yaml", experiment(6, 32, 8));
  const double for_the_log = 64;  // bytes a step by which ranks tell each other their times, when they log
  for (const std::string name : {"mlp", "clip"}) {
    SCOPED_TRACE(name);
    const Outcome dry =
        run_program({"train", name + ".yaml", "log_every=3", "--dry-run", "--ranks", "2"}, {folder.path});
    ASSERT_EQ(dry.code, 0) << dry;
    EXPECT_FALSE(fs::exists(folder.path / "runs")) << "a dry run leaves nothing behind";
    const Outcome run = run_program({"train", name + ".yaml", "log_every=3", "--ranks", "2"}, {folder.path});
    ASSERT_EQ(run.code, 0) << run;
    const auto sent = logged(folder.path / "runs" / name, "bytes_sent");
    ASSERT_EQ(sent.size(), 2u);
    EXPECT_NEAR(double(bytes(schedule(dry))), sent[1].second, for_the_log) << dry;
    fs::remove_all(folder.path / "runs");
  }
}

// Bytes of each line of the plan, those of settings that are not used included.
std::map<std::string, double> planned(const Outcome& o) {
  std::map<std::string, double> bytes;
  for (const auto& line : lines_of(o.out))
    if (line.size() > 57 && line.starts_with("  ") && line[2] != ' ' && line.find("  ", 55) == 55) {
      const std::string name = line.substr(2, 36);
      bytes[name.substr(0, name.find_last_not_of(' ') + 1)] = std::stod(line.substr(39, 16));
    }
  return bytes;
}

// The settings of FastCLIP's authors, without their data: bytes are those of the method's formulas.
TEST(DryRun, TellsBytesOfTheMethodsSettings) {
  struct Case {
    std::string file;
    double samples, parameters, width, batch;
    int ranks;
    std::string more;
  };
  const std::string recipes = std::string(std::getenv("TRIREME_SOURCE")) + "/recipes/fastclip/";
  for (const Case& c : {Case{"medium", 3318333, 102.01e6, 1024, 1024, 8, ""},
                        {"medium", 3318333, 102.01e6, 1024, 4096, 32, "loss.reduction=reduce_scatter"},
                        {"large", 12423374, 151.28e6, 512, 8192, 32, "loss.u_table=replicated"},
                        {"xlarge", 414080000, 149.62e6, 512, 5120, 16, "zero=1"},
                        {"../drrho_clip/drrho_dfn192m", 255020000, 149.62e6, 512, 5120, 8, ""},
                        {"ablations/v2", 3318333, 102.01e6, 1024, 1024, 8, ""},
                        {"ablations/openclip", 3318333, 102.01e6, 1024, 1024, 8, "loss.reduction=reduce_scatter"}}) {
    SCOPED_TRACE(c.file + " " + c.more);
    Words words{"train",   recipes + c.file + ".yaml", "batch_size=" + std::to_string(int(c.batch)), "--dry-run",
                "--ranks", std::to_string(c.ranks)};
    if (!c.more.empty()) words.push_back(c.more);
    const Outcome o = run_program(words, {});
    ASSERT_EQ(o.code, 0) << o;
    EXPECT_LT(o.seconds, 20);
    EXPECT_NE(o.out.find("no step was taken"), std::string::npos);
    auto bytes = planned(o);
    const bool v2 = c.file == "ablations/v2", mini_batch = c.file == "ablations/openclip";
    const double k = c.ranks, b = c.batch / k, p = bytes["gradients"] / 4;
    EXPECT_NEAR(p, c.parameters, 0.005e6);
    EXPECT_EQ(bytes["adamw, zero: 0"], 8 * p);
    EXPECT_NEAR(bytes["adamw, zero: 1"], 8 * p / k, 1);
    EXPECT_EQ(bytes["features, all-gather"], (k - 1) * b * 2 * c.width * 4);
    EXPECT_EQ(bytes["feature gradients, reduce-scatter"], (k - 1) * b * 2 * c.width * 4);
    EXPECT_NEAR(bytes["gradients, all-reduce"], 2 * (k - 1) / k * p * 4, 1);
    const bool steered = c.file.starts_with("../drrho_clip");
    EXPECT_EQ(bytes["reference features, all-gather"], steered ? (k - 1) * b * 2 * c.width * 4 : 0);
    if (mini_batch) {
      EXPECT_FALSE(bytes.contains("scalars, all-gather") || bytes.contains("u table, sharded")) << o;
      continue;
    }
    EXPECT_EQ(bytes["scalars, all-gather"], (k - 1) * b * (v2 ? 12 : 2) * 4);
    EXPECT_EQ(bytes["u table, replicated"], (v2 ? 40 : 8) * c.samples);
    EXPECT_NEAR(bytes["u table, sharded"], (v2 ? 40 : 8) * c.samples / k, 1);
    // The sum leaves out what the settings do not use.
    const bool sent = c.more == "loss.reduction=reduce_scatter", replicated = c.more == "loss.u_table=replicated";
    EXPECT_NEAR(bytes["sum"],
                bytes["features, all-gather"] + bytes["reference features, all-gather"] + bytes["scalars, all-gather"] +
                    bytes["gradients, all-reduce"] + (sent ? bytes["feature gradients, reduce-scatter"] : 0) +
                    (replicated ? 0 : bytes["u table, all-to-all (mean)"]),
                2);
  }
}

TEST(DryRun, EveryRecipeFileIsRead) {
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(std::string(std::getenv("TRIREME_SOURCE")) + "/recipes"))
    if (entry.path().extension() == ".yaml") {
      const bool sweep = read_text(entry.path()).find("\nrecipe: lora_sweep\n") != std::string::npos;
      const std::string folder = entry.path().parent_path().filename().string();
      const bool sample = folder == "tide" || folder == "sdit" || folder == "supergen";
      const std::string command = sweep ? "sweep" : sample ? "sample" : "train";
      const Outcome o = run_program({command, entry.path().string(), "--print-config"}, {});
      EXPECT_EQ(o.code, 0) << entry.path() << "\n" << o;
      ++files;
    }
  EXPECT_GT(files, 15);
}

TEST(Check, TellsWhichPromisesHold) {
  TempFolder folder;
  const std::string mlp = std::string(std::getenv("TRIREME_SOURCE")) + "/recipes/mlp/mlp.yaml";
  const Words words{"check", mlp, "--ranks", "2,1", "--steps", "4", "--out", "checked"};
  const Outcome good = run_program(words, {.folder = folder.path});
  EXPECT_EQ(good.code, 0) << good;
  EXPECT_NE(good.out.find("holds   losses of 1 and 2 ranks"), std::string::npos) << good;
  EXPECT_NE(good.out.find("goes on from step 2 ends in the same bits"), std::string::npos) << good;
  Words lossy = words;  // in the same folder
  for (const char* key : {"hook.name=int8", "hook.error_feedback=false", "optimizer.lr=0.1", "optimizer.warmup=0"})
    lossy.push_back(key);
  const Outcome broken = run_program(lossy, {.folder = folder.path});
  EXPECT_EQ(broken.code, 1) << broken;
  EXPECT_NE(broken.out.find("BROKEN  losses of 1 and 2 ranks"), std::string::npos) << broken;
  EXPECT_NE(broken.out.find("holds   a run on 2 ranks"), std::string::npos) << broken;
}

TEST(DryRun, KeysOfARecipe) {
  for (const auto& [recipe, key] : {std::pair("dlrm", "`compression.forward.codec`"), {"lora_sweep", "`search.lr`"}}) {
    const Outcome o = run_program({"keys", recipe}, {});
    EXPECT_EQ(o.code, 0) << o;
    EXPECT_NE(o.out.find(key), std::string::npos) << o;
  }
  const Outcome none = run_program({"keys", "lora_sweeep"}, {});
  EXPECT_EQ(none.code, 2);
  for (const char* part : {"did you mean lora_sweep?", "fastclip", "sample"})
    EXPECT_NE(none.err.find(part), std::string::npos) << none;
}

double gathered(std::map<std::string, double>& bytes) {
  return bytes["features, all-gather"] + bytes["scalars, all-gather"] + bytes["reference features, all-gather"] +
         bytes["selection, all-gather"];
}

// And that is what a step sends, also with a reference of another width than the model's 32.
TEST(DryRun, PlansWhatAStepSends) {
  if (const auto why = missing_for_pairs(); !why.empty()) GTEST_SKIP() << why;
  TempFolder folder;
  prepare_pairs(folder.path);
  write_text(folder.path / "clip.yaml", experiment(6, 32, 8));
  ASSERT_EQ(run_program({"train", "clip.yaml", "model.embed_dim=20", "--out", "model"}, {folder.path}).code, 0);
  const double b = 4, m = 2;  // of 16 pairs on 4 ranks, and half of them
  for (const std::string loss :
       {"rgclg", "gcl", "mbcl", "siglip", "rgcl, temperature: individual", "rgclg, u_table: replicated"})
    for (const std::string reduction : {"scalars", "reduce_scatter"})
      for (const std::string use : {"", "use: [distill]", "use: [shift]", "use: [shift, distill]", "use: [select]",
                                    "use: [select, shift]", "use: [select], select: rho"}) {
        if (use.find("shift") != use.npos && !loss.starts_with("rgclg")) continue;
        if (!use.empty() && (loss == "gcl" || loss == "siglip" || loss.ends_with("replicated"))) continue;  // enough
        SCOPED_TRACE(loss + " " + reduction + " " + use);
        Words words{"train",     "clip.yaml", "loss={name: " + loss + ", reduction: " + reduction + "}",
                    "--dry-run", "--ranks",   "4"};
        if (!use.empty()) words.push_back("reference={model: model, select_fraction: 0.5, " + use + "}");
        const Outcome o = run_program(words, {folder.path});
        ASSERT_EQ(o.code, 0) << o;
        auto bytes = planned(o);
        const bool selects = use.find("select") != use.npos, rho = use.ends_with("rho");
        EXPECT_EQ(bytes.contains("u table, all-to-all (mean)"),
                  loss == "rgclg" || loss == "gcl" || loss.starts_with("rgcl,"));
        const bool compares = use.find("shift") != use.npos || use.find("distill") != use.npos;
        EXPECT_EQ(bytes.contains("reference features, all-gather"), compares);
        // Of jest's two draws of one pair the first is gathered.
        EXPECT_EQ(bytes["selection, all-gather"], selects ? 3 * (rho ? b : 1) * 2 * (32 + 20) * 4 : 0);
        EXPECT_EQ(bytes["chosen rows, all-gather"], selects ? 3 * m * 8 : 0);
        std::map<std::string, double> sent;
        for (const auto& call : schedule(o))
          if (call.on == "world") sent[call.collective] += double(call.bytes);
        EXPECT_EQ(sent["all_gather"], gathered(bytes)) << o;
        EXPECT_EQ(sent["reduce_scatter"], reduction == "scalars" ? 0 : bytes["feature gradients, reduce-scatter"]) << o;
        // Where a table is spread, a step's share of other ranks' entries varies.
        EXPECT_NEAR(sent["all_to_all"], bytes["u table, all-to-all (mean)"], bytes["u table, all-to-all (mean)"]) << o;
      }
}

// A reference is as large as it is, where it is here, and else as large as the model, which is said; what training
// would refuse is refused.
TEST(DryRun, PlansAReferenceWithoutTheData) {
  if (const auto why = missing_for_pairs(); !why.empty()) GTEST_SKIP() << why;
  TempFolder folder;
  prepare_pairs(folder.path);
  write_text(folder.path / "clip.yaml", experiment(1, 32, 8));
  ASSERT_EQ(run_program({"train", "clip.yaml", "model.embed_dim=20", "--out", "model"}, {folder.path}).code, 0);
  const auto plan = [&](const Words& more) {
    Words words{"train", "clip.yaml", "data.file=nowhere.h5", "data.pairs=1000", "--dry-run", "--ranks", "4"};
    words.insert(words.end(), more.begin(), more.end());
    return run_program(words, {folder.path});
  };
  const Outcome there = plan({"reference.model=model"}), missing = plan({"reference.model=elsewhere"}),
                plain = plan({});
  ASSERT_EQ(there.code, 0) << there;
  ASSERT_EQ(missing.code, 0) << missing;
  EXPECT_EQ(planned(there)["reference features, all-gather"], 3 * 4 * 2 * 20 * 4);
  EXPECT_EQ(planned(missing)["reference features, all-gather"], 3 * 4 * 2 * 32 * 4);
  EXPECT_EQ(there.out.find("it is not here"), std::string::npos) << there;
  EXPECT_NE(missing.out.find("it is not here"), std::string::npos) << missing;
  // Projections of both towers, 32 wide, to 20 instead of 32 numbers.
  const double weights = planned(plain)["weights"];
  EXPECT_EQ(planned(missing)["reference, weights"], weights);
  EXPECT_EQ(planned(there)["reference, weights"], weights - 2 * 32 * 12 * 4);
  // log(1/tau) has a place in the buckets also where it is constant, and SigLIP a bias beside it.
  const double gradients = planned(plain)["gradients"];
  EXPECT_EQ(planned(plan({"loss.temperature=const"}))["gradients"], gradients);
  EXPECT_EQ(planned(plan({"loss.name=siglip"}))["gradients"], gradients + 4);
  const auto refuses = [&](const Words& more, const std::string& part) {
    Words words{"reference.model=model", "reference.use=[select]"};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome o = plan(words);
    EXPECT_EQ(o.code, 2) << o;
    EXPECT_NE(o.err.find(part), std::string::npos) << o;
  };
  refuses({"reference.select_fraction=0.1"}, "reference.select_fraction: leaves nothing of the 4 pairs of a rank");
  refuses({"reference.select_fraction=0.5", "accumulate=4"}, "leaves 2 of the 4 pairs of a rank, which accumulate: 4");
  refuses({"accumulate=8"}, "accumulate: 8 does not divide the 4 samples of a rank");
}

TEST(DryRun, AThousandRanks) {
  TempFolder folder;
  write_text(folder.path / "e.yaml", "recipe: mlp\nsteps: 10\nbatch_size: 2048\nsizes: [64, 128, 10]\n");
  const Outcome o = run_program({"train", "e.yaml", "--dry-run", "--ranks", "1024"}, {folder.path});
  ASSERT_EQ(o.code, 0) << o;
  EXPECT_LT(o.seconds, 20);
  EXPECT_NE(o.out.find("rank 0 of 1024, alone in a fake world"), std::string::npos) << o;
  const std::uint64_t parameters = 64 * 128 + 128 + 128 * 10 + 10;
  EXPECT_NE(o.out.find("parameters " + std::to_string(parameters)), std::string::npos) << o;
  // A ring of n ranks sends each byte 2(n-1)/n times; each of the four parameters is padded by less than 64 bytes.
  const auto grad = bytes(schedule(o), "grad");
  EXPECT_NEAR(double(grad), 2.0 * 1023 / 1024 * 4 * double(parameters), 2 * 4 * 64) << o;
  EXPECT_EQ(o.out.find("0 MiB a step"), std::string::npos);
  const Outcome odd = run_program({"train", "e.yaml", "--dry-run", "--ranks", "1000"}, {folder.path});
  EXPECT_EQ(odd.code, 2) << odd;
  EXPECT_NE(odd.err.find("not divisible by 1000 ranks"), std::string::npos) << odd;
}

}  // namespace
}  // namespace trireme::test
