#include "framework/base/side_stream.h"

#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>

namespace trireme {

struct SideStream::Impl {
  c10::Stream stream;
  c10::Event marked, order;
  c10::Stream current() const { return c10::impl::VirtualGuardImpl(stream.device_type()).getStream(stream.device()); }
};

SideStream::SideStream(at::Device device)
    : impl_(new Impl{c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device),
                     c10::Event(device.type()), c10::Event(device.type())}) {}

SideStream::~SideStream() = default;

void SideStream::run(const std::function<void()>& f) {
  const c10::StreamGuard guard(impl_->stream);
  f();
}

void SideStream::follow() {
  impl_->order.record(impl_->current());
  impl_->order.block(impl_->stream);
}

void SideStream::lead() {
  impl_->order.record(impl_->stream);
  impl_->order.block(impl_->current());
}

void SideStream::mark() { impl_->marked.record(impl_->stream); }
void SideStream::wait_host() { impl_->marked.synchronize(); }

}  // namespace trireme
