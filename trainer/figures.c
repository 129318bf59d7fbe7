#include "trainer/figures.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const char *figure_short(char out[FIGURE_BYTES], double value)
{
    static const char units[] = " kMGTP";
    int unit = 0;
    for (; fabs(value) >= 999.95 && unit < 5; value /= 1e3) {
        unit++;
    }
    snprintf(out, FIGURE_BYTES, "%.4g%.*s", value, unit > 0, units + unit);
    return out;
}

const char *figure_duration(char out[FIGURE_BYTES], double seconds)
{
    const long long s = seconds > 0 ? (long long)(seconds + 0.5) : 0;
    if (s >= 86400) {
        snprintf(out, FIGURE_BYTES, "%lldd %lldh", s / 86400, s / 3600 % 24);
    } else if (s >= 3600) {
        snprintf(out, FIGURE_BYTES, "%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
    } else {
        snprintf(out, FIGURE_BYTES, "%lld:%02lld", s / 60, s % 60);
    }
    return out;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void figure_sort(double *value, int64_t count)
{
    qsort(value, (size_t)count, sizeof *value, ascending);
}
