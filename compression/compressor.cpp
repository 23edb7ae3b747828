#include "compression/compressor.h"

#include "comm/error.h"

#include <map>

namespace trireme {
namespace {

using Makers = std::map<std::string, std::function<std::unique_ptr<Compressor>()>, std::less<>>;

// Inside a function: other files register before this one's statics are made.
Makers& makers() {
  static Makers all;
  return all;
}

}  // namespace

std::vector<std::string> compressors() {
  std::vector<std::string> names;
  for (const auto& [name, make] : makers()) names.push_back(name);
  return names;
}

std::unique_ptr<Compressor> make_compressor(std::string_view name, std::string_view where) {
  const auto found = makers().find(name);
  if (found != makers().end()) return found->second();
  std::string known;
  for (const auto& n : compressors()) known += (known.empty() ? "" : ", ") + n;
  throw UsageError(where, "unknown codec '" + std::string(name.substr(0, 60)) + "'", "known: " + known);
}

RegisterCompressor::RegisterCompressor(std::string name, std::function<std::unique_ptr<Compressor>()> make) {
  makers().emplace(std::move(name), std::move(make));
}

}  // namespace trireme
