// Long work of some ranks while the others wait.
#pragma once
#include "framework/base/agree.h"

namespace trireme {

// Collective. attempt() of what may take some ranks hours; others give an empty function. All meet every second, so
// that no collective stays open: a watchdog sees everybody alive. `tell`, called here after each meeting, may be empty.
std::optional<Failure> attempt_apart(Communicator&, const std::function<void()>& work,
                                     const std::function<void()>& tell = {});

}  // namespace trireme
