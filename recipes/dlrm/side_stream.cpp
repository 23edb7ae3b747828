#include "recipes/dlrm/side_stream.h"

namespace trireme::dlrm {

SideStream::SideStream(at::Device device)
    : stream_(c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device)),
      marked_(device.type()),
      order_(device.type()) {}

c10::Stream SideStream::current() const {
  return c10::impl::VirtualGuardImpl(stream_.device_type()).getStream(stream_.device());
}

void SideStream::follow() {
  order_.record(current());
  order_.block(stream_);
}

void SideStream::lead() {
  order_.record(stream_);
  order_.block(current());
}

}  // namespace trireme::dlrm
