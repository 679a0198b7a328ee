/* A disk that fails or is slow, for one process: loaded before the C library (LD_PRELOAD), it answers the calls with which a
 * slave reads, writes and syncs as the file named by GODRIVE_DISK_FAULTS says, which is read at each call:
 *
 *     sync_ms 300      each sync takes so much longer
 *     sync_eio         each sync fails
 *     write_eio        each write fails
 *     read_ms 300      each read takes so much longer
 *     read_eio         each read fails
 *
 * Only files below the directory in GODRIVE_DISK count: a slave has several disks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Whether the fault is on for this descriptor, and its number. */
static long fault(int fd, const char *name) {
    const char *file = getenv("GODRIVE_DISK_FAULTS"), *disk = getenv("GODRIVE_DISK");
    if (!file || !disk) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, disk, strlen(disk)) != 0) return 0;
    int faults = open(file, O_RDONLY | O_CLOEXEC);
    if (faults < 0) return 0;
    char text[256] = "";
    /* Not pread: that is what is replaced here. */
    length = read(faults, text, sizeof text - 1);
    close(faults);
    if (length < 0) return 0;
    char *found = strstr(text, name);
    if (!found) return 0;
    long number = atol(found + strlen(name));
    return number > 0 ? number : 1;
}

static void wait_ms(long ms) {
    struct timespec time = {ms / 1000, (ms % 1000) * 1000000};
    nanosleep(&time, NULL);
}

static int sync_faults(int fd) {
    long ms = fault(fd, "sync_ms");
    if (ms) wait_ms(ms);
    if (fault(fd, "sync_eio")) {
        errno = EIO;
        return -1;
    }
    return 0;
}

#define NEXT(name) \
    static __typeof__(name) *next; \
    if (!next) next = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

int fdatasync(int fd) {
    NEXT(fdatasync);
    return sync_faults(fd) ? -1 : next(fd);
}

int fsync(int fd) {
    NEXT(fsync);
    return sync_faults(fd) ? -1 : next(fd);
}

ssize_t pread64(int fd, void *buffer, size_t count, off64_t offset) {
    NEXT(pread64);
    long ms = fault(fd, "read_ms");
    if (ms) wait_ms(ms);
    if (fault(fd, "read_eio")) {
        errno = EIO;
        return -1;
    }
    return next(fd, buffer, count, offset);
}

ssize_t pwritev(int fd, const struct iovec *pieces, int count, off_t offset) {
    NEXT(pwritev);
    if (fault(fd, "write_eio")) {
        errno = EIO;
        return -1;
    }
    return next(fd, pieces, count, offset);
}
