/* Preloaded, it stops a process (SIGSTOP, once) where STOP_AT says: it has written a text that has STOP_AT in it, or made
   or renamed something to a path that has (with a slash behind it), or begins as "started as rank R". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void look_at(const void *text, size_t size) {
  static int stopped = 0;
  const char *at = getenv("STOP_AT");
  if (!at || !memmem(text, size, at, strlen(at)) || __atomic_exchange_n(&stopped, 1, __ATOMIC_SEQ_CST)) return;
  raise(SIGSTOP);
}

static void look_at_path(const char *path) {
  char text[4096];
  const int size = snprintf(text, sizeof text, "%s/", path);
  if (size > 0 && (size_t)size < sizeof text) look_at(text, (size_t)size);
}

__attribute__((constructor)) static void started(void) {
  const char *rank = getenv("OMPI_COMM_WORLD_RANK");
  char text[64];
  if (rank) look_at(text, (size_t)snprintf(text, sizeof text, "started as rank %.9s", rank));
}

ssize_t write(int fd, const void *bytes, size_t size) {
  const ssize_t written = NEXT(write)(fd, bytes, size);
  if (written > 0) look_at(bytes, (size_t)written);
  return written;
}

int mkdir(const char *path, mode_t mode) {
  const int result = NEXT(mkdir)(path, mode);
  if (result == 0) look_at_path(path);
  return result;
}

int rename(const char *from, const char *to) {
  const int result = NEXT(rename)(from, to);
  if (result == 0) look_at_path(to);
  return result;
}
