// DLRM on a GPU through the program: the losses of a CPU, of one rank on several, and of raw rows through a lossless
// codec. Data is made on the way.
#include "tests/gpu/training.h"

namespace trireme::test {
namespace {

class DlrmGpu : public Gpu {
 protected:
  Outcome run(const std::string& out, int ranks, const std::string& device, Words keys) {
    write_text(folder.path / "dlrm.yaml",
               "recipe: dlrm\nsteps: 30\nbatch_size: 512\nlog_every: 1\noptimizer: {name: sgd, lr: 0.1, momentum: 0.0, "
               "weight_decay: 0.0, schedule: const}\ndata: {shape: kaggle, scale: 1000, samples: 20000, test_samples: "
               "2000}\nmodel: {dim: 16, bottom: [64, 32], top: [64]}\n");
    Words words{"train", "dlrm.yaml", "--out", out, "device=" + device};
    if (ranks > 1) words.insert(words.end(), {"--ranks", std::to_string(ranks)});
    words.insert(words.end(), keys.begin(), keys.end());
    return run_program(words, {folder.path});
  }
  void expect_near(const std::string& a, const std::string& b, double bound) {
    const auto x = losses(folder.path / a), y = losses(folder.path / b);
    ASSERT_EQ(x.size(), 30u);
    double worst = 0;
    for (const auto& [step, loss] : x) worst = nan_max(worst, std::fabs(y.at(step) - loss) / std::fabs(loss));
    EXPECT_LE(worst, bound) << a << ", " << b;
  }
};

TEST_F(DlrmGpu, LossesOfACpuAndOfOneRank) {
  for (const std::string rule : {"sgd", "adagrad", "rowwise_adagrad"}) {
    const Words keys{"embedding.optimizer=" + rule, "embedding.lr=" + std::string(rule == "sgd" ? "0.1" : "0.01")};
    ASSERT_EQ(run("cpu " + rule, 1, "cpu", keys).code, 0);
    const Outcome one = run("one " + rule, 1, "cuda", keys);
    ASSERT_EQ(one.code, 0) << one;
    expect_near("cpu " + rule, "one " + rule, 1e-4);
    for (const int ranks : {2, 4}) {
      Words more = keys;
      more.push_back("communicator=mpi");
      const Outcome o = run(rule + std::to_string(ranks), ranks, "cuda", more);
      ASSERT_EQ(o.code, 0) << o;
      expect_near("one " + rule, rule + std::to_string(ranks), 1e-4);
    }
  }
}

TEST_F(DlrmGpu, CodesOnTheDevice) {
  const Words raw{"communicator=mpi"}, lossless{"communicator=mpi",
                                                "compression.forward.codec=auto",
                                                "compression.forward.tight=0",
                                                "compression.forward.base=0",
                                                "compression.forward.loose=0",
                                                "compression.backward.codec=auto",
                                                "compression.backward.bound=0"};
  ASSERT_EQ(run("raw", 2, "cuda", raw).code, 0);
  const Outcome coded = run("lossless", 2, "cuda", lossless);
  ASSERT_EQ(coded.code, 0) << coded;
  expect_near("raw", "lossless", 1e-4);
  const Words both{"communicator=mpi", "compression.forward.codec=auto", "compression.backward.codec=auto"};
  const Outcome gpu = run("gpu", 2, "cuda", both);
  ASSERT_EQ(gpu.code, 0) << gpu;
  ASSERT_EQ(run("host", 2, "cpu", both).code, 0);
  expect_near("gpu", "host", 1e-2);  // an ulp in a table may move a code by one
  const Words paper{"communicator=mpi", "compression.forward.codec=published"};  // one of two codecs for each table
  const Outcome published = run("published", 2, "cuda", paper);
  ASSERT_EQ(published.code, 0) << published;
  ASSERT_EQ(run("published on the host", 2, "cpu", paper).code, 0);
  expect_near("published", "published on the host", 1e-2);
  const Outcome link =
      run("link", 2, "cuda", {"communicator=mpi", "compression.forward.codec=auto", "compression.choose=link"});
  ASSERT_EQ(link.code, 0) << link;
  EXPECT_NE(link.out.find("exchange measured"), std::string::npos) << link;
}

}  // namespace
}  // namespace trireme::test
