#define _GNU_SOURCE
#include "kernels/base/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { MAX_PATH = 4096 };

/* Armed by tests and debug.fault; otherwise every call passes through. */
static struct {
    enum io_fault fault;
    int64_t operation, done;
    bool sticky;
} armed;

void io_fault_arm(enum io_fault fault, int64_t operation, bool sticky)
{
    armed.fault = fault;
    armed.operation = operation;
    armed.sticky = sticky;
    armed.done = 0;
}

int64_t io_operations(void)
{
    return armed.done;
}

/* Counts a modifying operation; returns the fault it meets. Kill-before happens here. */
static enum io_fault meet_fault(void)
{
    armed.done++;
    const bool hit =
        armed.done == armed.operation || (armed.sticky && armed.done > armed.operation);
    const enum io_fault fault = hit ? armed.fault : IO_FAULT_NONE;
    if (fault == IO_FAULT_KILL_BEFORE) {
        raise(SIGKILL);
    }
    if (fault == IO_FAULT_EIO || fault == IO_FAULT_ENOSPC) {
        errno = fault == IO_FAULT_EIO ? EIO : ENOSPC;
    }
    return fault;
}

static bool fails(enum io_fault fault)
{
    return fault == IO_FAULT_EIO || fault == IO_FAULT_ENOSPC;
}

static void after(enum io_fault fault)
{
    if (fault == IO_FAULT_KILL_AFTER || fault == IO_FAULT_KILL_TORN) {
        raise(SIGKILL);
    }
}

static enum status failed(const char *path, const char *what)
{
    const char *hint = errno == ENOSPC || errno == EDQUOT ? ": free space or write elsewhere" : "";
    return status_fail(STATUS_IO, "%s: cannot %s: %s%s", path, what, strerror(errno), hint);
}

static enum status open_file(struct io_file *file, const char *path, int flags, const char *what)
{
    const enum io_fault fault = (flags & O_ACCMODE) != O_RDONLY ? meet_fault() : IO_FAULT_NONE;
    *file = (struct io_file){.fd = -1};
    if (fails(fault)) {
        return failed(path, what);
    }
    file->fd = open(path, flags | O_CLOEXEC, 0644);
    if (file->fd < 0) {
        return failed(path, what);
    }
    file->path = strdup(path);
    after(fault);
    return STATUS_OK;
}

enum status io_create(struct io_file *file, const char *path)
{
    return open_file(file, path, O_RDWR | O_CREAT | O_TRUNC, "create");
}

enum status io_open_write(struct io_file *file, const char *path)
{
    return open_file(file, path, O_RDWR, "open for writing");
}

enum status io_open_append(struct io_file *file, const char *path)
{
    return open_file(file, path, O_WRONLY | O_CREAT | O_APPEND, "open for appending");
}

enum status io_open_read(struct io_file *file, const char *path)
{
    return open_file(file, path, O_RDONLY, "open");
}

/* offset < 0: at the file's own position. */
static enum status write_all(struct io_file *file, const void *data, size_t bytes, int64_t offset)
{
    const enum io_fault fault = meet_fault();
    const char *from = data;
    size_t left = fault == IO_FAULT_KILL_TORN ? bytes / 2 : bytes;
    bool shorten = fault == IO_FAULT_SHORT && bytes > 1;
    if (fails(fault)) {
        return failed(file->path, "write");
    }
    while (left > 0) {
        const size_t piece = shorten ? left / 2 : left;
        const ssize_t done =
            offset < 0 ? write(file->fd, from, piece) : pwrite(file->fd, from, piece, offset);
        shorten = false;
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            return failed(file->path, "write");
        }
        from += done;
        left -= (size_t)done;
        offset += offset < 0 ? 0 : done;
    }
    after(fault);
    return STATUS_OK;
}

enum status io_write(struct io_file *file, const void *data, size_t bytes)
{
    return write_all(file, data, bytes, -1);
}

enum status io_pwrite(struct io_file *file, const void *data, size_t bytes, int64_t offset)
{
    return write_all(file, data, bytes, offset);
}

enum status io_pread(struct io_file *file, void *data, size_t bytes, int64_t offset)
{
    char *to = data;
    while (bytes > 0) {
        const ssize_t done = pread(file->fd, to, bytes, offset);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done < 0) {
            return failed(file->path, "read");
        }
        if (done == 0) {
            return status_fail(STATUS_DATA, "%s: ends at byte %lld, %zu bytes too early: truncated",
                               file->path, (long long)offset, bytes);
        }
        to += done;
        bytes -= (size_t)done;
        offset += done;
    }
    return STATUS_OK;
}

enum status io_size(struct io_file *file, int64_t *bytes)
{
    struct stat info;
    if (fstat(file->fd, &info) != 0) {
        return failed(file->path, "stat");
    }
    *bytes = info.st_size;
    return STATUS_OK;
}

enum status io_truncate(struct io_file *file, int64_t bytes)
{
    const enum io_fault fault = meet_fault();
    if (fails(fault) || ftruncate(file->fd, bytes) != 0) {
        return failed(file->path, "set the size");
    }
    after(fault);
    return STATUS_OK;
}

enum status io_sync(struct io_file *file)
{
    const enum io_fault fault = meet_fault();
    if (fails(fault) || fsync(file->fd) != 0) {
        return failed(file->path, "sync");
    }
    after(fault);
    return STATUS_OK;
}

enum status io_close(struct io_file *file)
{
    enum status status = STATUS_OK;
    if (file->path != NULL && file->fd >= 0 && close(file->fd) != 0) {
        status = failed(file->path, "close");
    }
    free(file->path);
    *file = (struct io_file){.fd = -1};
    return status;
}

enum status io_make_dir(const char *path)
{
    struct stat info;
    char part[MAX_PATH];
    if (strlen(path) >= sizeof part) {
        return status_fail(STATUS_IO, "path too long: %s", path);
    }
    for (size_t i = 1; i <= strlen(path); i++) {
        if (path[i] != '/' && path[i] != '\0') {
            continue;
        }
        snprintf(part, i + 1, "%s", path);
        if (stat(part, &info) == 0) {
            if (!S_ISDIR(info.st_mode)) {
                errno = ENOTDIR;
                return failed(part, "use as a folder");
            }
            continue;
        }
        const enum io_fault fault = meet_fault();
        if (fails(fault) || (mkdir(part, 0755) != 0 && errno != EEXIST)) {
            return failed(part, "create the folder");
        }
        after(fault);
    }
    return STATUS_OK;
}

enum status io_sync_dir(const char *path)
{
    const enum io_fault fault = meet_fault();
    const int fd = fails(fault) ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return failed(path, "sync the folder");
    }
    const int result = fsync(fd), error = errno;
    close(fd);
    errno = error;
    if (result != 0) {
        return failed(path, "sync the folder");
    }
    after(fault);
    return STATUS_OK;
}

enum status io_rename(const char *from, const char *to)
{
    const enum io_fault fault = meet_fault();
    if (fails(fault) || rename(from, to) != 0) {
        return failed(from, "rename");
    }
    after(fault);
    return STATUS_OK;
}

enum status io_remove(const char *path)
{
    const enum io_fault fault = meet_fault();
    if (fails(fault) || (unlink(path) != 0 && errno != ENOENT)) {
        return failed(path, "remove");
    }
    after(fault);
    return STATUS_OK;
}

static enum status remove_children(const char *path)
{
    char child[MAX_PATH];
    DIR *dir = opendir(path);
    if (dir == NULL) {
        return errno == ENOENT ? STATUS_OK : failed(path, "open the folder");
    }
    enum status status = STATUS_OK;
    for (struct dirent *entry = readdir(dir); entry != NULL && status == STATUS_OK;
         entry = readdir(dir)) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) {
            continue;
        }
        if (snprintf(child, sizeof child, "%s/%s", path, entry->d_name) >= MAX_PATH) {
            status = status_fail(STATUS_IO, "path too long: %s/%s", path, entry->d_name);
        } else {
            status = io_remove_tree(child);
        }
    }
    closedir(dir);
    return status;
}

enum status io_remove_tree(const char *path)
{
    struct stat info;
    if (lstat(path, &info) != 0) {
        return errno == ENOENT ? STATUS_OK : failed(path, "look at");
    }
    if (!S_ISDIR(info.st_mode)) {
        return io_remove(path);
    }
    TRY(remove_children(path));
    const enum io_fault fault = meet_fault();
    if (fails(fault) || (rmdir(path) != 0 && errno != ENOENT)) {
        return failed(path, "remove the folder");
    }
    after(fault);
    return STATUS_OK;
}

enum status io_free_bytes(const char *path, int64_t *bytes)
{
    struct statvfs info;
    if (statvfs(path, &info) != 0) {
        return failed(path, "ask for free space");
    }
    *bytes = (int64_t)info.f_bavail * (int64_t)info.f_frsize;
    return STATUS_OK;
}

bool io_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

enum status io_check_regular(const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0) {
        return failed(path, "look at");
    }
    return S_ISREG(info.st_mode)
               ? STATUS_OK
               : status_fail(STATUS_DATA, "%s: is %s, not a file", path,
                             S_ISDIR(info.st_mode) ? "a folder" : "a pipe or a device");
}

enum status io_read_file(const char *path, char **data, size_t *bytes, size_t limit)
{
    struct io_file file;
    int64_t size = 0;
    *data = NULL;
    TRY(io_open_read(&file, path));
    enum status status = io_size(&file, &size);
    if (status == STATUS_OK && (uint64_t)size > limit) {
        status = status_fail(STATUS_DATA, "%s: %lld bytes, more than the %zu expected here", path,
                             (long long)size, limit);
    }
    if (status == STATUS_OK) {
        *data = malloc((size_t)size + 1);
        status = *data != NULL ? io_pread(&file, *data, (size_t)size, 0)
                               : status_fail(STATUS_RESOURCE, "out of memory reading %s", path);
    }
    const enum status closed = io_close(&file);
    if (status != STATUS_OK) {
        free(*data);
        *data = NULL;
        return status;
    }
    (*data)[size] = '\0';
    *bytes = (size_t)size;
    return closed;
}

enum status io_write_file(const char *path, const void *data, size_t bytes)
{
    char beside[MAX_PATH];
    struct io_file file;
    if (snprintf(beside, sizeof beside, "%s.tmp", path) >= MAX_PATH) {
        return status_fail(STATUS_IO, "path too long: %s", path);
    }
    TRY(io_create(&file, beside));
    enum status status = io_write(&file, data, bytes);
    status = status == STATUS_OK ? io_sync(&file) : status;
    const enum status closed = io_close(&file);
    status = status == STATUS_OK ? closed : status;
    return status == STATUS_OK ? io_rename(beside, path) : status;
}

/* Whether the file still has its name: a holder before may have removed it. */
static bool is_named(const struct io_file *file)
{
    struct stat open_one, named;
    return fstat(file->fd, &open_one) == 0 && stat(file->path, &named) == 0 &&
           open_one.st_ino == named.st_ino && open_one.st_dev == named.st_dev;
}

enum status io_lock(struct io_file *lock, const char *path)
{
    char text[512] = "", host[256] = "";
    TRY(open_file(lock, path, O_RDWR | O_CREAT, "open the lock"));
    bool taken = flock(lock->fd, LOCK_EX | LOCK_NB) == 0;
    while (taken && !is_named(lock)) {
        io_unlock(lock);
        TRY(open_file(lock, path, O_RDWR | O_CREAT, "open the lock"));
        taken = flock(lock->fd, LOCK_EX | LOCK_NB) == 0;
    }
    if (!taken) {
        const ssize_t got = pread(lock->fd, text, sizeof text - 1, 0);
        text[got > 0 ? got : 0] = '\0';
        io_unlock(lock);
        return status_fail(
            STATUS_USAGE, "%s: another run has this directory (%s): stop it or set another run.dir",
            path, text[0] != '\0' ? text : "holder unknown");
    }
    gethostname(host, sizeof host - 1);
    snprintf(text, sizeof text, "host %s, pid %ld", host, (long)getpid());
    TRY(io_truncate(lock, 0));
    return io_pwrite(lock, text, strlen(text), 0);
}

void io_unlock(struct io_file *lock)
{
    const enum status ignored = io_close(lock); /* closing a lock file loses nothing */
    (void)ignored;
}
