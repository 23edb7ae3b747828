// Language models through the program: logits, export, pretraining, generation, and what they refuse.
#include "framework/base/tensor.h"
#include "framework/formats/safetensors.h"
#include "tests/fault/program.h"
#include "tests/needs.h"
#include "tests/unit/reference_files.h"
#include "tests/unit/said.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace trireme::test {
namespace {

using trireme::test::reference_file;

std::string folder_of(const std::string& family) { return reference_file("lm/" + family); }

double difference(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return NAN;
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

class LanguageModelProgram : public ::testing::Test {
 protected:
  Outcome run(const Words& words) {
    return run_program(words, {.folder = temp.path, .environment = {"XDG_CACHE_HOME=" + temp.path.string()}});
  }
  std::string file(const std::string& name) const { return (temp.path / name).string(); }
  at::Tensor logits(const std::string& name) const { return Safetensors(file(name)).tensor("logits"); }
  TempFolder temp;
};

TEST_F(LanguageModelProgram, LogitsAndExport) {
  const std::string model = folder_of("qwen2"), adapter = model + "/adapter", ids = model + "/logits.safetensors";
  const Safetensors reference(ids);
  EXPECT_EQ(run({"logits", model, "--ids", ids, "--out", "base"}).code, 0);
  EXPECT_LT(difference(logits("base"), reference.tensor("logits")), 2e-5);
  EXPECT_EQ(run({"logits", model, "--adapter", adapter, "--ids", ids, "--out", "adapted"}).code, 0);
  EXPECT_LT(difference(logits("adapted"), reference.tensor("adapted")), 2e-5);
  const Outcome exported = run({"export", model, "--adapter", adapter, "--precision", "f32", "--out", "merged"});
  EXPECT_EQ(exported.code, 0) << exported;
  EXPECT_EQ(run({"logits", "merged", "--ids", ids, "--out", "of_merged"}).code, 0);
  EXPECT_LT(difference(logits("of_merged"), reference.tensor("adapted")), 3e-5);

  at::Tensor beyond = reference.tensor("ids").clone();
  beyond[1][3] = 29;
  write_safetensors(file("beyond"), std::vector<NamedTensor>{{"ids", beyond}});
  const Outcome refused = run({"logits", model, "--ids", file("beyond"), "--out", "x"});
  EXPECT_EQ(refused.code, 3);
  EXPECT_SAYS(refused.err, "holds 29, the model's vocabulary has 29");
  const Outcome other = run({"logits", model, "--adapter", folder_of("gpt2") + "/adapter", "--ids", ids, "--out", "x"});
  EXPECT_EQ(other.code, 2);
  EXPECT_SAYS(other.err, "no linear module 'c_");
  EXPECT_EQ(run({"logits", "nowhere", "--ids", ids, "--out", "x"}).code, 3);

  // Names that no file system takes: of the user, and of an index from outside.
  const std::string long_name(5000, 'a');
  fs::create_directories(temp.path / "long");
  fs::copy(model + "/config.json", temp.path / "long");
  write_text(temp.path / "long/model.safetensors.index.json",
             "{\"weight_map\": {\"model.norm.weight\": \"" + long_name + ".safetensors\"}}");
  for (const std::string& path : {long_name, std::string("long")}) {
    const Outcome o = run({"logits", path, "--ids", ids, "--out", "x"});
    EXPECT_EQ(o.code, 3) << o;
    EXPECT_SAYS(o.err, "File name too long; check the path");
  }
}

// From text to a folder: the loss falls, one rank or two, and the run, its folder and what goes on from it are one
// model.
TEST_F(LanguageModelProgram, PretrainingMakesAFolder) {
  TRIREME_NEEDS("PCRE2");
  std::string text;
  for (int i = 0; i < 400; ++i) text += "The cat number " + std::to_string(i % 37) + " sat on the mat.\n\n";
  write_text(temp.path / "cats.txt", text);
  write_text(temp.path / "p.yaml",
             "recipe: causal_lm\nsteps: 100\nbatch_size: 8\nthreads: 1\ndevice: cpu\n"
             "optimizer: {lr: 1.0e-2, warmup: 5, weight_decay: 0.0}\n"
             "model: {layers: 2, width: 32, intermediate: 64, heads: 4, kv_heads: 2, vocab: 300}\n"
             "text: {sources: [" +
                 file("cats.txt") + "], length: 32, held_out: 0.1}\n");
  const auto loss_of = [](const Outcome& o) { return std::stod(o.out.substr(o.out.rfind("loss=") + 5)); };
  const Outcome whole = run({"train", "p.yaml", "--out", "a"});
  ASSERT_EQ(whole.code, 0) << whole;
  EXPECT_LT(loss_of(whole), 2.5);  // log(300) = 5.7 where it begins
  const Outcome two = run({"train", "p.yaml", "--ranks", "2", "--out", "b"});
  ASSERT_EQ(two.code, 0) << two;
  EXPECT_NEAR(loss_of(two), loss_of(whole), 1e-3);
  ASSERT_EQ(run({"train", "p.yaml", "log_every=7", "--out", "c", "--fresh"}).code, 0);

  ASSERT_EQ(run({"export", "a", "--out", "folder", "--shard-mib", "1"}).code, 0);
  const at::Tensor ids = at::arange(60).view({2, 30});
  write_safetensors(file("ids"), std::vector<NamedTensor>{{"ids", ids}});
  for (const std::string model : {"a", "folder", "c"})
    ASSERT_EQ(run({"logits", model, "--ids", file("ids"), "--out", "of_" + model}).code, 0);
  EXPECT_EQ(difference(logits("of_a"), logits("of_folder")), 0);
  EXPECT_EQ(difference(logits("of_a"), logits("of_c")), 0);
  const Outcome said = run({"generate", "folder", "--prompt", "The cat number 3", "--max", "20"});
  EXPECT_EQ(said.code, 0) << said;
  EXPECT_SAYS(said.out, "sat on the mat") << said;
  EXPECT_EQ(run({"generate", "a", "--prompt", "The cat number 3", "--max", "20"}).out, said.out);
}

}  // namespace
}  // namespace trireme::test
