#include "comm/communicator.h"

namespace trireme {

std::string_view name(Op op) {
  switch (op) {
    case Op::sum:
      return "sum";
    case Op::min:
      return "min";
    case Op::max:
      return "max";
  }
  return "unknown";
}

}  // namespace trireme
