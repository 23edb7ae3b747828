// `trireme bench NAME [--json]`: one benchmark of bench/ with its peer arm.
#pragma once
#include "bench/bench.h"

namespace trireme {

// A table on stdout, or with `json` one object {"rows": [...]} alone there. Returns 0; a peer that cannot run here is
// a row that says why.
int bench_command(const bench::Options& options);
// What the processes of our own arms do, on each rank.
int bench_serve(const bench::Options& options, Communicator& world);

}  // namespace trireme
