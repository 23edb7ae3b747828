// The program `trireme`: command line, one catch, exit codes. Subcommands register themselves (framework/command.h).
#include "comm/error.h"
#include "trainers/command_line.h"
#include "trainers/ranks.h"

#include <csignal>
#include <cstdio>
#include <iostream>

#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <unistd.h>

namespace trireme {
namespace {

// What was printed is the result of most commands: one that could not be stored has failed. A training has its folder,
// and a reader that went away has what it wanted.
int check_output(int code, bool result_is_stored) {
  std::cout.flush();
  if (std::fflush(stdout) == 0 && !std::ferror(stdout) && std::cout) return code;
  pollfd out{STDOUT_FILENO, POLLOUT, 0};
  if (poll(&out, 1, 0) == 1 && (out.revents & (POLLERR | POLLHUP | POLLNVAL))) return code;
  const char* kind = code == 0 && !result_is_stored ? "error" : "warning";
  std::fprintf(stderr, "trireme: %s: stdout: not all could be written; is the disk full?\n", kind);
  return code == 0 && !result_is_stored ? int(ExitCode::data) : code;
}

// A file that is opened later must not become stdin, stdout or stderr of a program that was started without them.
void open_standard_streams() {
  for (int fd = 0; fd <= 2; ++fd)
    if (fcntl(fd, F_GETFD) < 0) open("/dev/null", fd == 0 ? O_RDONLY : O_WRONLY);
}

}  // namespace
}  // namespace trireme

int main(int argc, char** argv) {
  trireme::open_standard_streams();
  // Activations are freed and taken again every step: returning them to the system would cost a page fault each.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  std::signal(SIGPIPE, SIG_IGN);  // a reader that goes away ends nothing
  int code = 0;
  try {
    code = trireme::parse_command_line(argc, argv)();
  } catch (...) {
    code = trireme::print_failure(trireme::failure_of(std::current_exception()));
  }
  code = trireme::check_output(code, argc > 1 && argv[1] == std::string_view("train"));
#ifdef __SANITIZE_ADDRESS__
  return code;  // leaks are looked for at a normal exit
#else
  // Destructors of torch's global objects have crashed after a good run (torch_cuda linked): skip them.
  std::fflush(nullptr);
  _exit(code);
#endif
}
