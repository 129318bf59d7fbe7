/* history: a run's metrics.jsonl as columns, read as far as it is written and then followed.
 *
 * Every number of a line becomes a series by its key, a number inside an object by
 * "object.key"; expert_load becomes a matrix. What a step does not have is NAN. Knows no key but
 * "step" and "expert_load", so that new figures show up by themselves.
 */
#ifndef TRAINER_REPORT_HISTORY_H
#define TRAINER_REPORT_HISTORY_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/base/status.h"

enum { HISTORY_NAME_BYTES = 48, HISTORY_SERIES = 64 };

struct history_series {
    char name[HISTORY_NAME_BYTES];
    double *value; /* [room] owned */
};

struct history {
    char *path; /* owned: RUN_DIR/metrics.jsonl */
    int64_t count, room;
    int64_t *step; /* [room] owned, rising */
    int series_count;
    struct history_series series[HISTORY_SERIES];
    int64_t blocks; /* with experts; 0: none yet */
    float *load;    /* [room, blocks] owned: max/mean */
    int64_t offset; /* bytes of the file read */
    uint64_t inode; /* of the file read: another one is read from the start */
};

/* Reads what RUN_DIR/metrics.jsonl holds. Errors: STATUS_IO when there is none, STATUS_DATA for a
 * line that is not an object with a step (names file and line), STATUS_RESOURCE. */
enum status history_open(struct history *history, const char *run_dir)
    __attribute__((warn_unused_result));
/* Reads the whole lines that were added since; a run that went back (resumed from an older
 * checkpoint) is read anew. */
enum status history_follow(struct history *history) __attribute__((warn_unused_result));
void history_close(struct history *history); /* accepts a zeroed one */

/* Values of a series, [count]; NULL: no step has it. */
const double *history_values(const struct history *history, const char *name);
/* The last value that is a number; NAN: none. */
double history_last(const struct history *history, const char *name);

#endif
