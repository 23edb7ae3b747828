// `trireme doctor`.
#pragma once

namespace trireme {

int doctor();  // prints a table to stdout; 0

}  // namespace trireme
