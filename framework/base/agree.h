// Failures of one rank made known to all, so that every rank throws and none is left waiting in a collective.
#pragma once
#include "comm/communicator.h"
#include "comm/error.h"

#include <exception>
#include <functional>
#include <optional>
#include <string>

namespace trireme {

struct Failure {
  ExitCode code = ExitCode::bug;
  std::string what;
};

// Any exception as an exit code and one line.
Failure failure_of(std::exception_ptr e);

// Runs local work (no collectives) and returns what it threw.
std::optional<Failure> attempt(const std::function<void()>& work);
[[noreturn]] void raise(const Failure&);

// Collective. The failure of the lowest failed rank, the same on all ranks; none if no rank failed.
std::optional<Failure> shared_failure(Communicator&, const std::optional<Failure>& mine);
// Collective. Throws it.
void agree(Communicator&, const std::optional<Failure>& mine);

// Collective. Do all ranks say the same?
bool same_on_all(Communicator&, const std::string& mine);

// Collective. Rank 0 gets the texts of all ranks in rank order, each ended by a newline; the others an empty
// one.
std::string gather_text(Communicator&, const std::string& mine);

}  // namespace trireme
