// DLRM on a GPU through the program: the losses of a CPU, of one rank on several, and of raw rows through a lossless
// codec. Data is made on the way. Its kernels against their host twins, bit by bit, and steps that are replayed as a
// CUDA graph against steps that are not.
#include "comm/local/self.h"
#include "data/loader.h"
#include "data/rng.h"
#include "framework/experiment.h"
#include "framework/io/checkpoint.h"
#include "framework/losses/binary_loss.h"
#include "framework/nn/embedding.h"
#include "framework/nn/interaction.h"
#include "framework/session.h"
#include "recipes/dlrm/codec_speed.h"
#include "recipes/dlrm/combine.h"
#include "tests/gpu/training.h"

#include <ATen/ATen.h>

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
                                                "compression.backward.bound=0",
                                                "compression.backward.combine=true"};
  ASSERT_EQ(run("raw", 2, "cuda", raw).code, 0);
  const Outcome coded = run("lossless", 2, "cuda", lossless);
  ASSERT_EQ(coded.code, 0) << coded;
  expect_near("raw", "lossless", 1e-4);
  const Words both{"communicator=mpi", "compression.forward.codec=auto", "compression.backward.codec=auto",
                   "compression.backward.combine=true"};
  const Outcome gpu = run("gpu", 2, "cuda", both);
  ASSERT_EQ(gpu.code, 0) << gpu;
  ASSERT_EQ(run("host", 2, "cpu", both).code, 0);
  expect_near("gpu", "host", 1e-2);  // an ulp in a table may move a code by one
  Words in_room = both;
  in_room.push_back("compression.sizes=capacity");
  const Outcome capacity = run("capacity", 2, "cuda", in_room);
  ASSERT_EQ(capacity.code, 0) << capacity;
  expect_near("gpu", "capacity", 0);
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

// One table with blanks, on two ranks: one of them codes nothing on the way to the samples, and reads nothing back.
// What has no kernels is refused before a step, by its key; a codec is as small there as on the host.
TEST_F(DlrmGpu, CodecsOfTheDeviceAlone) {
  for (const std::string key :
       {"compression.nonfinite=error", "compression.checksum=true", "compression.forward.codec=smallest"}) {
    const Outcome o = run("refused", 1, "cuda", {"compression.backward.codec=auto", key});
    EXPECT_EQ(o.code, 2) << o;
    EXPECT_NE(o.err.find(key.substr(0, key.find('='))), std::string::npos) << o;
  }
  std::vector<at::Tensor> host, device;
  for (int k = 0; k < 3; ++k)
    host.push_back(at::randn({256, 16}) * (at::rand({256, 1}) > 0.7)), device.push_back(host.back().cuda());
  for (const std::string codec : {"auto", "dedup_sparse", "dedup_packed", "vector_lz", "huffman"}) {
    const dlrm::CodecSpeed a = dlrm::measure_codec(codec, host, 0.02, 3),
                           b = dlrm::measure_codec(codec, device, 0.02, 6);
    EXPECT_EQ(a.ratio, b.ratio) << codec;
    EXPECT_GT(b.encode, 0);
    EXPECT_GT(b.decode, 0);
  }
}

TEST_F(DlrmGpu, ARankWithoutTables) {
  std::string csv = "clicked,price,shop\n";
  for (int i = 0; i < 4000; ++i)
    csv += std::to_string(i % 5 < 2) + "," + std::to_string(i % 7) + "," +
           (i % 9 == 4 ? "" : "s" + std::to_string(i % 13)) + "\n";
  write_text(folder.path / "own.csv", csv);
  const Outcome prepared = run_program({"data", "table", "--from", "own.csv", "--label", "clicked", "--sparse", "shop",
                                        "--dense", "price", "--out", "own.h5"},
                                       {folder.path});
  ASSERT_EQ(prepared.code, 0) << prepared;
  Words keys{"data.file=own.h5"};
  ASSERT_EQ(run("alone", 1, "cpu", keys).code, 0);
  for (const char* more : {"communicator=mpi", "compression.forward.codec=auto", "compression.forward.tight=0",
                           "compression.forward.base=0", "compression.forward.loose=0",
                           "compression.backward.codec=auto", "compression.backward.bound=0"})
    keys.push_back(more);
  const Outcome o = run("two", 2, "cuda", keys);
  ASSERT_EQ(o.code, 0) << o;
  expect_near("alone", "two", 1e-4);
}

// No atomics: a run gives its bits again.
TEST_F(DlrmGpu, TwiceTheSameBits) {
  const Words keys{"embedding.optimizer=rowwise_adagrad", "embedding.lr=0.01"};
  ASSERT_EQ(run("first", 1, "cuda", keys).code, 0);
  ASSERT_EQ(run("second", 1, "cuda", keys).code, 0);
  expect_near("first", "second", 0);
}

// Tables of one id and of bags, one of few rows: sums in one piece and in many.
TEST_F(DlrmGpu, EmbeddingsHaveTheBitsOfTheHost) {
  const std::vector<Table> tables{{"a", 3}, {"b", 11, 3, "mean"}, {"c", 100000}, {"d", 500, 2}};
  const std::vector<std::string> names{"a", "b", "c", "d"};
  for (const auto type : {at::kFloat, at::kDouble})
    for (const std::int64_t d : {6, 16, 64})
      for (const auto rule :
           {kernels::SparseRule::sgd, kernels::SparseRule::adagrad, kernels::SparseRule::rowwise_adagrad}) {
        const at::TensorOptions options = at::TensorOptions().dtype(type);
        nn::EmbeddingTables host(tables, names, d, rule, 1, options);
        nn::EmbeddingTables device(tables, names, d, rule, 1, options.device(at::kCUDA));
        for (const std::int64_t b : {1, 63, 2048}) {
          at::Tensor ids = at::empty({2, 7 * b}, at::kInt);
          Rng rng(1, "ids", std::uint64_t(b));
          int* id = ids.data_ptr<int>();
          for (int block = 0; block < 2; ++block)
            for (const Table& t : tables)
              for (std::int64_t i = 0; i < b * t.width; ++i)
                *id++ = rng.below(4) == 0 ? -1 : int(rng.below(std::uint64_t(t.rows)));  // -1: a blank
          const at::Tensor gradient = at::randn({2, 4, b, d}, options), skip = at::zeros({});
          const at::Tensor rows = at::empty_like(gradient), there = at::empty_like(gradient, at::kCUDA);
          host.lookup(ids, rows), device.lookup(ids.cuda(), there);
          EXPECT_TRUE(at::equal(rows, there.cpu())) << "lookup, b " << b << " d " << d;
          host.update(ids, gradient, 0.1, skip), device.update(ids.cuda(), gradient.cuda(), 0.1, skip.cuda());
          device.update(ids.cuda(), gradient.cuda(), 0.1, at::ones({}).cuda());  // skipped
          for (std::size_t k = 0; k < tables.size(); ++k) {
            EXPECT_TRUE(at::equal(host.weight(k).detach(), device.weight(k).detach().cpu()))
                << b << " " << d << " " << k;
            if (host.state(k).defined()) {
              EXPECT_TRUE(at::equal(host.state(k), device.state(k).cpu())) << b << " " << d << " " << k;
            }
          }
        }
      }
}

TEST_F(DlrmGpu, GroupsAreThoseOfTheHost) {
  const std::vector<std::int64_t> widths{1, 3, 1, 1};
  for (const std::int64_t b : {1, 2, 31, 33, 1000, 5000})
    for (const std::int64_t blocks : {1, 3})
      for (const int rows : {1, 2, 50, 1 << 30}) {
        const at::Tensor ids = at::randint(-1, rows, {blocks, 6 * b}, at::kInt);
        dlrm::Grouping grouping(widths), there(widths);
        const dlrm::Groups host = grouping(ids, b);
        for (int twice = 0; twice < 2; ++twice) {
          const dlrm::Groups device = there(ids.cuda(), b);
          EXPECT_TRUE(at::equal(device.first.cpu(), host.first)) << b << " " << blocks << " " << rows;
          EXPECT_TRUE(at::equal(device.times.cpu(), host.times)) << b << " " << blocks << " " << rows;
        }
      }
}

TEST_F(DlrmGpu, CombinedGradientsHaveTheValuesOfTheHost) {
  const std::int64_t tables = 7, b = 3000, d = 64;  // many samples ask for few rows of some, a row each of others
  std::vector<at::Tensor> asked;
  for (std::int64_t t = 0; t < tables; ++t)
    asked.push_back(at::randint(t % 2 ? -1 : 0, std::int64_t(std::pow(7, t)) + 1, {1, b}, at::kInt));
  const at::Tensor ids = at::cat(asked, 1), gradient = at::randn({tables, b, d});
  const std::vector<std::int64_t> widths(std::size_t(tables), 1);
  const dlrm::Groups host = dlrm::Grouping(widths)(ids, b), there = dlrm::Grouping(widths)(ids.cuda(), b);
  dlrm::Combiner on_host, on_device;
  on_host.prepare(host, d), on_device.prepare(there, d);
  const at::Tensor expected = on_host.combined(gradient);
  for (int twice = 0; twice < 2; ++twice) {
    const at::Tensor got = on_device.combined(gradient.cuda());
    EXPECT_LE((got.cpu() - expected).abs().max().item<double>(), 1e-6);
    on_device.prepare(there, d);
  }
}

TEST_F(DlrmGpu, InteractionHasTheValuesOfTheHost) {
  const at::Tensor place = at::tensor({2, 0, 1, 3}, at::kLong);
  for (const std::int64_t d : {4, 16, 19, 64}) {
    at::Tensor out[2], dx[2], drows[2];
    const at::Tensor x = at::randn({100, d}, at::kDouble), rows = at::randn({4, 100, d}, at::kDouble);
    for (const bool gpu : {false, true}) {
      const at::Device device(gpu ? at::kCUDA : at::kCPU);
      at::Tensor a = x.to(device).clone().requires_grad_(), b = rows.to(device).clone().requires_grad_();
      const at::Tensor y = nn::interaction(a, b, place.to(device));
      (y * y).sum().backward();
      out[gpu] = y.detach().cpu(), dx[gpu] = a.grad().cpu(), drows[gpu] = b.grad().cpu();
    }
    EXPECT_LT(at::abs(out[0] - out[1]).max().item<double>(), 1e-12);
    EXPECT_LT(at::abs(dx[0] - dx[1]).max().item<double>(), 1e-10);
    EXPECT_LT(at::abs(drows[0] - drows[1]).max().item<double>(), 1e-10);
  }
}

// ---- steps that are recorded and replayed ----

struct Steps {
  std::vector<double> losses, norms;
  std::map<std::string, at::Tensor> weights;
  std::vector<std::string> said;
  Snapshot state;
};

// Steps [first, last) of a run of 50 whose learning rate changes in each; an evaluation after step 20, whose batches
// are of another size, and a training batch of 500 rows instead of 512 as step 30.
Steps take(const std::vector<std::string>& keys, std::int64_t first = 0, std::int64_t last = 50,
           const Snapshot* from = nullptr) {
  Experiment e(Config::parse(
      "recipe: dlrm\nsteps: 50\nbatch_size: 512\nlog_every: 1000\ndevice: cuda\noptimizer: {lr: 0.05, schedule: "
      "cosine, warmup: 10, weight_decay: 0.01}\ndata: {shape: kaggle, scale: 1000, samples: 30000, test_samples: "
      "2000}\nmodel: {dim: 16, bottom: [64, 32], top: [64]}\neval_batch: 700\n",
      "dlrm.yaml", keys));
  const auto world = make_self();
  Session session(*world, e.train, *e.recipe);
  Steps r;
  session.context().on_message = [&](std::string_view line) { r.said.emplace_back(line); };
  const auto visit = [&](Archive& ar) { session.state(ar); };
  if (from) session.restore(*from, visit);
  const auto ids = e.recipe->train_ids();
  for (std::int64_t k = first; k < last; ++k) {
    const std::size_t rows = k == 30 ? 500 : 512;
    session.context().now.step = k;
    session.step(e.recipe->train_data().read({ids.data() + 512 * k, rows}, 0));
    r.losses.push_back(session.loss()), r.norms.push_back(session.gradient_norm());
    if (k == 20) session.evaluate();
  }
  EXPECT_EQ(session.replays(), e.train.graph == "auto") << (r.said.empty() ? "" : r.said[0]);
  EXPECT_EQ(session.take_skipped().total, 0);
  for (const auto& p : session.parameters()) r.weights[p.name] = p.value.detach().cpu();
  r.state = Snapshot::take(visit, 0);
  return r;
}

void expect_same_bits(const Steps& a, const Steps& b, const std::string& what) {
  const std::size_t n = std::min(a.losses.size(), b.losses.size());  // the last n
  for (std::size_t i = 1; i <= n; ++i) {
    ASSERT_EQ(a.losses[a.losses.size() - i], b.losses[b.losses.size() - i]) << what << ", " << i << " before the end";
    ASSERT_EQ(a.norms[a.norms.size() - i], b.norms[b.norms.size() - i]) << what << ", " << i << " before the end";
  }
  for (const auto& [name, w] : a.weights) EXPECT_TRUE(at::equal(w, b.weights.at(name))) << what << ", " << name;
}

TEST_F(DlrmGpu, RecordedStepsHaveTheBitsOfTheOthers) {
  for (const std::string rule : {"sgd", "adagrad", "rowwise_adagrad"}) {
    const bool adam = rule == "adagrad";
    const std::string dense = adam ? "adamw" : "sgd";
    std::vector<std::string> keys{"embedding.optimizer=" + rule, "embedding.lr=0.02", "optimizer.name=" + dense,
                                  adam ? "optimizer.lr=0.002" : "optimizer.lr=0.05"};
    const Steps graph = take(keys);
    EXPECT_LT(graph.losses.back(), graph.losses.front());
    ASSERT_EQ(graph.said.size(), 2u) << "that they are replayed, and the shape of step 30";
    std::printf("%s, %s: %s\n", rule.c_str(), dense.c_str(), graph.said[0].c_str());
    const Steps half = take(keys, 0, 25);
    expect_same_bits(graph, take(keys, 25, 50, &half.state), rule + " resumed");
    keys.emplace_back("graph=off");
    expect_same_bits(graph, take(keys), rule);
    keys.emplace_back("device=cpu");
    const Steps host = take(keys);
    for (std::size_t i = 0; i < host.losses.size(); ++i)
      EXPECT_NEAR(graph.losses[i] / host.losses[i], 1, 1e-5) << rule << ", step " << i;
  }
}

// Over NCCL, whose collectives are recorded with the rest; with codes as two graphs, in room that may be too small
// once.
TEST_F(DlrmGpu, RecordedStepsOfTwoCards) {
  if (const std::string why = no_nccl(2); !why.empty()) GTEST_SKIP() << why;
  const Words both{"compression.forward.codec=auto", "compression.forward.decay=none",
                   "compression.backward.codec=auto", "compression.backward.combine=true",
                   "compression.sizes=capacity"},
      int4{"compression.forward.codec=int4", "compression.backward.codec=int4", "compression.forward.decay=none",
           "compression.sizes=capacity"};
  for (const auto& [name, codes] : {std::pair<std::string, Words>{"raw", {}}, {"both", both}, {"int4", int4}})
    for (const std::string rule : {"sgd", "rowwise_adagrad"}) {
      const std::string what = name + " " + rule;
      Words keys = codes;
      keys.insert(keys.end(), {"embedding.optimizer=" + rule, "embedding.lr=0.02", "graph=off"});
      const Outcome plain = run(what + " plain", 2, "cuda", keys);
      ASSERT_EQ(plain.code, 0) << plain;
      keys.back() = "graph=on";
      const Outcome graph = run(what + " graph", 2, "cuda", keys);
      ASSERT_EQ(graph.code, 0) << graph;
      EXPECT_NE((graph.out + graph.err).find("steps are replayed as a CUDA graph"), std::string::npos) << what << graph;
      expect_near(what + " plain", what + " graph", 0);
    }
}

TEST_F(DlrmGpu, LossOfLogitsHasTheValuesOfTheHost) {
  for (const std::int64_t n : {1, 1000, 5000}) {
    at::Tensor x = (at::randn({n}, at::kDouble) * 5).requires_grad_(),
               there = x.detach().to(at::kCUDA).requires_grad_();
    const at::Tensor y = (at::randn({n}, at::kDouble) > 0).to(at::kDouble);
    const at::Tensor host = binary_loss(x, y, double(n)), device = binary_loss(there, y.cuda(), double(n));
    torch::autograd::backward({host}, {});
    torch::autograd::backward({device}, {});
    EXPECT_NEAR(host.item<double>(), device.item<double>(), 1e-13);
    EXPECT_LT(at::abs(x.grad() - there.grad().cpu()).max().item<double>(), 1e-15);
  }
}

}  // namespace
}  // namespace trireme::test
