#include "trainer/report/panel.h"

#include <math.h>
#include <string.h>

#include "trainer/figures.h"

enum { LABEL = 9, LEVELS = 8 };

static const char *const blocks[LEVELS] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
static const char ascii_levels[] = "_.-:=+*#";

bool panel_done(const struct panel *panel, const struct history *history)
{
    return panel->steps > 0 && history->count > 0 &&
           history->step[history->count - 1] >= panel->steps;
}

/* Mean of the finite values (below 1e100) of steps [from, to); NAN: there are none. */
static double mean(const double *value, int64_t from, int64_t to)
{
    double sum = 0;
    int64_t count = 0;
    for (int64_t i = from; i < to; i++) {
        if (isfinite(value[i]) && fabs(value[i]) < 1e100) {
            sum += value[i];
            count++;
        }
    }
    return count > 0 ? sum / (double)count : (double)NAN;
}

/* The values of the run, first to last, in as many columns as there is room for. */
static void spark(FILE *out, const struct panel *panel, const struct history *history,
                  const char *label, const char *name, bool first)
{
    const double *value = history_values(history, name);
    const int room = panel->columns - LABEL - 24;
    const int64_t count = history->count;
    const int cells = (int)(count < room ? count : room);
    double low = INFINITY, high = -INFINITY;
    char from[FIGURE_BYTES], to[FIGURE_BYTES];
    if (value == NULL || cells < 2 || isnan(history_last(history, name))) {
        return;
    }
    for (int c = 0; c < cells; c++) {
        const double v = mean(value, c * count / cells, (c + 1) * count / cells);
        low = fmin(low, v);
        high = fmax(high, v);
    }
    fprintf(out, "%-*s", LABEL, label);
    for (int c = 0; c < cells; c++) {
        const double v = mean(value, c * count / cells, (c + 1) * count / cells);
        const int level = high > low ? (int)((LEVELS - 0.001) * (v - low) / (high - low)) : 0;
        if (isnan(v)) {
            fputc(' ', out);
        } else if (panel->ascii) {
            fputc(ascii_levels[level], out);
        } else {
            fputs(blocks[level], out);
        }
    }
    double begin = value[0];
    for (int64_t i = 0; i < count && !isfinite(begin); i++) {
        begin = value[i];
    }
    figure_short(from, begin);
    figure_short(to, history_last(history, name));
    fprintf(out, first ? " %s -> %s\n" : " %.0s%s\n", from, to);
}

static void bar(FILE *out, const struct panel *panel, double share)
{
    const int room = panel->columns > 60 ? 40 : panel->columns - 20;
    const int done = (int)(share * room);
    fputc('[', out);
    for (int i = 0; i < room; i++) {
        fputs(i >= done ? " " : panel->ascii ? "=" : "█", out);
    }
    fputc(']', out);
}

static const char *state_of(const struct panel *panel, const struct history *history,
                            char out[2 * FIGURE_BYTES])
{
    const double last_s = history_last(history, "step_ms") / 1e3;
    char since[FIGURE_BYTES];
    if (panel_done(panel, history)) {
        return "done";
    }
    if (panel->stopped) {
        return "stopped";
    }
    if (panel->quiet_s > 60 && !(panel->quiet_s < 20 * last_s)) {
        snprintf(out, 2 * FIGURE_BYTES, "no step for %s", figure_duration(since, panel->quiet_s));
        return out;
    }
    return history->count > 0 ? "running" : "no step yet";
}

/* Seconds that the steps to come take at the pace of the last ones. */
static double left_s(const struct panel *panel, const struct history *history)
{
    enum { LAST = 50 };
    const double *ms = history_values(history, "step_ms");
    const int64_t count = history->count, last = history->step[count - 1];
    return ms == NULL ? (double)NAN
                      : mean(ms, count > LAST ? count - LAST : 0, count) / 1e3 *
                            (double)(panel->steps - last);
}

static void head(FILE *out, const struct panel *panel, const struct history *history)
{
    char state[2 * FIGURE_BYTES], eta[FIGURE_BYTES];
    const int64_t step = history->count > 0 ? history->step[history->count - 1] : 0;
    fprintf(out, "%.*s  %s\n", panel->columns - 20, panel->name, state_of(panel, history, state));
    if (panel->steps > 0) {
        bar(out, panel, (double)step / (double)panel->steps);
        fprintf(out, " %lld/%lld", (long long)step, (long long)panel->steps);
        if (history->count > 0 && step < panel->steps) {
            fprintf(out, "  ETA %s", figure_duration(eta, left_s(panel, history)));
        }
    } else {
        fprintf(out, "step %lld", (long long)step);
    }
    fputc('\n', out);
}

static void figure(FILE *out, const char *label, double value, const char *unit)
{
    char text[FIGURE_BYTES];
    if (!isnan(value)) {
        fprintf(out, "%s%s%s  ", label, figure_short(text, value), unit);
    }
}

static void figures(FILE *out, const struct history *history)
{
    figure(out, "loss ", history_last(history, "loss"), "");
    figure(out, "valid ", history_last(history, "valid_loss"), "");
    figure(out, "grad ", history_last(history, "grad_norm"), "");
    const double lr = history_last(history, "lr");
    fprintf(out, isnan(lr) ? "\n" : "lr %.2e\n", lr);
    figure(out, "", history_last(history, "tokens_per_s"), " tok/s");
    figure(out, "MFU ", 100 * history_last(history, "mfu"), " %");
    const double mib = history_last(history, "memory_bytes") / 1048576.0;
    figure(out, "memory ", mib < 1024 ? mib : mib / 1024, mib < 1024 ? " MiB" : " GiB");
    figure(out, "dropped ", 100 * history_last(history, "dropped_fraction"), " %");
    figure(out, "extra rounds ", history_last(history, "extra_rounds"), "");
    fputc('\n', out);
}

/* Where the time of the last step went. */
static void phases(FILE *out, const struct history *history)
{
    const double whole = history_last(history, "step_ms");
    fprintf(out, "%-*s", LABEL, "time");
    for (int i = 0; i < history->series_count; i++) {
        const char *name = history->series[i].name;
        if (strncmp(name, "phase_ms.", 9) == 0) {
            fprintf(out, "%s %.0f %%  ", name + 9, 100 * history_last(history, name) / whole);
        }
    }
    fputc('\n', out);
}

/* Of every layer with experts the largest load over the mean. */
static void loads(FILE *out, const struct panel *panel, const struct history *history)
{
    enum { CELL = 6 };
    const int room = (panel->columns - LABEL) / CELL;
    const float *load = history->load + (history->count - 1) * history->blocks;
    double most = 0;
    for (int64_t b = 0; b < history->blocks; b++) {
        most = fmax(most, (double)load[b]);
    }
    fprintf(out, "%-*s", LABEL, "load");
    if (history->blocks > room) {
        fprintf(out, "most %.2f of %lld layers\n", most, (long long)history->blocks);
        return;
    }
    for (int64_t b = 0; b < history->blocks; b++) {
        fprintf(out, "%-*.2f", CELL, (double)load[b]);
    }
    fputc('\n', out);
}

void panel_draw(FILE *out, const struct panel *panel, const struct history *history)
{
    head(out, panel, history);
    if (history->count == 0) {
        return;
    }
    figures(out, history);
    spark(out, panel, history, "loss", "loss", true);
    spark(out, panel, history, "valid", "valid_loss", true);
    spark(out, panel, history, "grad", "grad_norm", false);
    spark(out, panel, history, "lr", "lr", false);
    spark(out, panel, history, "tok/s", "tokens_per_s", false);
    if (history->blocks > 0) {
        loads(out, panel, history);
    }
    phases(out, history);
}

void panel_line(FILE *out, const struct panel *panel, const struct history *history)
{
    char eta[FIGURE_BYTES];
    const int64_t step = history->count > 0 ? history->step[history->count - 1] : 0;
    fprintf(out, "step %lld/%lld  ", (long long)step, (long long)panel->steps);
    if (history->count > 0) {
        figure(out, "loss ", history_last(history, "loss"), "");
        figure(out, "valid ", history_last(history, "valid_loss"), "");
        figure(out, "", history_last(history, "tokens_per_s"), " tok/s");
        fprintf(out, "ETA %s", figure_duration(eta, left_s(panel, history)));
    }
}
