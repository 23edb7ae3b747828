// Training with each gradient hook on a GPU through the program: over NCCL, over MPI, on a CPU, and resumed.
#include "tests/gpu/training.h"

namespace trireme::test {
namespace {

// A hook on the GPU over NCCL: taken up again it goes on with the same bits, over MPI it gives the same losses, and on
// a CPU nearly the same.
TEST_F(Gpu, HooksOverNccl) {
  if (const auto why = no_nccl(2); !why.empty()) GTEST_SKIP() << why;
  const auto furthest = [](const std::map<int, double>& a, const std::map<int, double>& b) {
    double worst = a.size() == 12 && b.size() == 12 ? 0 : HUGE_VAL;
    for (const auto& [step, loss] : a) worst = nan_max(worst, std::fabs(b.at(step) - loss) / std::fabs(loss));
    return worst;
  };
  std::map<int, double> none;
  for (const std::string hook : {"none", "bf16", "fp16", "int8", "fp8", "int4", "bounded", "top_k", "powersgd"}) {
    const auto run = [&](const std::string& out, const std::string& more) {
      const Outcome o = train(out, 2,
                              {"steps=12", "checkpoint.every=6", "checkpoint.keep=9", "hook.name=" + hook,
                               "hook.density=0.1", "hook.bound=1e-4", "optimizer.warmup=2", more});
      EXPECT_EQ(o.code, 0) << o;
      return losses(folder.path / out);
    };
    const auto whole = run(hook, "communicator=nccl");
    if (hook == "none") {
      none = whole;
      continue;
    }
    fs::remove_all(folder.path / hook / "ckpt/step_00000012");
    EXPECT_EQ(run(hook, "communicator=nccl"), whole) << hook << ", resumed";
    const double mpi = furthest(whole, run(hook + " mpi", "communicator=mpi")),
                 cpu = furthest(whole, run(hook + " cpu", "device=cpu")), lost = furthest(whole, none);
    std::printf("%-9s worst relative difference of a loss to mpi %.1e, to a CPU %.1e, to no hook %.1e\n", hook.c_str(),
                mpi, cpu, lost);
    EXPECT_LE(mpi, 1e-5) << hook;
    EXPECT_LE(cpu, 1e-2) << hook;
    EXPECT_GT(lost, 0) << hook << " did nothing";
  }
}

}  // namespace
}  // namespace trireme::test
