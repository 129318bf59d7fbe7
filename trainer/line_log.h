/* line_log: a file that a run appends lines to, and that does not end the run when its disk is
 * full.
 *
 * Lines that cannot be written are kept in memory, up to LINE_LOG_BYTES, and written with a later
 * one, in order; the file holds whole lines only. Of lines beyond that it is known which they were.
 */
#ifndef TRAINER_LINE_LOG_H
#define TRAINER_LINE_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/base/status.h"

enum { LINE_LOG_BYTES = 16 << 20 };

struct line_log {
    int fd;     /* -1: closed */
    char *path; /* owned, for messages */
    char *kept; /* [kept_bytes] owned: whole lines that are not in the file yet */
    size_t kept_bytes, room;
    int64_t kept_lines;
    int64_t whole; /* bytes of the file that are whole lines */
    bool torn;     /* a part of a line behind them could not be cut off */
    bool held;     /* by its owner: lines are kept in memory, for the file has some that go first */
    int64_t lost;  /* lines that were not even kept */
    int64_t lost_from, lost_to; /* the `number` of the first and the last of them */
};

/* Local. Appends to `path`, which is made where it is missing. Errors: STATUS_IO. */
enum status line_log_open(struct line_log *log, const char *path)
    __attribute__((warn_unused_result));
/* Tries once more; keeps status_message(). Accepts a zeroed one. */
void line_log_close(struct line_log *log);
/* Local. One line, its newline included; `number`: what it is of, a step. Errors: STATUS_IO when
 * not all lines are in the file behind it, with the reason. */
enum status line_log_add(struct line_log *log, const char *line, size_t bytes, int64_t number)
    __attribute__((warn_unused_result));
/* Local. Takes lines out again: of the file all but the first `bytes`; or of those that are kept in
 * memory all but the first `bytes`. Errors: STATUS_IO: the file is cut before the next line is
 * written. */
enum status line_log_cut(struct line_log *log, int64_t bytes) __attribute__((warn_unused_result));
void line_log_drop(struct line_log *log, size_t bytes);
/* Local. Tries once more. Errors: as line_log_add; STATUS_IO also when lines were lost for good. */
enum status line_log_settle(struct line_log *log) __attribute__((warn_unused_result));

#endif
