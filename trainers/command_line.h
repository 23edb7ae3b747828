// The words a user typed, as one of the registered commands.
#pragma once
#include <functional>

namespace trireme {

// What runs: it returns the exit code, or throws. Throws UsageError for words that fit no command or not its options;
// --help and --version have printed when it returns.
std::function<int()> parse_command_line(int argc, char** argv);

}  // namespace trireme
