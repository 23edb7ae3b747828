#include "comm/local/self.h"

#include "comm/engine/arguments.h"
#include "comm/error.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace trireme {
namespace {

constexpr Member alone{0, 1};

void copy(const ConstBuffer& in, const Buffer& out) {
  if (in.count > 0 && in.data != out.data) std::memmove(out.data, in.data, in.bytes());
}

class Self final : public Communicator {
 public:
  Self(std::string_view backend, AbortFunction abort) : backend_(backend), abort_(std::move(abort)) {}
  int rank() const override { return 0; }
  int size() const override { return 1; }

  Work all_reduce(Buffer inout, Op) override {
    check_all_reduce(alone, inout);
    return {};
  }
  Work reduce_scatter(ConstBuffer in, Buffer out, Op) override {
    check_reduce_scatter(alone, in, out);
    copy(in, out);
    return {};
  }
  Work all_gather(ConstBuffer in, Buffer out) override {
    check_all_gather(alone, in, out);
    copy(in, out);
    return {};
  }
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override {
    check_all_to_all(alone, in, send, out, recv);
    in.count = send[0];
    copy(in, out);
    return {};
  }
  Work broadcast(Buffer inout, int root) override {
    check_broadcast(alone, inout, root);
    return {};
  }
  Work barrier() override { return {}; }
  std::unique_ptr<Communicator> split(int, int) override { return make_self(backend_, abort_); }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return allocate_private(bytes); }
  void abort(int code, std::string_view why) noexcept override {
    if (abort_) abort_(code, why);
  }
  std::string_view backend() const override { return backend_; }

 private:
  std::string backend_;
  AbortFunction abort_;
};

}  // namespace

std::unique_ptr<Communicator> make_self() {
  return make_self("loopback", [](int code, std::string_view why) {
    std::fprintf(stderr, "trireme: error: %.*s\n", static_cast<int>(why.size()), why.data());
    std::_Exit(code);
  });
}

std::unique_ptr<Communicator> make_self(std::string_view backend, AbortFunction abort) {
  return std::make_unique<Self>(backend, std::move(abort));
}

std::shared_ptr<void> allocate_private(std::size_t bytes) {
  const std::size_t rounded = (bytes + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, rounded ? rounded : 64);
  if (!p)
    throw Error(ExitCode::memory, "allocate", std::to_string(bytes) + " bytes are not available",
                "use fewer ranks on this machine or a smaller model");
  std::memset(p, 0, rounded);
  return {p, std::free};
}

}  // namespace trireme
