#include "comm/backends.h"

#include <algorithm>

namespace trireme {
namespace {

// Inside a function: other files register before this one's statics are made.
std::vector<CommunicatorEntry>& entries() {
  static std::vector<CommunicatorEntry> list;
  return list;
}

}  // namespace

std::vector<CommunicatorEntry> communicators() {
  auto list = entries();
  std::sort(list.begin(), list.end(), [](auto& a, auto& b) { return a.name < b.name; });
  return list;
}

RegisterCommunicator::RegisterCommunicator(CommunicatorEntry entry) { entries().push_back(std::move(entry)); }

}  // namespace trireme
