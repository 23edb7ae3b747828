// A method of sampling that goes wrong on purpose, at one step of one picture on one of its ranks: what the watchdog of
// `trireme sample` is tested with. Part of the program `trireme_faulty` only.
#include "framework/sampler.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <fstream>
#include <thread>

namespace trireme {
namespace {

class StuckSampler : public Sampler {
 public:
  void fields(Fields& f) override {
    f.choice("kind", kind_, {"none", "stop", "spin"}, "what goes wrong");
    f("picture", picture_, "of which picture", {.min = 0});
    f("rank", rank_, "on which of its ranks", {.min = 0});
    f("at", at_, "in which step, from 0", {.min = 0});
    f("ms", ms_, "how long each of its steps takes, before", {.min = 0});
  }
  at::Tensor velocity(Sampling& s, SampleContext& context) override {
    if (s.prompts[0].index == picture_) {
      std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(ms_));
      if (s.step == at_ && context.comm().rank() == rank_) go_wrong();
    }
    return Sampler::velocity(s, context);
  }

 private:
  void go_wrong() const {
    if (kind_ == "none") return;
    std::ofstream("fault.time")
        << std::fixed << std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
    if (kind_ == "stop") raise(SIGSTOP);
    for (std::atomic<int> i = 0;; ++i) {
    }
  }
  std::string kind_ = "none";
  std::int64_t picture_ = 0, rank_ = 0, at_ = 0;
  double ms_ = 0;
};

const Samplers::Entry registered("stuck", [] { return std::make_unique<StuckSampler>(); });

}  // namespace
}  // namespace trireme
