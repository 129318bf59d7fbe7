/* panel: a run at a glance, as lines of text for a terminal. */
#ifndef TRAINER_REPORT_PANEL_H
#define TRAINER_REPORT_PANEL_H

#include <stdio.h>

#include "trainer/report/history.h"

struct panel {
    const char *name; /* borrowed: of the run */
    int64_t steps;    /* of the whole run; 0: not known */
    double quiet_s;   /* seconds since the last step was written */
    bool stopped;     /* nobody trains it now, as far as is known */
    int columns;      /* of the terminal */
    bool ascii;       /* no characters beyond ASCII */
};

/* Local. Draws what the history holds (a run may not have finished a step yet): lines of at most
 * `columns` characters. */
void panel_draw(FILE *out, const struct panel *panel, const struct history *history);
/* The last step as one line without its end, for logs. */
void panel_line(FILE *out, const struct panel *panel, const struct history *history);
/* Whether the run has done all its steps. */
bool panel_done(const struct panel *panel, const struct history *history);

#endif
