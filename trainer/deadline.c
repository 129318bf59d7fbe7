#include "trainer/deadline.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/step.h"

/* "SS", "MM:SS" or "HH:MM:SS": numbers with colons between; behind days the first are hours. */
static bool clock_seconds(const char *text, bool hours, double *seconds)
{
    double sum = 0;
    for (int parts = 0; parts < 3; parts++) {
        char *end = NULL;
        if (!isdigit((unsigned char)*text)) {
            return false;
        }
        sum = 60 * sum + strtod(text, &end);
        if (*end == '\0') {
            *seconds = hours && parts < 2 ? sum * (parts == 0 ? 3600 : 60) : sum;
            return true;
        }
        if (*end != ':') {
            return false;
        }
        text = end + 1;
    }
    return false;
}

bool deadline_seconds(const char *text, double *seconds)
{
    static const struct {
        char unit;
        double seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}};
    const size_t digits = strspn(text, "0123456789.");
    double days = 0;
    const char *dash = strchr(text, '-');
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (digits > 0 && text[digits] == units[i].unit && text[digits + 1] == '\0') {
            *seconds = strtod(text, NULL) * units[i].seconds;
            return *seconds > 0;
        }
    }
    if (dash != NULL) {
        if (digits == 0 || text + digits != dash) {
            return false;
        }
        days = strtod(text, NULL);
        text = dash + 1;
    }
    if (!clock_seconds(text, dash != NULL, seconds)) {
        return false;
    }
    *seconds += 86400 * days;
    return *seconds > 0;
}

enum status deadline_init(struct deadline *deadline, const char *text)
{
    *deadline = (struct deadline){.started = step_clock()};
    return text == NULL || deadline_seconds(text, &deadline->limit_s)
               ? STATUS_OK
               : status_fail(STATUS_USAGE,
                             "run.time_limit: '%s' is no time: write 90m, 2h, 7200, 1:30:00 or "
                             "1-12:00:00",
                             text);
}

void deadline_step(struct deadline *deadline, double seconds)
{
    deadline->longest_step_s =
        seconds > deadline->longest_step_s ? seconds : deadline->longest_step_s;
}

void deadline_save(struct deadline *deadline, double seconds)
{
    deadline->longest_save_s =
        seconds > deadline->longest_save_s ? seconds : deadline->longest_save_s;
}

bool deadline_due(const struct deadline *deadline, struct comm *world)
{
    const double needed = 2 * (deadline->longest_step_s + deadline->longest_save_s);
    int32_t due = deadline->limit_s > 0 && world->rank == 0 &&
                  step_clock() - deadline->started + needed > deadline->limit_s;
    if (deadline->limit_s > 0) {
        comm_broadcast(world, &due, sizeof due, 0);
    }
    return due != 0;
}
