/* A wrong wall clock for one process: preloaded into a node, it answers the time calls from a file.
 *
 * QUORLOCK_CLOCK names the file, one line: OFFSET PPM SINCE
 *   OFFSET  us that the clock is ahead of the machine's
 *   PPM     how much too fast it runs, in millionths
 *   SINCE   us since 1970, from when on it has run at that rate
 * The file is looked at again every few ms and must be replaced as a whole (rename). The monotonic clock stays right. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { LOOK_EVERY_US = 5000 };

static __thread struct { long long looked, offset, ppm, since; } belief;

static int true_clock(clockid_t id, struct timespec *time) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
  return real(id, time);
}

static long long true_us(clockid_t id) {
  struct timespec t = {0, 0};
  true_clock(id, &t);
  return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static long long shown_us(void) {
  long long steady = true_us(CLOCK_MONOTONIC), now = true_us(CLOCK_REALTIME);
  const char *path = getenv("QUORLOCK_CLOCK");
  if (path && (!belief.looked || steady - belief.looked > LOOK_EVERY_US)) {
    char line[96];
    long long offset, ppm, since;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, line, sizeof line - 1);
    if (file >= 0) close(file);
    if (length > 0) {
      line[length] = 0;
      if (sscanf(line, "%lld %lld %lld", &offset, &ppm, &since) == 3)
        belief.offset = offset, belief.ppm = ppm, belief.since = since;
    }
    belief.looked = steady;
  }
  return now + belief.offset + (now - belief.since) * belief.ppm / 1000000;
}

int clock_gettime(clockid_t id, struct timespec *time) {
  if (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE) return true_clock(id, time);
  long long us = shown_us();
  time->tv_sec = us / 1000000;
  time->tv_nsec = us % 1000000 * 1000;
  return 0;
}

int gettimeofday(struct timeval *restrict time, void *restrict zone) {
  (void)zone;
  long long us = shown_us();
  time->tv_sec = us / 1000000;
  time->tv_usec = us % 1000000;
  return 0;
}

time_t time(time_t *where) {
  time_t seconds = shown_us() / 1000000;
  if (where) *where = seconds;
  return seconds;
}
