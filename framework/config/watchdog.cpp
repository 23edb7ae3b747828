#include "framework/config/watchdog.h"

namespace trireme {

void WatchdogConfig::fields(Fields& f) {
  f.resume_may_change(true);
  f("first", first,
    "seconds that a collective may take (sample, sweep: that a rank others wait for gives no sign) until the first "
    "step is done; 0 = no limit",
    {.min = 0});
  f("later", later, "the same after it", {.min = 0});
  f("warn", warn, "seconds after which a line says who is waited for; 0 = never", {.min = 0});
}

}  // namespace trireme
