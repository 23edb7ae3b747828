// The model of `trireme scale`: planted latency and bandwidth come back, predictions follow, bad models say so.
#include "trainers/scale/study.h"

#include <gtest/gtest.h>

namespace trireme::scale {
namespace {

Exchange exchange(int n, double bytes, double alpha, double beta) {
  const double messages = all_reduce_messages(n), sent = all_reduce_bytes(n, bytes);
  return {n, bytes, messages, sent, messages * alpha + sent / beta};
}

// A machine whose step is exactly what the model says.
Measured machine(int n, double batch, double alpha, double beta, double gradient = 4e6) {
  Measured m;
  m.ranks = n;
  m.batch = batch;
  const double ms_a_sample = 0.5, samples = batch / n;
  const auto all = [](double v) { return Spread{v, v, v}; };
  m.forward = all(0.3 * ms_a_sample * samples);
  m.backward = all(0.6 * ms_a_sample * samples);
  m.optimizer = all(0.1 * ms_a_sample * samples);
  if (n > 1) {
    m.calls = 3;
    m.bytes = all_reduce_bytes(n, gradient);
    for (const double bytes : {4096.0, 1e6, 4e6}) m.exchanges.push_back(exchange(n, bytes, alpha, beta));
    m.exposed = all(1e3 * (m.calls * all_reduce_messages(n) * alpha + m.bytes / beta));
  }
  m.step_ms = m.local_ms() + m.exposed.mean;
  return m;
}

TEST(ScaleModel, FindsLatencyAndBandwidth) {
  std::vector<Exchange> all;
  for (const int n : {2, 4})
    for (const double bytes : {512.0, 65536.0, 4e6}) all.push_back(exchange(n, bytes, 30e-6, 12e6));
  const Link link = fit_link(all);
  EXPECT_NEAR(link.alpha, 30e-6, 1e-9);
  EXPECT_NEAR(link.beta, 12e6, 1);
}

// Noise that asks for a negative latency gives none, and still the bandwidth.
TEST(ScaleModel, LatencyIsNeverNegative) {
  const Link link = fit_link({{2, 1e4, 2, 1e4, 0.9e-3}, {2, 1e6, 2, 1e6, 0.1}, {4, 2e6, 6, 3e6, 0.31}});
  EXPECT_GE(link.alpha, 0);
  EXPECT_NEAR(link.beta, 1e7, 1e6);
}

TEST(ScaleModel, PredictsRanksItHasNotSeen) {
  for (const bool weak : {true, false}) {
    std::vector<Measured> measured;
    for (const int n : {1, 2, 4, 8}) measured.push_back(machine(n, weak ? 32 * n : 256, 50e-6, 10e6));
    const Study s = make_study(measured, weak);
    EXPECT_EQ(s.fitted_on, (std::vector<int>{1, 2, 4}));
    ASSERT_TRUE(s.check);
    EXPECT_EQ(s.check->ranks, 8);
    EXPECT_NEAR(s.check->step_error, 0, 1e-6) << weak;
    EXPECT_NEAR(s.check->comm_error, 0, 1e-6) << weak;
    EXPECT_EQ(s.modelled.back().ranks, weak ? 1024 : 256) << "a rank needs a sample";
    const Measured far = machine(64, weak ? 32 * 64 : 256, 50e-6, 10e6);
    for (const auto& p : s.modelled)
      if (p.ranks == 64) {
        EXPECT_NEAR(p.step_ms(), far.step_ms, 1e-6 * far.step_ms);
      }
  }
}

TEST(ScaleModel, BadModelIsNotExtrapolated) {
  std::vector<Measured> measured;
  for (const int n : {1, 2, 4}) measured.push_back(machine(n, 256, 50e-6, 10e6));
  measured.push_back(machine(8, 256, 50e-6, 5e6));  // the switch is full
  const Study s = make_study(measured, false);
  ASSERT_TRUE(s.check);
  EXPECT_LT(s.check->comm_error, -0.15);
  EXPECT_FALSE(s.check->good());
  EXPECT_EQ(s.modelled.back().ranks, 8);
  EXPECT_NE(page(s).find("not good enough to extrapolate"), std::string::npos);
}

TEST(ScaleModel, HidingCommunicationIsFound) {
  std::vector<Measured> measured;
  for (const int n : {1, 2, 4, 8}) {
    measured.push_back(machine(n, 32 * n, 50e-6, 100e6, 1e6));
    Measured& m = measured.back();
    const double hidden = n > 1 ? std::min(m.exposed.mean, 0.5 * m.backward.mean) : 0;
    m.exposed.mean -= hidden;
    m.step_ms -= hidden;
  }
  const Study s = make_study(measured, true);
  EXPECT_NEAR(s.hidden, 0.5, 0.01);
  EXPECT_NEAR(s.check->step_error, 0, 0.01);
}

TEST(ScaleModel, TooFewRanksGiveNoModel) {
  const Study none = make_study({machine(1, 32, 1e-5, 1e8), machine(2, 32, 1e-5, 1e8)}, false);
  EXPECT_FALSE(none.link);
  EXPECT_TRUE(none.modelled.empty());
  EXPECT_NE(page(none).find("No model"), std::string::npos);
  const Study unchecked = make_study({machine(2, 32, 1e-5, 1e8), machine(4, 32, 1e-5, 1e8)}, false);
  EXPECT_TRUE(unchecked.link);
  EXPECT_FALSE(unchecked.check);
  EXPECT_EQ(unchecked.modelled.back().ranks, 4);
}

}  // namespace
}  // namespace trireme::scale
