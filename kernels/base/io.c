#define _GNU_SOURCE
#include "kernels/base/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum { MAX_PATH = 4096 };

static enum status failed(const char *path, const char *what)
{
    const char *hint = errno == ENOSPC || errno == EDQUOT ? ": free space or write elsewhere" : "";
    return status_fail(STATUS_IO, "%s: cannot %s: %s%s", path, what, strerror(errno), hint);
}

/* O_DIRECT is not for every file system. */
static int open_flags(struct io_file *file, const char *path, int flags, bool direct)
{
    const int fd = direct ? open(path, flags | O_CLOEXEC | O_DIRECT, 0644) : -1;
    file->direct = fd >= 0;
    return fd >= 0 || (direct && errno != EINVAL) ? fd : open(path, flags | O_CLOEXEC, 0644);
}

static enum status open_file(struct io_file *file, const char *path, int flags, bool direct,
                             const char *what)
{
    const bool writes = (flags & O_ACCMODE) != O_RDONLY;
    enum io_fault fault = writes ? io_meet() : io_meet_read();
    *file = (struct io_file){.fd = -1, .writes = writes};
    if (io_fails(fault, (flags & O_CREAT) != 0)) {
        return failed(path, what);
    }
    do {
        file->fd = io_interrupted(&fault) ? -1 : open_flags(file, path, flags, direct);
    } while (file->fd < 0 && errno == EINTR);
    if (file->fd < 0) {
        return failed(path, what);
    }
    file->path = strdup(path);
    if (file->path == NULL) {
        close(file->fd);
        file->fd = -1;
        return status_fail(STATUS_RESOURCE, "out of memory opening %s", path);
    }
    if (writes) {
        const enum io_kind kind = (flags & O_TRUNC) != 0   ? IO_CREATE
                                  : (flags & O_CREAT) != 0 ? IO_OPEN_OR_CREATE
                                                           : IO_OPEN;
        io_after(fault, &(struct io_event){.kind = kind, .path = path});
    }
    return STATUS_OK;
}

enum status io_create(struct io_file *file, const char *path)
{
    return open_file(file, path, O_RDWR | O_CREAT | O_TRUNC, false, "create");
}

enum status io_create_direct(struct io_file *file, const char *path)
{
    return open_file(file, path, O_RDWR | O_CREAT | O_TRUNC, true, "create");
}

enum status io_open_write(struct io_file *file, const char *path)
{
    return open_file(file, path, O_RDWR, false, "open for writing");
}

enum status io_open_append(struct io_file *file, const char *path)
{
    return open_file(file, path, O_WRONLY | O_CREAT | O_APPEND, false, "open for appending");
}

enum status io_open_read(struct io_file *file, const char *path)
{
    return open_file(file, path, O_RDONLY, false, "open");
}

enum status io_open_read_direct(struct io_file *file, const char *path)
{
    return open_file(file, path, O_RDONLY, true, "open");
}

void *io_buffer(size_t bytes)
{
    enum { LARGE_PAGE = 2 << 20 };
    const size_t whole = (bytes + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
    void *buffer = aligned_alloc(LARGE_PAGE, whole);
    if (buffer != NULL) {
        (void)madvise(buffer, whole, MADV_HUGEPAGE); /* advice only */
    }
    return buffer;
}

static void leave_direct(struct io_file *file)
{
    file->direct = fcntl(file->fd, F_SETFL, fcntl(file->fd, F_GETFL) & ~O_DIRECT) != 0;
}

/* A transfer that direct I/O would refuse switches it off for the file. */
static void allow(struct io_file *file, const void *data, size_t bytes, int64_t offset)
{
    const uint64_t odd = (uint64_t)(uintptr_t)data | bytes | (uint64_t)offset;
    if (file->direct && odd % IO_ALIGNMENT != 0) {
        leave_direct(file);
    }
}

/* Some file systems open a file for direct I/O and refuse the transfers: once more without it. */
static bool refused(struct io_file *file)
{
    if (!file->direct || errno != EINVAL) {
        return false;
    }
    leave_direct(file);
    return true;
}

/* offset < 0: at the file's own position. */
static ssize_t write_piece(struct io_file *file, const void *data, size_t bytes, int64_t offset)
{
    ssize_t done = -1;
    allow(file, data, bytes, offset);
    do {
        done = offset < 0 ? write(file->fd, data, bytes) : pwrite(file->fd, data, bytes, offset);
    } while (done < 0 && refused(file));
    return done;
}

/* Where the bytes of a write went. */
static int64_t place_of(const struct io_file *file, size_t bytes, int64_t offset)
{
    return offset >= 0 || !io_observed() ? offset : lseek(file->fd, 0, SEEK_CUR) - (int64_t)bytes;
}

static enum status write_all(struct io_file *file, const void *data, size_t bytes, int64_t offset)
{
    enum io_fault fault = io_meet();
    const char *from = data;
    size_t left = fault == IO_FAULT_KILL_TORN ? bytes / 2 : bytes;
    bool shorten = fault == IO_FAULT_SHORT && bytes > 1;
    if (io_fails(fault, true)) {
        return failed(file->path, "write");
    }
    for (int64_t at = offset; left > 0;) {
        const size_t piece = shorten ? left / 2 : left;
        const ssize_t done = io_interrupted(&fault) ? -1 : write_piece(file, from, piece, at);
        if (done < 0 && errno == EINTR) {
            continue;
        }
        if (done <= 0) {
            errno = done == 0 ? EIO : errno;
            return failed(file->path, "write");
        }
        shorten = false;
        from += done;
        left -= (size_t)done;
        at += offset < 0 ? 0 : done;
    }
    io_after(fault, &(struct io_event){.kind = IO_WRITE,
                                       .path = file->path,
                                       .data = data,
                                       .bytes = (int64_t)bytes,
                                       .offset = place_of(file, bytes, offset)});
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

static enum status ends_early(const struct io_file *file, size_t bytes, int64_t offset)
{
    return status_fail(STATUS_DATA, "%s: ends at byte %lld, %zu bytes too early: truncated",
                       file->path, (long long)offset, bytes);
}

enum status io_pread(struct io_file *file, void *data, size_t bytes, int64_t offset)
{
    enum io_fault fault = io_meet_read();
    const size_t all = bytes, missing = fault == IO_FAULT_CUT ? bytes - bytes / 2 : 0;
    char *to = data;
    bool shorten = fault == IO_FAULT_SHORT && bytes > 1;
    if (io_fails(fault, false)) {
        return failed(file->path, "read");
    }
    while (bytes > missing) {
        const size_t piece = shorten ? bytes / 2 : bytes - missing;
        allow(file, to, piece, offset);
        const ssize_t done = io_interrupted(&fault) ? -1 : pread(file->fd, to, piece, offset);
        if (done < 0 && (errno == EINTR || refused(file))) {
            continue;
        }
        if (done < 0) {
            return failed(file->path, "read");
        }
        if (done == 0) {
            return ends_early(file, bytes, offset);
        }
        shorten = false;
        to += done;
        bytes -= (size_t)done;
        offset += done;
    }
    if (fault == IO_FAULT_FLIP && all > 0) {
        ((unsigned char *)data)[all / 2] ^= 1;
    }
    return missing == 0 ? STATUS_OK : ends_early(file, missing, offset);
}

enum status io_size(struct io_file *file, int64_t *bytes)
{
    struct stat info;
    if (io_fails(io_meet_read(), false) || fstat(file->fd, &info) != 0) {
        return failed(file->path, "stat");
    }
    *bytes = info.st_size;
    return STATUS_OK;
}

enum status io_truncate(struct io_file *file, int64_t bytes)
{
    enum io_fault fault = io_meet();
    int result = io_fails(fault, true) ? -1 : 0;
    while (result == 0 && (io_interrupted(&fault) || ftruncate(file->fd, bytes) != 0)) {
        result = errno == EINTR ? 0 : -1;
    }
    if (result != 0) {
        return failed(file->path, "set the size");
    }
    io_after(fault, &(struct io_event){.kind = IO_TRUNCATE, .path = file->path, .bytes = bytes});
    return STATUS_OK;
}

/* NOTE: only an interrupted fsync may be called again. After a failed one the kernel may have
 * dropped the dirty pages and report success the next time. */
static bool sync_fd(int fd, enum io_fault *fault)
{
    int result = -1;
    do {
        result = io_interrupted(fault) ? -1 : fsync(fd);
    } while (result != 0 && errno == EINTR);
    return result == 0;
}

enum status io_sync(struct io_file *file)
{
    enum io_fault fault = io_meet();
    if (io_fails(fault, true) || !sync_fd(file->fd, &fault)) {
        return failed(file->path, "sync");
    }
    io_after(fault, &(struct io_event){.kind = IO_SYNC, .path = file->path});
    return STATUS_OK;
}

/* Whatever close says, the file is closed then: an interrupted close is done. */
enum status io_close(struct io_file *file)
{
    enum status status = STATUS_OK;
    if (file->path != NULL && file->fd >= 0) {
        const enum io_fault fault = file->writes ? io_meet() : IO_FAULT_NONE;
        const bool closed = close(file->fd) == 0 || errno == EINTR;
        if (io_fails(fault, true) || !closed) {
            status = failed(file->path, "close");
        } else if (file->writes) {
            io_after(fault, &(struct io_event){.kind = IO_CLOSE, .path = file->path});
        }
    }
    free(file->path);
    *file = (struct io_file){.fd = -1};
    return status;
}

/* The folder that holds `path`, which does not end in a slash. */
static enum status sync_parent(const char *path)
{
    char parent[MAX_PATH] = ".";
    const char *slash = strrchr(path, '/');
    if (slash != NULL) {
        snprintf(parent, sizeof parent, "%.*s", slash > path ? (int)(slash - path) : 1, path);
    }
    return io_sync_dir(parent);
}

static enum status make_one(const char *path)
{
    enum io_fault fault = io_meet();
    int result = -1;
    bool fails = io_fails(fault, true);
    while (!fails && result != 0) {
        result = io_interrupted(&fault) ? -1 : mkdir(path, 0755);
        fails = result != 0 && errno != EINTR;
    }
    if (result != 0 && errno == EEXIST) {
        return STATUS_OK; /* another process was first */
    }
    if (result != 0) {
        return failed(path, "create the folder");
    }
    io_after(fault, &(struct io_event){.kind = IO_MAKE_DIR, .path = path});
    return sync_parent(path);
}

enum status io_make_dir(const char *path)
{
    struct stat info;
    char part[MAX_PATH];
    if (strlen(path) >= sizeof part) {
        return status_fail(STATUS_IO, "path too long: %s", path);
    }
    for (size_t i = 1; i <= strlen(path); i++) {
        if ((path[i] != '/' && path[i] != '\0') || path[i - 1] == '/') {
            continue;
        }
        snprintf(part, i + 1, "%s", path);
        if (stat(part, &info) != 0) {
            TRY(make_one(part));
        } else if (!S_ISDIR(info.st_mode)) {
            errno = ENOTDIR;
            return failed(part, "use as a folder");
        }
    }
    return STATUS_OK;
}

enum status io_sync_dir(const char *path)
{
    enum io_fault fault = io_meet();
    const int fd = io_fails(fault, true) ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return failed(path, "sync the folder");
    }
    const bool synced = sync_fd(fd, &fault);
    const int error = errno;
    close(fd);
    errno = error;
    if (!synced) {
        return failed(path, "sync the folder");
    }
    io_after(fault, &(struct io_event){.kind = IO_SYNC_DIR, .path = path});
    return STATUS_OK;
}

/* What stands there, if it is neither a file nor nothing. */
static const char *kind_of(const char *path)
{
    struct stat info;
    return stat(path, &info) != 0 || S_ISREG(info.st_mode) ? NULL
           : S_ISDIR(info.st_mode)                         ? "a folder"
                                                           : "a pipe or a device";
}

enum status io_rename(const char *from, const char *to)
{
    struct stat info;
    if (stat(to, &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode)) {
        return status_fail(STATUS_IO, "%s: is a pipe or a device: name a file to write", to);
    }
    enum io_fault fault = io_meet();
    int result = -1;
    bool fails = io_fails(fault, true);
    while (!fails && result != 0) {
        result = io_interrupted(&fault) ? -1 : rename(from, to);
        fails = result != 0 && errno != EINTR;
    }
    if (result != 0) {
        return failed(from, "rename");
    }
    io_after(fault, &(struct io_event){.kind = IO_RENAME, .path = from, .to = to});
    return STATUS_OK;
}

/* A file or an empty folder; missing is fine. */
static enum status remove_one(const char *path, int (*call)(const char *), enum io_kind kind,
                              const char *what)
{
    enum io_fault fault = io_meet();
    int result = -1;
    bool fails = io_fails(fault, false);
    while (!fails && result != 0) {
        result = io_interrupted(&fault) ? -1 : call(path);
        fails = result != 0 && errno != EINTR;
    }
    if (result != 0 && errno != ENOENT) {
        return failed(path, what);
    }
    io_after(fault, &(struct io_event){.kind = kind, .path = path});
    return STATUS_OK;
}

enum status io_remove(const char *path)
{
    return remove_one(path, unlink, IO_REMOVE, "remove");
}

void io_discard(const char *path)
{
    char message[MAX_PATH];
    snprintf(message, sizeof message, "%s", status_message());
    enum status ignored = io_remove(path);
    ignored = status_lines(ignored, message);
    (void)ignored;
}

enum status io_list(const char *path, bool *there,
                    enum status (*each)(void *context, const char *name), void *context)
{
    DIR *dir = io_fails(io_meet_read(), false) ? NULL : opendir(path);
    *there = dir != NULL;
    if (dir == NULL) {
        return errno == ENOENT ? STATUS_OK : failed(path, "open the folder");
    }
    enum status status = STATUS_OK;
    errno = 0;
    for (struct dirent *entry = readdir(dir); entry != NULL && status == STATUS_OK;
         entry = status == STATUS_OK ? readdir(dir) : NULL) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            status = each(context, entry->d_name);
            errno = 0;
        }
    }
    if (status == STATUS_OK && errno != 0) {
        status = failed(path, "read the folder");
    }
    closedir(dir);
    return status;
}

static enum status remove_child(void *context, const char *name)
{
    char child[MAX_PATH];
    const char *path = context;
    if (snprintf(child, sizeof child, "%s/%s", path, name) >= MAX_PATH) {
        return status_fail(STATUS_IO, "path too long: %s/%s", path, name);
    }
    return io_remove_tree(child);
}

enum status io_remove_tree(const char *path)
{
    struct stat info;
    bool there = false;
    if (lstat(path, &info) != 0) {
        return errno == ENOENT ? STATUS_OK : failed(path, "look at");
    }
    if (!S_ISDIR(info.st_mode)) {
        return io_remove(path);
    }
    TRY(io_list(path, &there, remove_child, (void *)(uintptr_t)path));
    return remove_one(path, rmdir, IO_REMOVE_DIR, "remove the folder");
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
    if (!io_exists(path)) {
        return failed(path, "look at");
    }
    const char *kind = kind_of(path);
    return kind == NULL ? STATUS_OK : status_fail(STATUS_DATA, "%s: is %s, not a file", path, kind);
}

enum status io_check_output(const char *path)
{
    const size_t length = strlen(path);
    const char *kind = length == 0 || path[length - 1] == '/' ? "a folder" : kind_of(path);
    return kind == NULL ? STATUS_OK
                        : status_fail(STATUS_USAGE, "%s: is %s: name a file to write", path, kind);
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
    TRY(io_check_output(path));
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
    TRY(open_file(lock, path, O_RDWR | O_CREAT, false, "open the lock"));
    bool taken = flock(lock->fd, LOCK_EX | LOCK_NB) == 0;
    while (taken && !is_named(lock)) {
        io_unlock(lock);
        TRY(open_file(lock, path, O_RDWR | O_CREAT, false, "open the lock"));
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
    char when[32] = "";
    const time_t now = time(NULL);
    struct tm utc;
    gethostname(host, sizeof host - 1);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
    snprintf(text, sizeof text, "host %s, pid %ld, since %s", host, (long)getpid(), when);
    TRY(io_truncate(lock, 0));
    return io_pwrite(lock, text, strlen(text), 0);
}

void io_unlock(struct io_file *lock)
{
    const enum status ignored = io_close(lock); /* closing a lock file loses nothing */
    (void)ignored;
}
