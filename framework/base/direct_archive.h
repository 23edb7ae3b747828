// An archive with memory of its own, which spares tensors on a device (and others that are not one piece of host
// memory) a copy on their way.
#pragma once
#include "comm/archive.h"

#include <functional>

namespace trireme {

class DirectArchive : public Archive {
 public:
  // As array(); `copy` fills the archive's own memory on saving and reads it on load. Not called where there is nothing
  // to copy, as for what another rank saves.
  virtual void array_through(std::string_view name, DType dtype, std::span<const std::int64_t> shape,
                             const std::function<void(void* own)>& copy, Sharing sharing) = 0;
};

}  // namespace trireme
