/* report: one self-contained page of charts of one or more runs (no network, no script).
 *
 * Charts of all runs overlaid, then of each run where its time went and how loaded its experts
 * were; the keys that differ between the runs; what they ran on. A chart that no run has values for
 * is left out; a series that this table does not know is drawn among the last.
 */
#ifndef TRAINER_REPORT_REPORT_H
#define TRAINER_REPORT_REPORT_H

#include <jansson.h>

#include "trainer/config/config.h"
#include "trainer/report/history.h"

enum { REPORT_MOST_RUNS = 64 };

struct report_run {
    const char *dir; /* borrowed */
    struct history history;
    struct config config;
    bool configured;   /* config.yaml could be read */
    char *config_text; /* owned: as it stands there, or NULL */
    json_t *record;    /* owned: run.json, or NULL */
};

/* Reads what the run directory `dir` holds; without a readable config.yaml or run.json, what they
 * say is missing from the page. Errors: those of history_open. */
enum status report_run_open(struct report_run *run, const char *dir)
    __attribute__((warn_unused_result));
void report_run_close(struct report_run *run); /* accepts a zeroed one */

/* Writes the page. Errors: STATUS_RESOURCE. */
enum status report_write(FILE *out, const struct report_run *runs, int count)
    __attribute__((warn_unused_result));

#endif
