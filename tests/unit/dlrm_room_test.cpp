// Codes in room of a fixed size (compression.sizes: capacity): the values, losses and weights of `exact`, to the bit.
#include "comm/local/loopback.h"
#include "data/loader.h"
#include "framework/experiment.h"
#include "framework/io/checkpoint.h"
#include "framework/session.h"
#include "recipes/dlrm/exchange.h"
#include "tests/fake_graph.h"
#include "tests/forwarding.h"
#include "tests/unit/codec_rows.h"

#include <filesystem>
#include <mutex>
#include <numeric>

#include <gtest/gtest.h>

namespace trireme::test {
namespace {

using namespace dlrm;

// ---- the codec ----

TEST(CodeParts, HoldWhatBareCodesHold) {
  const std::size_t n = 40, dim = 8, chunks = 7;
  const std::vector<float> rows = make_rows("embedding", n * chunks, dim, 1);
  std::vector<TableChunk> all;
  for (std::size_t k = 0; k < chunks; ++k) {
    all.push_back(chunk_of(rows, n, dim, 0.03f));
    all.back().rows += k * n * dim, all.back().scope = std::uint32_t(k % 3);
  }
  std::vector<float> self(n * dim);
  all[3].self = self.data();
  const Bounded codec({.codec = "auto"});
  std::vector<std::uint64_t> sizes(chunks), again(chunks);
  std::vector<std::uint8_t> bare(codec.max_bytes(n, dim) * chunks);
  codec.encode(all, {bare.data(), bare.size(), DType::u8}, {sizes.data(), chunks, DType::i64});
  const auto sum = [&](std::size_t from, std::size_t end) {
    return std::accumulate(sizes.begin() + std::ptrdiff_t(from), sizes.begin() + std::ptrdiff_t(end), std::size_t{0});
  };
  const auto room = [&](std::size_t from, std::size_t end) {
    return CodePart::header_bytes(end - from) + (sum(from, end) + 7) / 8 * 8;
  };
  // Three chunks for one, none but what stays, none for a third, the others for a fourth.
  std::vector<CodePart> parts{{3, room(0, 3)}, {1, 0}, {0, CodePart::header_bytes(0)}, {3, room(4, 7)}};
  for (const std::size_t lacks : {0, 8}) {
    parts[3].bytes -= lacks;
    const std::size_t at = parts[0].bytes + parts[2].bytes;
    std::vector<std::uint8_t> out(at + parts[3].bytes);
    codec.encode(all, {out.data(), out.size(), DType::u8}, {again.data(), chunks, DType::i64}, {}, parts);
    EXPECT_EQ(again, sizes);
    for (const std::size_t flag : {std::size_t{0}, parts[0].bytes, at}) EXPECT_EQ(out[flag], lacks > 0) << flag;
    EXPECT_EQ(std::memcmp(out.data() + at + 8, &sizes[4], 24), 0);
    if (lacks) continue;
    std::vector<float> there(n * dim), expected(n * dim);
    for (const std::size_t k : {4, 5, 6}) {
      const CodedChunk own{out.data() + at, parts[3].bytes, there.data(), n, dim, 0, 3, k - 4},
          plain{bare.data() + sum(0, k), sizes[k], expected.data(), n, dim};
      codec.decode({&own, 1}), codec.decode({&plain, 1});
      EXPECT_EQ(there, expected) << k;
      out[at + 8 + 5] ^= 1;  // 2^40 more in the first size
      EXPECT_THROW(codec.decode({&own, 1}), CommError) << k;
      out[at + 8 + 5] ^= 1;
    }
  }
}

// ---- one direction ----

// What goes between the ranks is all counted.
class Counter : public Forwarding {
 public:
  explicit Counter(Communicator& inner) : Forwarding(inner) {}
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override {
    std::size_t n = 0;
    for (int r = 0; r < size(); ++r) n += r == rank() ? 0 : send[std::size_t(r)];
    bytes += double(n * size_of(in.dtype)), ++calls;
    tamper(in);
    return inner_.all_to_all(in, send, out, recv);
  }
  virtual void tamper(ConstBuffer) {}
  double bytes = 0;
  int calls = 0;
};

constexpr std::int64_t b = 16, d = 4;
Coding coding_for(const Bounded& codec, std::size_t chunks, bool in_room) {
  Coding c{&codec, false, {}, std::vector<float>(chunks, 0.02f), {}, in_room};
  for (std::size_t k = 0; k < chunks; ++k) c.scopes.push_back(std::uint32_t(k));
  return c;
}

// Rows that are few until step 6 of rank `wild`, whose rows are then like no others.
at::Tensor rows_of(std::int64_t chunks, int step, int rank, int wild) {
  const bool like_no_others = step == 6 && rank == wild;
  std::vector<float> values =
      make_rows("normal", std::size_t(chunks * (like_no_others ? b : 1)), std::size_t(d), unsigned(100 * step + rank));
  const at::Tensor rows = at::tensor(values).view({chunks, like_no_others ? b : 1, d});
  return rows.expand({chunks, b, d}).contiguous().clone();
}

TEST(Room, GivesTheValuesOfExact) {
  const Bounded codec({.codec = "auto"});
  for (const std::vector<std::size_t>& tables :
       {std::vector<std::size_t>{3}, {2, 3}, {4, 0}, {1, 2, 0, 3}})  // of each rank
    for (const bool back : {false, true}) {
      const int ranks = int(tables.size());
      run_loopback(ranks, [&](Communicator& world) {
        const auto me = std::size_t(world.rank());
        Counter counter(world);
        std::vector<std::size_t> own(tables.size(), tables[me]), to = back ? tables : own, from = back ? own : tables;
        RowExchange room(counter, counter, to, from), exact(world, world, to, from);
        const auto n = std::int64_t(std::accumulate(to.begin(), to.end(), std::size_t{0})),
                   m = std::int64_t(std::accumulate(from.begin(), from.end(), std::size_t{0}));
        double expected_bytes = 0;
        for (int step = 0; step < 9; ++step) {
          const at::Tensor rows = rows_of(n, step, world.rank(), 1), out = at::full({m, b, d}, 7.0),
                           expected = at::full({m, b, d}, 7.0);
          exact.start(rows, expected, coding_for(codec, std::size_t(n), false));
          exact.finish();
          EXPECT_FALSE(exact.settle());
          counter.calls = 0;
          const std::vector<std::int64_t> had = room.room().to();
          room.start(rows, out, coding_for(codec, std::size_t(n), true));
          room.finish();
          const bool again = room.settle();
          EXPECT_TRUE(at::equal(out, expected)) << ranks << " ranks, step " << step;
          EXPECT_EQ(room.sizes(), exact.sizes());
          EXPECT_EQ(again, ranks > 1 && step == 6 && (back || tables[1] > 0)) << ranks << " ranks, step " << step;
          // Sizes, codes and a review; one message; or that and then those three.
          EXPECT_EQ(counter.calls, ranks == 1 ? 2 : step == 0 ? 3 : again ? 4 : 1) << ranks << " " << step;
          if (ranks == 1) continue;
          for (std::size_t r = 0; r < to.size() && step > 0; ++r)
            if (r != me) expected_bytes += 8 * double(1 + to[r]) + double(had[r]);
          if (step > 0 && !again) continue;
          const auto& sizes = room.sizes();
          expected_bytes += std::accumulate(sizes.begin(), sizes.end(), 0.0) + 8 * double(std::size_t(n) - to[me]) +
                            8 * double(ranks - 1);
        }
        EXPECT_EQ(room.room().overflows(), ranks > 1 && (back || tables[1] > 0)) << ranks;
        EXPECT_EQ(counter.bytes, expected_bytes);
        EXPECT_EQ(room.take_bytes().sent, expected_bytes);
      });
    }
}

// Of rank 1, in its first parts: another size of the first chunk, or another word before the sizes.
class PartLiar final : public Counter {
 public:
  PartLiar(Communicator& inner, bool flag) : Counter(inner), flag_(flag) {}
  void tamper(ConstBuffer in) override {
    if (rank() != 1 || calls != 4) return;  // sizes, codes, review, parts
    auto* bytes = static_cast<std::uint8_t*>(const_cast<void*>(in.data));
    flag_ ? bytes[3] = 1 : bytes[8 + 5] = 1;
  }

 private:
  const bool flag_;
};

TEST(Room, NamesTheRankWhoseHeaderIsBad) {
  const Bounded codec({.codec = "auto"});
  for (const bool flag : {true, false}) {
    std::string what;
    try {
      run_loopback(2, [&](Communicator& world) {
        PartLiar liar(world, flag);
        RowExchange exchange(liar, liar, {2, 2}, {2, 2});
        for (int step = 0; step < 2; ++step) {
          const at::Tensor rows = rows_of(4, 0, world.rank(), -1), out = at::empty({4, b, d});
          exchange.start(rows, out, coding_for(codec, 4, true));
          exchange.finish();
          exchange.settle();
        }
      });
    } catch (const CommError& e) {
      what = e.what();
      EXPECT_EQ(int(e.code()), 4);
    }
    EXPECT_NE(what.find("chunk 0 from rank 1"), std::string::npos) << flag << ": " << what;
  }
}

// ---- training ----

struct Trained {
  std::map<std::string, at::Tensor> weights;  // of all ranks
  std::vector<double> losses;
  std::map<std::string, double> logged;  // of the last step
  std::vector<std::int64_t> replayed;    // steps after which a graph was there
};

// Steps [first, last). Until step 4, and in 12 to 16, rank 1 has one sample over and over, whose codes are short.
// ahead: each step knows the next one's batch.
void steps(Session& session, Experiment& e, std::int64_t first, std::int64_t last, bool ahead, Trained& run) {
  const int rank = session.context().rank(), ranks = session.context().size();
  const auto ids = e.recipe->train_ids();
  const std::int64_t own = e.train.batch_size / ranks;
  const auto batch_at = [&](std::int64_t s) {
    std::vector<std::int64_t> mine;
    for (std::int64_t i = 0; i < own; ++i)
      mine.push_back(ids[std::size_t(s % 10 * e.train.batch_size + rank * own +
                                     (rank == 1 && (s < 4 || (s >= 12 && s < 17)) ? 0 : i))]);
    Batch batch = e.recipe->train_data().read(mine, 0);
    batch.index = s;
    return batch;
  };
  for (std::int64_t s = first; s < last; ++s) {
    session.context().now.step = s;
    const Batch batch = batch_at(s), next = batch_at(s + 1);
    session.step(batch, ahead ? &next : nullptr);
    run.losses.push_back(session.loss());
    run.logged = session.take_logged();
    if (session.replays()) run.replayed.push_back(s);
  }
}

// to: on as many ranks, from a checkpoint after step `saved` on; 0: without one.
Trained train(int ranks, const std::vector<std::string>& keys, std::int64_t saved = 0, bool ahead = false) {
  const std::string folder = ::testing::TempDir() + "dlrm_room";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  Trained result;
  std::mutex mutex;
  for (const bool second : {false, true}) {
    if (second && saved == 0) break;
    run_loopback(ranks, [&](Communicator& world) {
      Experiment e(Config::parse(
          "recipe: dlrm\nbatch_size: 48\nsteps: 9\ndevice: cpu\nthreads: 1\nprefetch: false\nlog_every: 1\n"
          "optimizer: {name: sgd, lr: 0.5, momentum: 0.0, weight_decay: 0.0, schedule: const}\n"
          "data: {shape: kaggle, scale: 10000, samples: 480, test_samples: 103}\n"
          "model: {dim: 8, bottom: [16], top: [16]}\n"
          "compression: {forward: {codec: auto}, backward: {codec: auto}}\n",
          "dlrm.yaml", keys));
      Session session(world, e.train, *e.recipe);
      FakeGraphs::context = &session.context();
      const std::int64_t last = e.train.steps;
      const auto state = [&](Archive& ar) { session.state(ar); };
      Checkpoints checkpoints(folder, 1, world);
      if (second) session.restore(checkpoints.load(saved), state);
      Trained own;
      steps(session, e, second ? saved : 0, saved && !second ? saved : last, ahead, own);
      if (saved && !second) {
        checkpoints.save(saved, Snapshot::take(state, world.rank()), "{}");
        checkpoints.finish();
        return;
      }
      const std::lock_guard lock(mutex);
      for (const auto& p : session.parameters()) result.weights[p.name] = p.value.detach().clone();
      if (world.rank() == 0) result.losses = own.losses, result.logged = own.logged, result.replayed = own.replayed;
    });
  }
  std::filesystem::remove_all(folder);
  return result;
}

void expect_equal(const Trained& a, const Trained& b, const std::string& what) {
  ASSERT_EQ(a.weights.size(), b.weights.size());
  for (const auto& [name, w] : a.weights) EXPECT_TRUE(at::equal(w, b.weights.at(name))) << what << ", " << name;
  const std::size_t n = std::min(a.losses.size(), b.losses.size());
  EXPECT_TRUE(std::equal(a.losses.end() - std::ptrdiff_t(n), a.losses.end(), b.losses.end() - std::ptrdiff_t(n)))
      << what;
}

TEST(Room, TrainsAsExactDoes) {
  for (const auto& [ranks, parts] : {std::pair(1, 1), {2, 1}, {4, 1}, {2, 2}})
    for (const std::string combine : {"false", "true"}) {
      std::vector<std::string> keys{"compression.backward.combine=" + combine, "embedding.optimizer=rowwise_adagrad",
                                    "accumulate=" + std::to_string(parts)};
      const std::string what =
          std::to_string(ranks) + " ranks, " + std::to_string(parts) + " parts, combine " + combine;
      const Trained exact = train(ranks, keys);
      keys.push_back("compression.sizes=capacity");
      const Trained room = train(ranks, keys);
      expect_equal(exact, room, what);
      if (ranks == 1) continue;
      EXPECT_GE(room.logged.at("forward_overflows"), 1) << what;
      EXPECT_GE(room.logged.at("backward_overflows"), 1) << what;
      EXPECT_LE(room.logged.at("backward_overflows"), 9 * parts - 1) << what;
      EXPECT_GT(room.logged.at("forward_capacity"), 0) << what;
      EXPECT_GT(room.logged.at("forward_fill"), 0.3) << what;
      EXPECT_LE(room.logged.at("forward_fill"), 1.5) << what;
      EXPECT_EQ(exact.logged.contains("forward_fill"), false);
      // Resumed before and after a step that had not enough room, with the same room.
      if (ranks != 2 || parts != 1) continue;
      for (const std::int64_t saved : {3, 6}) {
        const Trained resumed = train(ranks, keys, saved);
        expect_equal(exact, resumed, what + ", resumed");
        EXPECT_EQ(resumed.logged, room.logged) << saved;
      }
    }
}

// Replayed steps whose codes outgrow the room that was recorded are taken again; they are recorded anew then, and
// where room changes at the 64th exchange.
TEST(Room, RecordedStepsTrainAsExactDoes) {
  const FakeGraphs fake;
  for (const auto& [ranks, back] : {std::pair(2, "auto"), {4, "raw"}}) {
    SCOPED_TRACE(std::to_string(ranks) + " ranks, backward " + back);
    std::vector<std::string> keys{"steps=76", "embedding.optimizer=rowwise_adagrad", "compression.forward.decay=none",
                                  "compression.backward.combine=" + std::string(ranks == 2 ? "true" : "false"),
                                  "compression.backward.codec=" + std::string(back)};
    const Trained exact = train(ranks, keys);
    keys.push_back("compression.sizes=capacity");
    Trained room = train(ranks, keys);
    EXPECT_EQ(room.replayed, std::vector<std::int64_t>{});
    keys.push_back("graph=on");
    const Trained graph = train(ranks, keys);
    expect_equal(exact, graph, "recorded");
    EXPECT_GT(graph.replayed.size(), 50u);
    EXPECT_GE(graph.logged.at("forward_overflows"), 1);
    for (const auto& [name, value] : room.logged)
      EXPECT_NEAR(graph.logged.at(name), value, name.ends_with("overflows") ? 0 : 0.05 * value) << name;
    expect_equal(exact, train(ranks, keys, 20), "resumed");
    expect_equal(exact, train(ranks, keys, 0, true), "ids sent ahead");
  }
}

// Bounds are recorded with the rest, so not before they stay.
TEST(Room, StepsAreRecordedOnceBoundsStay) {
  const FakeGraphs fake;
  const std::vector<std::string> keys{"steps=14", "compression.sizes=capacity", "compression.forward.decay=linear",
                                      "compression.forward.decay_steps=7", "graph=on"};
  const Trained graph = train(2, keys);
  ASSERT_FALSE(graph.replayed.empty());
  EXPECT_GE(graph.replayed.front(), 10) << "two as they are, one from buffers of its own";
  for (const std::string other : {"compression.sizes=exact", "compression.forward.simulate=true"}) {
    auto without = keys;
    without.push_back(other);
    EXPECT_TRUE(train(2, without).replayed.empty()) << other;
  }
}

// Codes of one length get just that, and room that suits is left as it is.
TEST(Room, ChangesWhereItMust) {
  run_loopback(2, [&](Communicator& world) {
    Room room(2);
    const auto use = [&](std::int64_t bytes) {
      const std::vector<std::int64_t> needed{world.rank() == 0 ? 0 : bytes, world.rank() == 0 ? bytes : 0};
      (void)room.known_for(4);
      return room.note(
          needed, room.to()[std::size_t(1 - world.rank())] == 0 ? std::nullopt : std::optional(room.enough(needed)),
          world);
    };
    const auto other = std::size_t(1 - world.rank());
    for (int i = 0; i < 64; ++i) use(800);
    EXPECT_EQ(room.to()[other], 800);
    const std::int64_t before = room.changes();
    for (int i = 0; i < 64; ++i) EXPECT_EQ(use(800), i == 63 ? 8 : 0) << i;
    EXPECT_EQ(room.changes(), before);
    EXPECT_EQ(use(808), 8) << "too small: all ranks tell theirs";
    EXPECT_EQ(room.to()[other], 912);
    for (int i = 0; i < 63; ++i) use(i % 2 ? 700 : 750);
    EXPECT_EQ(room.changes(), before + 1) << "912 suits 808";
    for (int i = 0; i < 64; ++i) use(i % 2 ? 400 : 410);
    EXPECT_EQ(room.to()[other], 464);
    EXPECT_EQ(room.from()[other], 464);
    EXPECT_EQ(room.changes(), before + 2);
    EXPECT_EQ(room.overflows(), 1);
  });
}

}  // namespace
}  // namespace trireme::test
