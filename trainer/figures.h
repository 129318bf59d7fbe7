/* figures: numbers as people read them, and in order. */
#ifndef TRAINER_FIGURES_H
#define TRAINER_FIGURES_H

#include <stdint.h>

enum { FIGURE_BYTES = 32 };

/* Four digits and a unit: "12.3M", "0.003", "1e-05". Returns out. */
const char *figure_short(char out[FIGURE_BYTES], double value);
/* "4:59", "1:04:59", "2d 3h"; below 0: "0:00". Returns out. */
const char *figure_duration(char out[FIGURE_BYTES], double seconds);
/* Rising. */
void figure_sort(double *value, int64_t count);

#endif
