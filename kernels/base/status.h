/* status: how a failure of the outside world travels up.
 *
 * A function that meets bad input, a full disk or a failing library returns `enum status` and
 * records one line of text (what, where, which value, what to do) with status_fail(). Callers pass
 * the status up with TRY(). At a phase border comm_agree() gives every rank the worst status, and
 * one rank prints the line. Our own bugs are assert()s, which stay on in Release builds.
 */
#ifndef KERNELS_BASE_STATUS_H
#define KERNELS_BASE_STATUS_H

enum status {
    STATUS_OK = 0,
    STATUS_DIFFERENT, /* compared and different (exit 1) */
    STATUS_USAGE,     /* command line or config (exit 64) */
    STATUS_DATA,      /* bad data or checkpoint (exit 65) */
    STATUS_MISMATCH,  /* a whole checkpoint, but of another model (exit 65) */
    STATUS_INTERNAL,  /* a library failed in a way we have no better name for (exit 70) */
    STATUS_RESOURCE,  /* memory, cores, device (exit 71) */
    STATUS_IO,        /* disk, standard output (exit 74) */
    STATUS_HANG,      /* a rank stopped answering (exit 76) */
    STATUS_DIVERGED,  /* loss or gradient not finite (exit 77) */
    STATUS_PREEMPTED, /* saved after a signal, please requeue (exit 85) */
};

/* Passes a failure up. */
#define TRY(call)                                                                                  \
    do {                                                                                           \
        enum status try_status_ = (call);                                                          \
        if (try_status_ != STATUS_OK) {                                                            \
            return try_status_;                                                                    \
        }                                                                                          \
    } while (0)

/* Records a one-line message for this thread (printf style) and returns `status`. Control
 * characters, which a name out of a foreign file may hold, become '?'. */
enum status status_fail(enum status status, const char *format, ...)
    __attribute__((format(printf, 2, 3), warn_unused_result));
/* The same for a message that is clean already: several lines, or one passed on. */
enum status status_lines(enum status status, const char *lines) __attribute__((warn_unused_result));
/* Control characters become '?', newlines too. */
void status_clean(char *text);

/* The last message recorded by this thread; "" when none. Valid until the next status_fail. */
const char *status_message(void);

/* The process exit code of a status, as documented in design and README. */
int status_exit_code(enum status status);

#endif
