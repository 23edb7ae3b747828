#include "framework/base/agree.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <new>
#include <numeric>
#include <vector>

#include <c10/util/Exception.h>

namespace trireme {

Failure failure_of(std::exception_ptr e) {
  constexpr const char* out_of_memory = "out of memory; use a smaller batch or model, or raise accumulate";
  try {
    std::rethrow_exception(e);
  } catch (const Error& x) {
    return {x.code(), x.what()};
  } catch (const std::bad_alloc&) {
    return {ExitCode::memory, out_of_memory};
  } catch (const c10::OutOfMemoryError& x) {
    const std::string text = x.what_without_backtrace();
    return {ExitCode::memory, "out of device memory: " + text.substr(0, text.find('\n'))};
  } catch (const c10::Error& x) {
    const std::string text = x.what_without_backtrace();
    if (text.find("can't allocate memory") != std::string::npos) return {ExitCode::memory, out_of_memory};
    return {ExitCode::bug, "bug: " + text.substr(0, text.find('\n'))};
  } catch (const std::filesystem::filesystem_error& x) {
    // Of paths that a user or a file from outside gives: too long, or not to be looked into.
    const DataError e(x.path1().string().substr(0, 200), x.code().message(), "check the path");
    return {e.code(), e.what()};
  } catch (const std::exception& x) {
    return {ExitCode::bug, std::string("bug: ") + x.what()};
  } catch (...) {
    return {ExitCode::bug, "bug: unknown exception"};
  }
}

std::optional<Failure> attempt(const std::function<void()>& work) {
  try {
    work();
    return {};
  } catch (...) {
    return failure_of(std::current_exception());
  }
}

void raise(const Failure& f) {
  if (f.code == ExitCode::data) throw DataError("", f.what);
  if (f.code == ExitCode::usage) throw UsageError("", f.what);
  if (f.code == ExitCode::communication) throw CommError("", f.what);
  throw Error(f.code, "", f.what);
}

std::optional<Failure> shared_failure(Communicator& comm, const std::optional<Failure>& mine) {
  std::int64_t first = mine ? comm.rank() : comm.size();
  comm.all_reduce({&first, 1, DType::i64}, Op::min).wait();
  if (first == comm.size()) return {};
  // Fixed size: one broadcast, and a long path still shows.
  std::array<char, 2048> message = {};
  if (mine && first == comm.rank()) {
    message[0] = char(mine->code);
    mine->what.copy(message.data() + 1, message.size() - 2);
  }
  comm.broadcast({message.data(), message.size(), DType::u8}, int(first)).wait();
  return Failure{ExitCode(message[0]), message.data() + 1};
}

void agree(Communicator& comm, const std::optional<Failure>& mine) {
  if (const auto failure = shared_failure(comm, mine)) raise(*failure);
}

bool same_on_all(Communicator& comm, const std::string& mine) {
  const auto hash = std::int64_t(std::hash<std::string>()(mine));
  std::int64_t least[2] = {hash, ~hash};  // the second: the largest
  comm.all_reduce({least, 2, DType::i64}, Op::min).wait();
  return least[0] == ~least[1];
}

std::string gather_text(Communicator& comm, const std::string& mine) {
  const std::string line = mine + "\n";
  const auto ranks = std::size_t(comm.size());
  std::vector<std::int64_t> sizes(ranks);
  const std::int64_t size = std::int64_t(line.size());
  comm.all_gather({&size, 1, DType::i64}, {sizes.data(), ranks, DType::i64}).wait();
  std::vector<std::size_t> send(ranks, 0), recv(ranks, 0);
  send[0] = line.size();
  if (comm.rank() == 0) recv.assign(sizes.begin(), sizes.end());
  std::string all(std::accumulate(recv.begin(), recv.end(), std::size_t{0}), '\0');
  comm.all_to_all({line.data(), line.size(), DType::u8}, send, {all.data(), all.size(), DType::u8}, recv).wait();
  return all;
}

}  // namespace trireme
