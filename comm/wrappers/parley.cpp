#include "comm/wrappers/parley.h"

#include "comm/engine/arguments.h"
#include "comm/error.h"

#include <algorithm>
#include <exception>

namespace trireme {
namespace {

std::string text(const Parley::Spot& s) {
  std::string call(name(static_cast<Collective>(s.operation)));
  if (s.count > 0) call += " of " + std::to_string(s.count) + " " + std::string(name(static_cast<DType>(s.dtype)));
  return call + " as collective " + std::to_string(s.sequence) + " of \"" + s.communicator + "\"";
}

}  // namespace

Parley::Parley(std::unique_ptr<Communicator> channel) : channel_(std::move(channel)) {}

Parley::~Parley() {
  if (std::uncaught_exceptions() == 0 && !proved_) try {
      while (!ended()) {
        if (!round_ || round_->work.settled()) post({});
        round_->work.wait();
      }
    } catch (...) {  // another rank failed, and says so itself
    }
  if (round_) round_->work = {};  // which holds the round
}

void Parley::post(const Spot& here) {
  if (round_) before_ = round_->all;
  round_ = std::make_shared<Round>();
  round_->mine = {here};
  round_->all.resize(static_cast<std::size_t>(channel_->size()));
  const std::size_t bytes = sizeof(Spot);
  // The round may outlive this: it is what the transfer reads and writes.
  round_->work = channel_
                     ->all_gather({round_->mine.data(), bytes, DType::u8},
                                  {round_->all.data(), bytes * round_->all.size(), DType::u8})
                     .then([keep = round_] { return Work(); });
}

bool Parley::ended() const {
  return round_ && round_->work.settled() &&
         std::any_of(round_->all.begin(), round_->all.end(), [](const Spot& s) { return s.sequence == 0; });
}

void Parley::waits(const Spot& here) {
  std::lock_guard lock(mutex_);
  if (round_ && !round_->work.done()) return;
  if (ended()) return;
  if (round_) {
    const auto& all = round_->all;
    const bool same = std::all_of(all.begin(), all.end(), [&](const Spot& s) { return s == all[0]; });
    if (!same && all == before_ && all[static_cast<std::size_t>(channel_->rank())] == here) prove(all);
  }
  post(here);
}

void Parley::prove(const std::vector<Spot>& all) {
  proved_ = true;
  const auto other = [&](const Spot& s) { return std::string_view(s.communicator) != all[0].communicator; };
  auto found = std::find_if(all.begin(), all.end(), other);
  if (found == all.end()) found = std::find_if(all.begin(), all.end(), [&](const Spot& s) { return s != all[0]; });
  throw CommError(place({channel_->rank(), channel_->size()}),
                  "rank 0 and rank " + std::to_string(found - all.begin()) +
                      " differ in the communicator: " + text(all[0]) + " and " + text(*found) + ", and both wait",
                  "every rank must make the same calls");
}

}  // namespace trireme
