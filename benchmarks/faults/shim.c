/* Stands between a program and the C library: every operation that changes a file below a folder
 * is counted and written to a log, one at a time. Before each, or each n-th, the folder can be
 * copied: that is what a kill at this moment leaves. One operation can fail with an error of choice, or kill.
 *
 *     cc -shared -fPIC -O1 -o shim.so shim.c -ldl
 *     LD_PRELOAD=./shim.so FAULTS_ROOT=/folder FAULTS_LOG=/log [FAULTS_COPIES=/copies]
 *         [FAULTS_AT=7 FAULTS_ERRNO=28]      (errno 0 kills) */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static char root[PATH_MAX], copies[PATH_MAX];
static int log_fd = -1, error_number, failed_once;
static long count, every = 1, at;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

void faults_arm(const char *folder, const char *log, const char *to, long each, long number,
                int error) {
  strncpy(root, folder ? folder : "", sizeof root - 1);
  strncpy(copies, to ? to : "", sizeof copies - 1);
  log_fd = root[0] && log && log[0] ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666) : -1;
  count = failed_once = 0, every = each, at = number, error_number = error;
}

__attribute__((constructor)) static void from_environment(void) {
  const char *number = getenv("FAULTS_AT"), *error = getenv("FAULTS_ERRNO");
  if (getenv("FAULTS_ROOT"))
    faults_arm(getenv("FAULTS_ROOT"), getenv("FAULTS_LOG"), getenv("FAULTS_COPIES"), 1,
               number ? atol(number) : 0, error ? atoi(error) : 0);
}

/* The whole path of a name below a folder that is open, or of an open file (name 0). */
static int whole(int fd, const char *name, char *out) {
  char link[64];
  ssize_t size;
  if (!root[0]) return 0;
  if (name && name[0] == '/') {
    snprintf(out, PATH_MAX, "%s", name);
  } else {
    if (fd == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = readlink(link, out, PATH_MAX - 1);
    if (size <= 0) return 0;
    out[size] = 0;
    if (name) snprintf(out + size, PATH_MAX - size, "/%s", name);
  }
  size = strlen(root);
  return !strncmp(out, root, size) && (out[size] == '/' || !out[size]);
}

static void copy(void) {
  char to[PATH_MAX + 32];
  char *arguments[] = {"cp", "-a", root, to, 0}, *environment[] = {getenv("PATH"), 0};
  pid_t child;
  if (environment[0]) environment[0] -= strlen("PATH=");
  snprintf(to, sizeof to, "%s/%06ld", copies, count);
  /* Not fork: libraries have handlers for it, and this process has threads. */
  if (posix_spawnp(&child, "cp", 0, 0, arguments, environment)) abort();
  while (waitpid(child, 0, 0) < 0 && errno == EINTR) {}
}

/* Count an operation; return whether it is to fail. The caller holds the mutex. */
static int hit(const char *what, const char *path, long offset, long size) {
  char line[PATH_MAX + 128];
  int kept = errno;
  count++;
  if (copies[0] && count % every == 0) copy();
  int length = snprintf(line, sizeof line, "%ld\t%s\t%s\t%ld\t%ld\n", count, what,
                        path + strlen(root), offset, size);
  static ssize_t (*put)(int, const void *, size_t);
  if (!put) put = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
  if (log_fd >= 0 && put(log_fd, line, length) < 0) abort();
  errno = kept;
  /* A full disk and a broken one stay so: what writes again fails again. */
  if (at && count >= at && (!failed_once || error_number)) {
    if (!error_number) raise(SIGKILL);
    int adds = !strcmp(what, "write") || !strcmp(what, "open") || !strcmp(what, "mkdir");
    if (count == at || adds) {
      failed_once = 1;
      errno = error_number;
      return 1;
    }
  }
  return 0;
}

#define GUARD(fd, name, what, offset, size, call, bad) \
  do { \
    char path[PATH_MAX]; \
    if (!whole(fd, name, path)) return call; \
    pthread_mutex_lock(&mutex); \
    __typeof__(call) result = bad; \
    if (!hit(what, path, offset, size)) result = call; \
    pthread_mutex_unlock(&mutex); \
    return result; \
  } while (0)

static int changes(int flags) { return flags & (O_CREAT | O_TRUNC); }

#define OPEN(symbol) \
  int symbol(const char *name, int flags, ...) { \
    REAL(int, #symbol, const char *, int, ...); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = va_arg(rest, int); \
    va_end(rest); \
    if (!changes(flags)) return real(name, flags, mode); \
    GUARD(AT_FDCWD, name, "open", 0, 0, real(name, flags, mode), -1); \
  }
#define OPENAT(symbol) \
  int symbol(int fd, const char *name, int flags, ...) { \
    REAL(int, #symbol, int, const char *, int, ...); \
    va_list rest; \
    va_start(rest, flags); \
    mode_t mode = va_arg(rest, int); \
    va_end(rest); \
    if (!changes(flags)) return real(fd, name, flags, mode); \
    GUARD(fd, name, "open", 0, 0, real(fd, name, flags, mode), -1); \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
  REAL(ssize_t, "write", int, const void *, size_t);
  GUARD(fd, 0, "write", lseek(fd, 0, SEEK_CUR), size, real(fd, data, size), -1);
}
#define PWRITE(symbol) \
  ssize_t symbol(int fd, const void *data, size_t size, off_t offset) { \
    REAL(ssize_t, #symbol, int, const void *, size_t, off_t); \
    GUARD(fd, 0, "write", offset, size, real(fd, data, size, offset), -1); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

static long bytes(const struct iovec *parts, int number) {
  long size = 0;
  for (int i = 0; i < number; i++) size += parts[i].iov_len;
  return size;
}
ssize_t writev(int fd, const struct iovec *parts, int number) {
  REAL(ssize_t, "writev", int, const struct iovec *, int);
  GUARD(fd, 0, "write", lseek(fd, 0, SEEK_CUR), bytes(parts, number), real(fd, parts, number), -1);
}
#define PWRITEV(symbol) \
  ssize_t symbol(int fd, const struct iovec *parts, int number, off_t offset) { \
    REAL(ssize_t, #symbol, int, const struct iovec *, int, off_t); \
    GUARD(fd, 0, "write", offset, bytes(parts, number), real(fd, parts, number, offset), -1); \
  }
PWRITEV(pwritev)
PWRITEV(pwritev64)

#define ON_FD(symbol, what) \
  int symbol(int fd) { \
    REAL(int, #symbol, int); \
    GUARD(fd, 0, what, 0, 0, real(fd), -1); \
  }
ON_FD(fsync, "fsync")
ON_FD(fdatasync, "fsync")

#define TRUNCATE(symbol) \
  int symbol(int fd, off_t size) { \
    REAL(int, #symbol, int, off_t); \
    GUARD(fd, 0, "truncate", 0, size, real(fd, size), -1); \
  }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define ON_NAME(symbol, what) \
  int symbol(const char *name) { \
    REAL(int, #symbol, const char *); \
    GUARD(AT_FDCWD, name, what, 0, 0, real(name), -1); \
  }
ON_NAME(unlink, "unlink")
ON_NAME(rmdir, "rmdir")

int unlinkat(int fd, const char *name, int flags) {
  REAL(int, "unlinkat", int, const char *, int);
  GUARD(fd, name, flags & AT_REMOVEDIR ? "rmdir" : "unlink", 0, 0, real(fd, name, flags), -1);
}
int mkdir(const char *name, mode_t mode) {
  REAL(int, "mkdir", const char *, mode_t);
  GUARD(AT_FDCWD, name, "mkdir", 0, 0, real(name, mode), -1);
}
int mkdirat(int fd, const char *name, mode_t mode) {
  REAL(int, "mkdirat", int, const char *, mode_t);
  GUARD(fd, name, "mkdir", 0, 0, real(fd, name, mode), -1);
}
int rename(const char *name, const char *to) {
  REAL(int, "rename", const char *, const char *);
  GUARD(AT_FDCWD, to, "rename", 0, 0, real(name, to), -1);
}
int renameat(int fd, const char *name, int to_fd, const char *to) {
  REAL(int, "renameat", int, const char *, int, const char *);
  GUARD(to_fd, to, "rename", 0, 0, real(fd, name, to_fd, to), -1);
}
int renameat2(int fd, const char *name, int to_fd, const char *to, unsigned flags) {
  REAL(int, "renameat2", int, const char *, int, const char *, unsigned);
  GUARD(to_fd, to, "rename", 0, 0, real(fd, name, to_fd, to, flags), -1);
}
int link(const char *name, const char *to) {
  REAL(int, "link", const char *, const char *);
  GUARD(AT_FDCWD, to, "link", 0, 0, real(name, to), -1);
}
int linkat(int fd, const char *name, int to_fd, const char *to, int flags) {
  REAL(int, "linkat", int, const char *, int, const char *, int);
  GUARD(to_fd, to, "link", 0, 0, real(fd, name, to_fd, to, flags), -1);
}
/* Copies inside the kernel would pass by: their callers fall back to read and write. */
#define SENDFILE(symbol) \
  ssize_t symbol(int out, int in, off_t *offset, size_t size) { \
    REAL(ssize_t, #symbol, int, int, off_t *, size_t); \
    char path[PATH_MAX]; \
    if (!whole(out, 0, path)) return real(out, in, offset, size); \
    errno = ENOTSOCK; \
    return -1; \
  }
SENDFILE(sendfile)
SENDFILE(sendfile64)

ssize_t copy_file_range(int in, off_t *from, int out, off_t *to, size_t size, unsigned flags) {
  REAL(ssize_t, "copy_file_range", int, off_t *, int, off_t *, size_t, unsigned);
  char path[PATH_MAX];
  if (!whole(out, 0, path)) return real(in, from, out, to, size, flags);
  errno = EXDEV;
  return -1;
}
