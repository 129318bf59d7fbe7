#include "trainer/report/chart.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "trainer/figures.h"

enum { WIDTH = 440, HEIGHT = 250, LEFT = 54, RIGHT = 16, TOP = 8, BOTTOM = 34, POINTS = 300 };
enum { MOST_TICKS = 12 };
static const double LEAST = 1e-100, MOST = 1e100;

/* A range of values and where they lie in the picture. */
struct axis {
    double low, high;
    double from, to; /* places of low and high */
    bool logarithmic;
    bool whole; /* ticks are whole numbers */
};

void html_text(FILE *out, const char *text)
{
    for (const char *c = text; *c != '\0'; c++) {
        switch (*c) {
        case '&':
            fputs("&amp;", out);
            break;
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc((unsigned char)*c < 0x20 && *c != '\n' ? ' ' : *c, out);
        }
    }
}

static double place(const struct axis *axis, double value)
{
    const double v = axis->logarithmic ? log10(value) : value,
                 low = axis->logarithmic ? log10(axis->low) : axis->low,
                 high = axis->logarithmic ? log10(axis->high) : axis->high;
    return axis->from + (axis->to - axis->from) * (high > low ? (v - low) / (high - low) : 0.5);
}

/* Sums and ranges of what is shown stay finite, and its logarithms near. */
static bool is_shown(double value)
{
    return isfinite(value) && fabs(value) < MOST;
}

/* 1, 2 or 5 times a power of ten, so that about `ticks` of them make up the range. */
static double nice_step(double range, int ticks)
{
    const double raw = range / ticks, power = pow(10, floor(log10(raw))), digit = raw / power;
    return power * (digit <= 1.5 ? 1 : digit <= 3 ? 2 : digit <= 7 ? 5 : 10);
}

static int linear_ticks(const struct axis *axis, int about, double tick[MOST_TICKS])
{
    const double nice = axis->high > axis->low ? nice_step(axis->high - axis->low, about) : 1;
    const double step = axis->whole && nice < 1 ? 1 : nice;
    int count = 0;
    for (double at = ceil(axis->low / step - 1e-9) * step;
         at <= axis->high + 1e-9 * step && count < MOST_TICKS; at += step) {
        tick[count++] = fabs(at) < 1e-9 * step ? 0 : at;
    }
    return count;
}

/* Powers of ten, with twice and five times those where there are few. */
static int log_ticks(const struct axis *axis, double tick[MOST_TICKS])
{
    static const double digits[] = {1, 2, 5};
    const double decades = log10(axis->high / axis->low);
    const double stride = pow(10, 1 + floor(decades / (MOST_TICKS - 1)));
    const int many = decades > 3 ? 1 : 3;
    int count = 0;
    for (double power = pow(10, floor(log10(axis->low))); power <= axis->high; power *= stride) {
        for (int d = 0; d < many && count < MOST_TICKS; d++) {
            const double at = power * digits[d];
            if (at >= axis->low * 0.999 && at <= axis->high * 1.001) {
                tick[count++] = at;
            }
        }
    }
    return count;
}

static void draw_axes(FILE *out, const struct axis *x, const struct axis *y)
{
    double tick[MOST_TICKS];
    char text[FIGURE_BYTES];
    const int rows = y->logarithmic ? log_ticks(y, tick) : linear_ticks(y, 5, tick);
    fprintf(out, "<g class=\"axis y-axis\">");
    for (int i = 0; i < rows; i++) {
        figure_short(text, tick[i]);
        fprintf(out,
                "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>"
                "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>",
                LEFT, WIDTH - RIGHT, place(y, tick[i]), place(y, tick[i]), LEFT - 5,
                place(y, tick[i]) + 4, text);
    }
    fprintf(out, "<line x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/></g>\n", LEFT, LEFT, TOP,
            HEIGHT - BOTTOM);
    const int columns = linear_ticks(x, 7, tick);
    fprintf(out, "<g class=\"axis x-axis\">");
    for (int i = 0; i < columns; i++) {
        figure_short(text, tick[i]);
        fprintf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>",
                place(x, tick[i]), HEIGHT - BOTTOM + 14, text);
    }
    fprintf(out,
            "<line x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/>"
            "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">step</text></g>\n",
            LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, HEIGHT - BOTTOM, (LEFT + WIDTH - RIGHT) / 2,
            HEIGHT - 4);
}

/* Mean and range of a run of values. */
struct point {
    double x, mean, low, high;
};

/* At most POINTS of them, each of the finite values of as many steps. Returns how many. */
static int points_of(const struct chart_line *line, struct point point[POINTS])
{
    const int64_t cells = line->count < POINTS ? line->count : POINTS;
    int points = 0;
    for (int64_t c = 0; c < cells; c++) {
        struct point p = {.low = INFINITY, .high = -INFINITY};
        int64_t held = 0;
        for (int64_t i = c * line->count / cells; i < (c + 1) * line->count / cells; i++) {
            if (is_shown(line->y[i])) {
                p.x += (double)line->x[i];
                p.mean += line->y[i];
                p.low = fmin(p.low, line->y[i]);
                p.high = fmax(p.high, line->y[i]);
                held++;
            }
        }
        if (held > 0) {
            p.x /= (double)held;
            p.mean /= (double)held;
            point[points++] = p;
        }
    }
    return points;
}

static void draw_band(FILE *out, const struct point *point, int points, int color,
                      const struct axis *x, const struct axis *y)
{
    fprintf(out, "<path class=\"band c%d\" d=\"", color);
    for (int i = 0; i < points; i++) {
        fprintf(out, "%c%.1f %.1f", i == 0 ? 'M' : 'L', place(x, point[i].x),
                place(y, point[i].high));
    }
    for (int i = points; i-- > 0;) {
        fprintf(out, "L%.1f %.1f", place(x, point[i].x), place(y, point[i].low));
    }
    fprintf(out, "Z\"/>\n");
}

static void draw_line(FILE *out, const struct point *point, int points, int color, bool dots,
                      const struct axis *x, const struct axis *y)
{
    fprintf(out, "<path class=\"line c%d\" d=\"", color);
    for (int i = 0; i < points; i++) {
        fprintf(out, "%c%.1f %.1f", i == 0 ? 'M' : 'L', place(x, point[i].x),
                place(y, point[i].mean));
    }
    fprintf(out, "\"/>\n");
    for (int i = 0; i < points && (dots || points == 1); i++) {
        fprintf(out, "<circle class=\"c%d\" r=\"2.5\" cx=\"%.1f\" cy=\"%.1f\"/>", color,
                place(x, point[i].x), place(y, point[i].mean));
    }
}

static void legend(FILE *out, const struct chart *chart)
{
    fprintf(out, "<ul class=\"legend\">");
    for (int i = 0; i < chart->lines; i++) {
        fprintf(out, "<li class=\"c%d\"><span>", chart->line[i].color);
        html_text(out, chart->line[i].label);
        fprintf(out, "</span></li>");
    }
    fprintf(out, "</ul>\n");
}

static void begin(FILE *out, const char *title, const char *y_label, bool stacked)
{
    fprintf(out, stacked ? "<figure class=\"stacked\"><figcaption>" : "<figure><figcaption>");
    html_text(out, title);
    if (y_label[0] != '\0') {
        fprintf(out, " <small>");
        html_text(out, y_label);
        fprintf(out, "</small>");
    }
    fprintf(out, "</figcaption>\n");
}

static void open_picture(FILE *out, const char *title)
{
    fprintf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", WIDTH, HEIGHT);
    html_text(out, title);
    fprintf(out, "\">\n");
}

/* Stacks the lines' points: all lines have the same steps. */
static void stack(struct point *points, const int *count, int lines)
{
    for (int i = 0; lines > 0 && i < count[0]; i++) {
        points[i].low = 0;
        points[i].high = points[i].mean;
    }
    for (int l = 1; l < lines; l++) {
        struct point *above = points + (size_t)l * POINTS, *below = above - POINTS;
        for (int i = 0; i < count[l] && i < count[l - 1]; i++) {
            above[i].mean += below[i].mean;
            above[i].low = below[i].mean;
            above[i].high = above[i].mean;
        }
    }
}

static void ranges(const struct chart *chart, const struct point *points, const int *count,
                   struct axis *x, struct axis *y)
{
    bool positive = true;
    *x = (struct axis){INFINITY, -INFINITY, LEFT, WIDTH - RIGHT, false, true};
    *y = (struct axis){INFINITY, -INFINITY, HEIGHT - BOTTOM, TOP, false, false};
    for (int l = 0; l < chart->lines; l++) {
        for (int i = 0; i < count[l]; i++) {
            const struct point *p = points + (size_t)l * POINTS + i;
            y->low = fmin(y->low, p->low);
            y->high = fmax(y->high, p->high);
            positive = positive && p->low > LEAST;
        }
        if (count[l] > 0) {
            x->low = fmin(x->low, (double)chart->line[l].x[0]);
            x->high = fmax(x->high, (double)chart->line[l].x[chart->line[l].count - 1]);
        }
    }
    y->logarithmic = chart->logarithmic && positive && y->high > y->low;
    y->low = chart->from_zero || chart->stacked ? fmin(y->low, 0) : y->low;
    const double flat = fabs(y->high) > 0 ? 0.1 * fabs(y->high) : 1;
    y->high = y->high > y->low ? y->high : y->high + flat;
}

static void draw_marks(FILE *out, const struct chart *chart, const struct axis *x)
{
    for (int i = 0; i < chart->marks; i++) {
        const double at = (double)chart->mark[i];
        if (at >= x->low && at <= x->high) {
            fprintf(out,
                    "<line class=\"mark\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"><title>"
                    "restart behind step %lld</title></line>\n",
                    place(x, at), place(x, at), TOP, HEIGHT - BOTTOM, (long long)chart->mark[i]);
        }
    }
}

bool chart_draw(FILE *out, const struct chart *chart)
{
    struct point *points = calloc((size_t)chart->lines * POINTS + 1, sizeof *points);
    int *count = calloc((size_t)chart->lines + 1, sizeof *count), total = 0;
    struct axis x, y;
    for (int l = 0; points != NULL && count != NULL && l < chart->lines; l++) {
        count[l] = points_of(&chart->line[l], points + (size_t)l * POINTS);
        total += count[l];
    }
    if (total > 0) {
        if (chart->stacked) {
            stack(points, count, chart->lines);
        }
        ranges(chart, points, count, &x, &y);
        begin(out, chart->title, chart->y_label, chart->stacked);
        legend(out, chart);
        open_picture(out, chart->title);
        draw_axes(out, &x, &y);
        draw_marks(out, chart, &x);
        for (int i = 0; i < chart->lines; i++) {
            /* of parts of no height only the lowest one is seen then, the edge of what lies below
             */
            const int l = chart->stacked ? chart->lines - 1 - i : i;
            const struct point *p = points + (size_t)l * POINTS;
            draw_band(out, p, count[l], chart->line[l].color, &x, &y);
            draw_line(out, p, count[l], chart->line[l].color, chart->dots, &x, &y);
        }
        fprintf(out, "</svg></figure>\n");
    }
    free(points);
    free(count);
    return total > 0;
}

/* --- Heat maps --- */

static int level_of(const struct heat_map *map, double value)
{
    int level = 0;
    while (level < CHART_LEVELS - 1 && value >= map->level[level]) {
        level++;
    }
    return level;
}

static double cell_mean(const struct heat_map *map, int64_t row, int64_t column, int64_t columns)
{
    const int64_t from = column * map->count / columns, to = (column + 1) * map->count / columns;
    double sum = 0;
    for (int64_t i = from; i < to; i++) {
        sum += (double)map->value[i * map->rows + row];
    }
    return sum / (double)(to - from);
}

static void heat_legend(FILE *out, const struct heat_map *map)
{
    fprintf(out, "<ul class=\"legend\">");
    for (int l = 0; l < CHART_LEVELS; l++) {
        fprintf(out,
                l == 0 ? "<li class=\"h%d\"><span>&lt; %g</span></li>"
                       : "<li class=\"h%d\"><span>%g</span></li>",
                l, map->level[l == 0 ? 0 : l - 1]);
    }
    fprintf(out, "</ul>\n");
}

/* Neighbours of one level are one rectangle. */
static void heat_row(FILE *out, const struct heat_map *map, int64_t row, const struct axis *x,
                     int64_t columns)
{
    const double height = (double)(HEIGHT - BOTTOM - TOP) / (double)map->rows;
    const double width = (x->to - x->from) / (double)columns;
    for (int64_t c = 0, next = 0; c < columns; c = next) {
        const int level = level_of(map, cell_mean(map, row, c, columns));
        for (next = c + 1;
             next < columns && level_of(map, cell_mean(map, row, next, columns)) == level;) {
            next++;
        }
        fprintf(out, "<rect class=\"h%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>",
                level, x->from + width * (double)c, TOP + height * (double)row,
                width * (double)(next - c), height);
    }
    fputc('\n', out);
}

bool heat_map_draw(FILE *out, const struct heat_map *map)
{
    enum { COLUMNS = 60 };
    if (map->count == 0 || map->rows == 0) {
        return false;
    }
    const int64_t columns = map->count < COLUMNS ? map->count : COLUMNS;
    const struct axis x = {
        (double)map->x[0], (double)map->x[map->count - 1], LEFT, WIDTH - RIGHT, false, true};
    /* rows stand below each other, their numbers beside their middles */
    const double half = 0.5 * (HEIGHT - BOTTOM - TOP) / (double)map->rows;
    const struct axis y = {0,   (double)(map->rows - 1), TOP + half, HEIGHT - BOTTOM - half, false,
                           true};
    begin(out, map->title, map->y_label, false);
    heat_legend(out, map);
    open_picture(out, map->title);
    draw_axes(out, &x, &y); /* its grid lies below the cells */
    for (int64_t row = 0; row < map->rows; row++) {
        heat_row(out, map, row, &x, columns);
    }
    fprintf(out, "</svg></figure>\n");
    return true;
}
