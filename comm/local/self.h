// The group of one: collectives complete at once, in place they do nothing.
#pragma once
#include "comm/communicator.h"

#include <functional>

namespace trireme {

using AbortFunction = std::function<void(int code, std::string_view why)>;

std::unique_ptr<Communicator> make_self();
// For backends whose group shrank to one rank: keeps their name and their way to end the job.
std::unique_ptr<Communicator> make_self(std::string_view backend, AbortFunction abort);

// Zeroed, 64-byte aligned private memory.
std::shared_ptr<void> allocate_private(std::size_t bytes);

}  // namespace trireme
