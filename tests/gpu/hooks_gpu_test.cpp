// Training with each gradient hook on a GPU through the program: over NCCL, over MPI, on a CPU, and resumed.
#include "tests/gpu/training.h"

namespace trireme::test {
namespace {

class HookOnAGpu : public Gpu, public testing::WithParamInterface<const char*> {
 protected:
  std::map<int, double> trained(const std::string& out, const std::string& name, const std::string& more) {
    const Outcome o = train(out, 2,
                            {"steps=12", "checkpoint.every=6", "checkpoint.keep=9", "hook.name=" + name,
                             "hook.density=0.1", "hook.bound=1e-4", "optimizer.warmup=2", more});
    EXPECT_EQ(o.code, 0) << o;
    return losses(folder.path / out);
  }
};

std::map<int, double> without_hook;  // the same for all

double furthest(const std::map<int, double>& a, const std::map<int, double>& b) {
  double worst = a.size() == 12 && b.size() == 12 ? 0 : HUGE_VAL;
  for (const auto& [step, loss] : a) worst = nan_max(worst, std::fabs(b.at(step) - loss) / std::fabs(loss));
  return worst;
}

// Over NCCL: taken up again it goes on with the same bits, over MPI it gives the same losses, and on a CPU nearly the
// same.
TEST_P(HookOnAGpu, OverNccl) {
  if (const auto why = no_nccl(2); !why.empty()) GTEST_SKIP() << why;
  const std::string hook = GetParam();
  const auto whole = trained("whole", hook, "communicator=nccl");
  fs::remove_all(folder.path / "whole/ckpt/step_00000012");
  EXPECT_EQ(trained("whole", hook, "communicator=nccl"), whole) << "resumed";
  const double mpi = furthest(whole, trained("mpi", hook, "communicator=mpi")),
               cpu = furthest(whole, trained("cpu", hook, "device=cpu"));
  if (without_hook.empty()) without_hook = trained("none", "none", "communicator=nccl");
  const double lost = furthest(whole, without_hook);
  std::printf("%-12s worst relative difference of a loss to mpi %.1e, to a CPU %.1e, to no hook %.1e\n", hook.c_str(),
              mpi, cpu, lost);
  EXPECT_LE(mpi, 1e-5);
  EXPECT_LE(cpu, 1e-2);
  EXPECT_GT(lost, 0) << "it did nothing";
}

INSTANTIATE_TEST_SUITE_P(Hooks, HookOnAGpu,
                         testing::Values("bf16", "fp16", "int8", "fp8", "int4", "bounded", "fixed_length", "top_k",
                                         "powersgd"),
                         [](const auto& hook) { return std::string(hook.param); });

}  // namespace
}  // namespace trireme::test
