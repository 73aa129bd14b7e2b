// Preloaded into a pretraining run (faults.py): at the n-th call that changes something below a folder the process dies,
// the machine loses its power, the disk is full, or a signal arrives. Calls of Python, of C++ and of Rust all come here.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, KILL, POWER, TORN, FULL, SIGNAL };
enum { MOST = 512 };

static char folder[PATH_MAX];
static int mode = NOTHING, log_fd = -1, armed = 0;
static long at, seen;

// What a loss of power takes back: bytes since a file's last fsync, and renames since the last fsync of their folder.
static struct { dev_t device; ino_t inode; int fd; off_t size; } unsynced[MOST];
static struct { char from[PATH_MAX], to[PATH_MAX]; } renamed[MOST];
static int num_unsynced, num_renamed;

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })

// Called by faults.py in the process that is to run; `log`, a file outside of `where`, gets a line for each call.
void arm_fault(const char *where, int what, long n, const char *log) {
    snprintf(folder, sizeof folder, "%s/", where);
    mode = what, at = n, seen = 0, armed = 1;
    log_fd = REAL(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void absolute(int directory, const char *name, char *path) {
    char base[PATH_MAX] = "";
    if (name[0] != '/') {
        char link[64];
        snprintf(link, sizeof link, directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", directory);
        ssize_t length = readlink(link, base, sizeof base - 1);
        base[length < 0 ? 0 : length] = 0;
        strncat(base, "/", sizeof base - strlen(base) - 1);
    }
    snprintf(path, PATH_MAX, "%s%s", base, name);
}

static void path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
}

static void lose_power(void) {
    for (int i = 0; i < num_unsynced; i++) syscall(SYS_ftruncate, unsynced[i].fd, unsynced[i].size);
    for (int i = num_renamed - 1; i >= 0; i--)
        syscall(SYS_renameat2, AT_FDCWD, renamed[i].to, AT_FDCWD, renamed[i].from, 1 /* RENAME_NOREPLACE */);
}

static int below(const char *path) { return armed && strncmp(path, folder, strlen(folder)) == 0; }

// An error the call is to end with, or 0. `fd` is the file of a write, else -1.
static int event(const char *call, const char *path, int fd, const void *bytes, size_t count) {
    if (!below(path)) return 0;
    char line[PATH_MAX + 64];
    int length = snprintf(line, sizeof line, "%s %s\n", call, path + strlen(folder));
    syscall(SYS_write, log_fd, line, length);
    if (mode == NOTHING || seen++ < at) return 0;
    if (mode == FULL && strstr("open write mkdir rename fsync", call)) return ENOSPC;
    if (mode == FULL || seen > at + 1) return 0;
    if (mode == SIGNAL) return raise(SIGTERM), 0;
    if (mode == POWER) lose_power();
    if (mode == TORN && fd >= 0 && count) syscall(SYS_write, fd, bytes, count - count / 2);
    raise(SIGKILL);
    return 0;
}

static int find(const struct stat *s) {
    for (int i = 0; i < num_unsynced; i++)
        if (unsynced[i].device == s->st_dev && unsynced[i].inode == s->st_ino) return i;
    return -1;
}

static void note_write(int fd, const char *path) {
    struct stat s;
    if (mode != POWER || !below(path) || fstat(fd, &s) || find(&s) >= 0 || num_unsynced == MOST) return;
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 300);
    unsynced[num_unsynced].device = s.st_dev, unsynced[num_unsynced].inode = s.st_ino;
    unsynced[num_unsynced].fd = copy, unsynced[num_unsynced++].size = s.st_size;
}

static void note_sync(int fd, const char *path) {
    struct stat s;
    if (mode != POWER || fstat(fd, &s)) return;
    int i = find(&s), kept = 0;
    if (i >= 0) {
        syscall(SYS_close, unsynced[i].fd);
        unsynced[i] = unsynced[--num_unsynced];
    }
    for (i = 0; i < num_renamed; i++) {
        const char *slash = strrchr(renamed[i].to, '/');
        size_t length = slash - renamed[i].to;
        if (strlen(path) != length || strncmp(path, renamed[i].to, length)) renamed[kept++] = renamed[i];
    }
    num_renamed = kept;
}

#define FAIL_IF(error) do { int e_ = (error); if (e_) { errno = e_; return -1; } } while (0)

static int open_at(int directory, const char *name, int flags, mode_t permissions) {
    char path[PATH_MAX];
    absolute(directory, name, path);
    if (flags & (O_CREAT | O_TRUNC)) FAIL_IF(event("open", path, -1, 0, 0));
    return syscall(SYS_openat, directory, name, flags, permissions);
}

#define OPEN(name, prefix, directory)                            \
    int name(prefix const char *path, int flags, ...) {          \
        va_list list;                                            \
        va_start(list, flags);                                   \
        mode_t permissions = va_arg(list, mode_t);               \
        va_end(list);                                            \
        return open_at(directory, path, flags, permissions);     \
    }
#define COMMA ,
OPEN(open, , AT_FDCWD)
OPEN(open64, , AT_FDCWD)
OPEN(openat, int directory COMMA, directory)
OPEN(openat64, int directory COMMA, directory)

ssize_t write(int fd, const void *bytes, size_t count) {
    char path[PATH_MAX];
    if (armed) {
        path_of(fd, path);
        FAIL_IF(event("write", path, fd, bytes, count));
        note_write(fd, path);
    }
    return syscall(SYS_write, fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (armed) {
        path_of(fd, path);
        FAIL_IF(event("write", path, fd, parts[0].iov_base, parts[0].iov_len));
        note_write(fd, path);
    }
    return syscall(SYS_writev, fd, parts, count);
}

#define PWRITE(name)                                                        \
    ssize_t name(int fd, const void *bytes, size_t count, off_t offset) {   \
        char path[PATH_MAX];                                                \
        if (armed) {                                                        \
            path_of(fd, path);                                              \
            FAIL_IF(event("write", path, -1, 0, 0));                        \
            note_write(fd, path);                                           \
        }                                                                   \
        return syscall(SYS_pwrite64, fd, bytes, count, offset);             \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define TRUNCATE(name)                                  \
    int name(int fd, off_t size) {                      \
        char path[PATH_MAX];                            \
        if (armed) {                                    \
            path_of(fd, path);                          \
            FAIL_IF(event("write", path, -1, 0, 0));    \
            note_write(fd, path);                       \
        }                                               \
        return syscall(SYS_ftruncate, fd, size);        \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

#define SYNC(name)                                      \
    int name(int fd) {                                  \
        char path[PATH_MAX];                            \
        if (armed) {                                    \
            path_of(fd, path);                          \
            FAIL_IF(event("fsync", path, -1, 0, 0));    \
            note_sync(fd, path);                        \
        }                                               \
        return syscall(SYS_##name, fd);                 \
    }
SYNC(fsync)
SYNC(fdatasync)

static int rename_at(int a, const char *from, int b, const char *to) {
    char source[PATH_MAX], target[PATH_MAX];
    absolute(a, from, source);
    absolute(b, to, target);
    FAIL_IF(event("rename", target, -1, 0, 0));
    int replaces = syscall(SYS_faccessat, AT_FDCWD, target, F_OK) == 0;
    int result = syscall(SYS_renameat, a, from, b, to);
    if (result == 0 && mode == POWER && below(target) && !replaces && num_renamed < MOST) {
        strcpy(renamed[num_renamed].from, source);
        strcpy(renamed[num_renamed++].to, target);
    }
    return result;
}
int rename(const char *from, const char *to) { return rename_at(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int a, const char *from, int b, const char *to) { return rename_at(a, from, b, to); }

#define AT(name, call, number, ...)                                     \
    {                                                                   \
        char path[PATH_MAX];                                            \
        absolute(directory, name, path);                                \
        FAIL_IF(event(call, path, -1, 0, 0));                           \
        return syscall(number, directory, name, __VA_ARGS__);           \
    }
int unlinkat(int directory, const char *name, int flags) AT(name, "unlink", SYS_unlinkat, flags)
int mkdirat(int directory, const char *name, mode_t permissions) AT(name, "mkdir", SYS_mkdirat, permissions)
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int mkdir(const char *name, mode_t permissions) { return mkdirat(AT_FDCWD, name, permissions); }
