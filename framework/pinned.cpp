#include "framework/pinned.h"

#include <algorithm>
#include <atomic>
#include <optional>

#include <ATen/ATen.h>
#include <c10/core/Event.h>

namespace trireme {
namespace {

constexpr std::size_t most = 3;  // a host this many copies ahead of its GPU may as well wait
constexpr std::int64_t alignment = 64;

std::atomic<std::int64_t> all_made = 0;

std::int64_t room_of(const at::Tensor& t) { return (std::int64_t(t.nbytes()) + alignment - 1) / alignment * alignment; }

}  // namespace

struct PinnedBuffers::Piece {
  at::Tensor host;                 // u8
  std::optional<c10::Event> read;  // of a GPU: the copies out of it are done
};

PinnedBuffers::PinnedBuffers(at::Device device) : device_(device) {}
PinnedBuffers::~PinnedBuffers() = default;
PinnedBuffers::PinnedBuffers(PinnedBuffers&&) noexcept = default;
PinnedBuffers& PinnedBuffers::operator=(PinnedBuffers&&) noexcept = default;

std::int64_t PinnedBuffers::made() { return all_made; }

PinnedBuffers::Piece& PinnedBuffers::next(std::int64_t bytes) {
  if (buffers_.size() < most) {
    buffers_.push_back(std::make_unique<Piece>());
    turn_ = buffers_.size() - 1;
    if (device_.is_cuda()) buffers_.back()->read.emplace(device_.type());
  } else {
    turn_ = (turn_ + 1) % most;
  }
  Piece& b = *buffers_[turn_];
  if (b.read) b.read->synchronize();
  if (!b.host.defined() || b.host.numel() < bytes) {
    b.host = at::empty({bytes}, at::TensorOptions().dtype(at::kByte).pinned_memory(device_.is_cuda()));
    ++all_made;
  }
  return b;
}

void PinnedBuffers::copy(const std::vector<at::Tensor>& from, const std::vector<at::Tensor>& to) {
  const at::NoGradGuard no_grad;
  std::int64_t bytes = 0;
  for (const at::Tensor& t : from) bytes += room_of(t);
  if (bytes == 0) return;
  Piece& b = next(bytes);
  std::int64_t at = 0;
  for (std::size_t i = 0; i < from.size(); at += room_of(from[i++])) {
    if (from[i].numel() == 0) continue;
    const at::Tensor host =
        b.host.narrow(0, at, std::int64_t(from[i].nbytes())).view(from[i].scalar_type()).view(from[i].sizes());
    host.copy_(from[i]);
    at::Tensor there = to[i];
    there.copy_(host, /*non_blocking=*/true);
  }
  if (b.read) b.read->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
}

}  // namespace trireme
