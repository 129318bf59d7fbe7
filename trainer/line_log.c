#include "trainer/line_log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MESSAGE_BYTES = 2048 };

enum status line_log_open(struct line_log *log, const char *path)
{
    struct stat info;
    *log = (struct line_log){.fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644),
                             .path = strdup(path)};
    if (log->fd < 0 || log->path == NULL || fstat(log->fd, &info) != 0) {
        return status_fail(STATUS_IO, "%s: cannot open for writing: %s", path, strerror(errno));
    }
    log->whole = info.st_size;
    return STATUS_OK;
}

static enum status failed(const struct line_log *log)
{
    return status_fail(STATUS_IO, "%s: cannot write: %s", log->path, strerror(errno));
}

static int64_t lines_of(const char *text, size_t bytes)
{
    int64_t lines = 0;
    for (size_t i = 0; i < bytes; i++) {
        lines += text[i] == '\n';
    }
    return lines;
}

/* What a failed write left of a line goes; false: it stays, for now. */
static bool cut_torn(struct line_log *log)
{
    struct stat info;
    if (log->torn && fstat(log->fd, &info) == 0) {
        log->whole = info.st_size < log->whole ? info.st_size : log->whole; /* others cut it */
        log->torn = ftruncate(log->fd, (off_t)log->whole) != 0;
    }
    return !log->torn;
}

/* The whole lines among the first `bytes` of what is kept are in the file now. */
static void let_go(struct line_log *log, size_t bytes)
{
    size_t whole = bytes;
    while (whole > 0 && log->kept[whole - 1] != '\n') {
        whole--;
    }
    log->kept_lines -= lines_of(log->kept, whole);
    log->whole += (int64_t)whole;
    log->torn = whole < bytes;
    log->kept_bytes -= whole;
    memmove(log->kept, log->kept + whole, log->kept_bytes);
}

static enum status write_kept(struct line_log *log)
{
    size_t done = 0;
    if (log->held) {
        return status_fail(STATUS_IO, "%s: holds lines that were to be taken out", log->path);
    }
    enum status status = cut_torn(log) ? STATUS_OK : failed(log);
    while (status == STATUS_OK && done < log->kept_bytes) {
        const ssize_t some = write(log->fd, log->kept + done, log->kept_bytes - done);
        if (some == 0) {
            errno = EIO; /* or nothing would ever change */
        }
        if (some == 0 || (some < 0 && errno != EINTR)) {
            status = failed(log);
        }
        done += some > 0 ? (size_t)some : 0;
    }
    if (done > 0) {
        let_go(log, done);
        (void)cut_torn(log);
    }
    return status;
}

/* Room for more, in doubling steps; false: none. */
static bool reserve(struct line_log *log, size_t bytes)
{
    size_t room = log->room > 0 ? log->room : 1 << 14;
    if (bytes > LINE_LOG_BYTES) {
        return false;
    }
    while (room < bytes) {
        room *= 2;
    }
    char *grown = room > log->room ? realloc(log->kept, room) : log->kept;
    if (grown == NULL) {
        return false;
    }
    log->kept = grown;
    log->room = room;
    return true;
}

enum status line_log_add(struct line_log *log, const char *line, size_t bytes, int64_t number)
{
    if (reserve(log, log->kept_bytes + bytes)) {
        memcpy(log->kept + log->kept_bytes, line, bytes);
        log->kept_bytes += bytes;
        log->kept_lines += lines_of(line, bytes);
    } else {
        log->lost_from = log->lost == 0 ? number : log->lost_from;
        log->lost_to = number;
        log->lost += lines_of(line, bytes);
    }
    return write_kept(log);
}

void line_log_drop(struct line_log *log, size_t bytes)
{
    log->kept_bytes = bytes;
    log->kept_lines = lines_of(log->kept, bytes);
}

enum status line_log_cut(struct line_log *log, int64_t bytes)
{
    log->whole = bytes;
    log->torn = true;
    return cut_torn(log) ? STATUS_OK : failed(log);
}

enum status line_log_settle(struct line_log *log)
{
    TRY(write_kept(log));
    return log->lost == 0
               ? STATUS_OK
               : status_fail(STATUS_IO,
                             "%s: %lld lines of steps %lld to %lld are lost: there was no room for "
                             "them for too long",
                             log->path, (long long)log->lost, (long long)log->lost_from,
                             (long long)log->lost_to);
}

void line_log_close(struct line_log *log)
{
    if (log->path != NULL && log->fd >= 0) {
        char message[MESSAGE_BYTES];
        snprintf(message, sizeof message, "%s", status_message());
        enum status ignored = write_kept(log); /* whoever wants to know has settled */
        ignored = status_lines(ignored, message);
        (void)ignored;
        close(log->fd);
    }
    free(log->path);
    free(log->kept);
    *log = (struct line_log){.fd = -1};
}
