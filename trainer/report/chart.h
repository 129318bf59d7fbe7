/* chart: line charts, stacked areas and heat maps as inline SVG.
 *
 * Colours come from the page's style sheet (classes c0 to c7 for lines and areas, h0 to h6 for
 * cells), so that one SVG serves light, dark and print. Drawn at 440 x 250 units with text of 11, a
 * size that is legible at 400 pixels; the page sets charts side by side where there is room.
 */
#ifndef TRAINER_REPORT_CHART_H
#define TRAINER_REPORT_CHART_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { CHART_COLORS = 8, CHART_LEVELS = 7 };

/* Values over steps; what is not finite, or beyond 1e100, is left out. More than a few hundred are
 * averaged, and the range they span is drawn behind the line. */
struct chart_line {
    const char *label; /* borrowed, as HTML stands in the legend escaped */
    int color;         /* 0 .. CHART_COLORS - 1 */
    int64_t count;
    const int64_t *x; /* [count] borrowed, rising */
    const double *y;  /* [count] borrowed */
};

struct chart {
    const char *title, *y_label; /* borrowed */
    bool logarithmic;            /* of y, where all values are positive */
    bool from_zero;              /* the axis begins at 0 */
    bool dots;                   /* few values: a dot on each */
    bool stacked;                /* lines are parts, each drawn on top of those before */
    int lines;
    const struct chart_line *line; /* borrowed */
    int marks;
    const int64_t *mark; /* [marks] borrowed: steps with a vertical line (restarts) */
};

/* Writes a <figure>: title, legend, picture. Writes nothing and returns false when there is no
 * value to draw. */
bool chart_draw(FILE *out, const struct chart *chart);

/* Rows over steps: mean of value[step, row] in as many columns as fit; levels are thresholds. */
struct heat_map {
    const char *title, *y_label; /* borrowed */
    int64_t count, rows;
    const int64_t *x;    /* [count] borrowed */
    const float *value;  /* [count, rows] borrowed */
    const double *level; /* [CHART_LEVELS - 1] rising: cells below level[0] have class h0, ... */
};
bool heat_map_draw(FILE *out, const struct heat_map *map);

/* Text between tags or in an attribute: & < > " and control characters are escaped. */
void html_text(FILE *out, const char *text);

#endif
