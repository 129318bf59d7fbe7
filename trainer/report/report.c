#include "trainer/report/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kernels/base/io.h"
#include "trainer/report/chart.h"
#include "trainer/session.h"
#include "trainer/version.h"

enum { MAX_PATH = 4096 };
static const size_t MAX_FILE = (size_t)1 << 24;

/* --- Runs --- */

static char *read_text(const char *dir, const char *name)
{
    char path[MAX_PATH], *text = NULL;
    size_t bytes = 0;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return io_exists(path) && io_read_file(path, &text, &bytes, MAX_FILE) == STATUS_OK ? text
                                                                                       : NULL;
}

enum status report_run_open(struct report_run *run, const char *dir)
{
    *run = (struct report_run){.dir = dir};
    TRY(history_open(&run->history, dir));
    config_init(&run->config);
    run->config.stored = true;
    run->configured = session_read_config(&run->config, dir, NULL, 0) == STATUS_OK;
    run->config_text = read_text(dir, "config.yaml");
    char *record = read_text(dir, "run.json");
    run->record = record != NULL ? json_loads(record, 0, NULL) : NULL;
    free(record);
    return STATUS_OK;
}

void report_run_close(struct report_run *run)
{
    history_close(&run->history);
    config_free(&run->config);
    free(run->config_text);
    json_decref(run->record);
    *run = (struct report_run){0};
}

/* Steps behind which the run was started again, at most `room`. */
static int restarts_of(const struct report_run *run, int64_t *step, int room)
{
    json_t *starts = json_object_get(run->record, "starts"), *start;
    size_t i;
    int count = 0;
    json_array_foreach(starts, i, start)
    {
        const int64_t at = json_integer_value(json_object_get(start, "step"));
        if (i > 0 && count < room) {
            step[count++] = at;
        }
    }
    return count;
}

/* --- Charts of all runs --- */

static const struct subject {
    const char *series, *title, *unit;
    bool logarithmic, from_zero, dots;
} subjects[] = {
    {"loss", "Training loss", "nats per label", false, false, false},
    {"valid_loss", "Validation loss", "nats per label", false, false, true},
    {"lr", "Learning rate", "", false, true, false},
    {"grad_norm", "Gradient norm", "before clipping", true, false, false},
    {"tokens_per_s", "Throughput", "tokens per second", false, true, false},
    {"mfu", "Model FLOP utilisation", "of the peak", false, true, false},
    {"memory_bytes", "Memory", "bytes, first rank", false, true, false},
    {"mtp_loss", "Multi-token prediction loss", "nats per label", false, false, false},
    {"aux_loss", "Balance loss", "weighted", false, false, false},
    {"dropped_fraction", "Dropped tokens", "fraction", false, true, false},
    {"extra_rounds", "Extra dispatch rounds", "per step", false, true, false},
};
enum { SUBJECTS = sizeof subjects / sizeof subjects[0] };

static bool all_zero(const struct history *history, const double *value)
{
    for (int64_t i = 0; i < history->count; i++) {
        if (isfinite(value[i]) && value[i] != 0) {
            return false;
        }
    }
    return true;
}

/* Rare events that never came about are no chart. */
static bool is_silent(const struct report_run *runs, int count, const char *series)
{
    for (int r = 0; r < count; r++) {
        const double *value = history_values(&runs[r].history, series);
        if (value != NULL && !all_zero(&runs[r].history, value)) {
            return false;
        }
    }
    return true;
}

static void draw_subject(FILE *out, const struct report_run *runs, int count,
                         const struct subject *subject)
{
    struct chart_line line[REPORT_MOST_RUNS];
    enum { MOST_MARKS = 64 };
    int64_t mark[MOST_MARKS];
    struct chart chart = {.title = subject->title,
                          .y_label = subject->unit,
                          .logarithmic = subject->logarithmic,
                          .from_zero = subject->from_zero,
                          .dots = subject->dots,
                          .line = line,
                          .mark = mark};
    for (int r = 0; r < count; r++) {
        const double *value = history_values(&runs[r].history, subject->series);
        if (value != NULL) {
            line[chart.lines++] = (struct chart_line){.label = runs[r].dir,
                                                      .color = r % CHART_COLORS,
                                                      .count = runs[r].history.count,
                                                      .x = runs[r].history.step,
                                                      .y = value};
            chart.marks += restarts_of(&runs[r], mark + chart.marks, MOST_MARKS - chart.marks);
        }
    }
    if (!is_silent(runs, count, subject->series)) {
        (void)chart_draw(out, &chart);
    }
}

/* Whether the page shows the series elsewhere, or need not. */
static bool is_known(const char *name)
{
    static const char *const others[] = {"step", "tokens", "step_ms"};
    for (int i = 0; i < SUBJECTS; i++) {
        if (strcmp(subjects[i].series, name) == 0) {
            return true;
        }
    }
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (strcmp(others[i], name) == 0) {
            return true;
        }
    }
    return strncmp(name, "phase_ms.", 9) == 0;
}

static bool seen_before(const struct report_run *runs, int run, const char *name)
{
    for (int r = 0; r < run; r++) {
        if (history_values(&runs[r].history, name) != NULL) {
            return true;
        }
    }
    return false;
}

static void draw_shared(FILE *out, const struct report_run *runs, int count)
{
    fprintf(out, "<section class=\"charts\">\n");
    for (int i = 0; i < SUBJECTS; i++) {
        draw_subject(out, runs, count, &subjects[i]);
    }
    for (int r = 0; r < count; r++) {
        const struct history *history = &runs[r].history;
        for (int i = 0; i < history->series_count; i++) {
            const char *name = history->series[i].name;
            if (!is_known(name) && !seen_before(runs, r, name)) {
                draw_subject(out, runs, count,
                             &(struct subject){name, name, "", false, true, false});
            }
        }
    }
    fprintf(out, "</section>\n");
}

/* --- Charts of one run --- */

static void draw_phases(FILE *out, const struct report_run *run)
{
    struct chart_line line[HISTORY_SERIES];
    struct chart chart = {
        .title = "Where the time goes", .y_label = "ms per step", .stacked = true, .line = line};
    for (int i = 0; i < run->history.series_count; i++) {
        const struct history_series *series = &run->history.series[i];
        if (strncmp(series->name, "phase_ms.", 9) == 0 && !all_zero(&run->history, series->value)) {
            line[chart.lines] = (struct chart_line){.label = series->name + 9,
                                                    .color = chart.lines % CHART_COLORS,
                                                    .count = run->history.count,
                                                    .x = run->history.step,
                                                    .y = series->value};
            chart.lines++;
        }
    }
    (void)chart_draw(out, &chart);
}

static void draw_run(FILE *out, const struct report_run *run)
{
    static const double levels[CHART_LEVELS - 1] = {1.25, 1.5, 2, 3, 4, 6};
    const struct heat_map map = {.title = "Expert load",
                                 .y_label = "largest / mean, of each layer with experts",
                                 .count = run->history.count,
                                 .rows = run->history.blocks,
                                 .x = run->history.step,
                                 .value = run->history.load,
                                 .level = levels};
    fprintf(out, "<h2>");
    html_text(out, run->dir);
    fprintf(out, "</h2>\n<section class=\"charts\">\n");
    draw_phases(out, run);
    (void)heat_map_draw(out, &map);
    fprintf(out, "</section>\n");
}

/* --- Tables --- */

static void cell(FILE *out, const char *format, double value)
{
    fprintf(out, "<td>");
    if (isfinite(value)) {
        fprintf(out, format, value);
    }
    fprintf(out, "</td>");
}

static double least(const struct history *history, const char *series)
{
    const double *value = history_values(history, series);
    double best = (double)NAN;
    for (int64_t i = 0; value != NULL && i < history->count; i++) {
        best = isnan(best) || value[i] < best ? value[i] : best;
    }
    return best;
}

static double total(const struct history *history, const char *series)
{
    const double *value = history_values(history, series);
    double sum = 0;
    for (int64_t i = 0; value != NULL && i < history->count; i++) {
        sum += isfinite(value[i]) ? value[i] : 0;
    }
    return sum;
}

/* Mean of the last tenth of the run, at least one step. */
static double late_mean(const struct history *history, const char *series)
{
    const double *value = history_values(history, series);
    const int64_t count = history->count, last = count >= 10 ? count / 10 : 1;
    double sum = 0;
    for (int64_t i = count - last; value != NULL && count > 0 && i < count; i++) {
        sum += value[i];
    }
    return value != NULL && count > 0 ? sum / (double)last : (double)NAN;
}

static void run_row(FILE *out, const struct report_run *run, int index)
{
    const struct history *history = &run->history;
    const double seconds = total(history, "step_ms") / 1e3, tokens = total(history, "tokens");
    int64_t restarts[64];
    fprintf(out, "<tr><th class=\"c%d\"><span>", index % CHART_COLORS);
    html_text(out, run->dir);
    fprintf(out, "</span></th><td>%lld",
            (long long)(history->count > 0 ? history->step[history->count - 1] : 0));
    if (run->configured) {
        fprintf(out, " of %lld", (long long)run->config.run.steps);
    }
    fprintf(out, "</td>");
    cell(out, "%.4f", late_mean(history, "loss"));
    cell(out, "%.4f", history_last(history, "valid_loss"));
    cell(out, "%.4f", least(history, "valid_loss"));
    cell(out, "%.3g M", tokens / 1e6);
    cell(out, "%.0f", seconds > 0 ? tokens / seconds : (double)NAN);
    cell(out, "%.2f h", seconds / 3600);
    fprintf(out, "<td>%d</td></tr>\n", restarts_of(run, restarts, 64));
}

static void run_table(FILE *out, const struct report_run *runs, int count)
{
    static const char *const heads[] = {"run",        "steps",         "loss, last tenth",
                                        "validation", "its least",     "tokens",
                                        "tokens/s",   "time in steps", "restarts"};
    fprintf(out, "<div class=\"wide\"><table><thead><tr>");
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        fprintf(out, "<th>%s</th>", heads[i]);
    }
    fprintf(out, "</tr></thead><tbody>\n");
    for (int r = 0; r < count; r++) {
        run_row(out, &runs[r], r);
    }
    fprintf(out, "</tbody></table></div>\n");
}

struct comparison {
    FILE *out;
    int count;
};

static void difference_row(void *context, const char *key, char *const *value)
{
    const struct comparison *comparison = context;
    fprintf(comparison->out, "<tr><th>");
    html_text(comparison->out, key);
    fprintf(comparison->out, "</th>");
    for (int i = 0; i < comparison->count; i++) {
        fprintf(comparison->out, "<td>");
        html_text(comparison->out, value[i]);
        fprintf(comparison->out, "</td>");
    }
    fprintf(comparison->out, "</tr>\n");
}

/* Keys that differ between the runs whose config could be read. */
static enum status differences(FILE *out, const struct report_run *runs, int count)
{
    const struct config *configs[REPORT_MOST_RUNS];
    struct comparison comparison = {.out = out};
    for (int r = 0; r < count; r++) {
        if (runs[r].configured) {
            configs[comparison.count++] = &runs[r].config;
        }
    }
    if (comparison.count < 2) {
        return STATUS_OK;
    }
    fprintf(out, "<h2>What differs in their configs</h2>\n<div class=\"wide\"><table "
                 "class=\"differences\"><thead><tr><th>key</th>");
    for (int r = 0; r < count; r++) {
        if (runs[r].configured) {
            fprintf(out, "<th>");
            html_text(out, runs[r].dir);
            fprintf(out, "</th>");
        }
    }
    fprintf(out, "</tr></thead><tbody>\n");
    const enum status status =
        config_compare(configs, comparison.count, difference_row, &comparison);
    fprintf(out, "</tbody></table></div>\n");
    return status;
}

static void record_row(FILE *out, const char *key, json_t *value)
{
    char *text = json_is_string(value) ? strdup(json_string_value(value))
                                       : json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    if (text != NULL) {
        fprintf(out, "<tr><th>");
        html_text(out, key);
        fprintf(out, "</th><td>");
        html_text(out, text);
        fprintf(out, "</td></tr>\n");
    }
    free(text);
}

/* What the run ran on, and its whole config. */
static void environment(FILE *out, const struct report_run *run)
{
    const char *key;
    json_t *value;
    fprintf(out, "<details open><summary>");
    html_text(out, run->dir);
    fprintf(out, "</summary><div class=\"wide\"><table class=\"record\"><tbody>\n");
    json_object_foreach(run->record, key, value)
    {
        record_row(out, key, value);
    }
    fprintf(out, "</tbody></table></div>\n");
    if (run->config_text != NULL) {
        fprintf(out, "<details><summary>config.yaml</summary><pre>");
        html_text(out, run->config_text);
        fprintf(out, "</pre></details>\n");
    }
    fprintf(out, "</details>\n");
}

/* --- The page --- */

static const char style[] =
    ":root{--ink:#1b1f24;--faint:#8a929c;--paper:#fff;--grid:#e4e7ea;"
    "--c0:#0b62c4;--c1:#d1480b;--c2:#12805c;--c3:#9a2f9a;--c4:#a97400;--c5:#1790a8;--c6:#b3213f;"
    "--c7:#5b5bd6;--h0:#eaf2fb;--h1:#c6dcf3;--h2:#92bde8;--h3:#5b98d8;--h4:#2f6fb8;--h5:#1a4a86;"
    "--h6:#0c2748}\n"
    "@media screen and "
    "(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--faint:#8b949e;--paper:#14181d;"
    "--grid:#2b3138;--c0:#6cb2ff;--c1:#ff9b63;--c2:#52d3a4;--c3:#e08be0;--c4:#e8b84a;--c5:#5fd0e6;"
    "--c6:#ff7d95;--c7:#a9a9ff;--h0:#1a2530;--h1:#1c3a58;--h2:#215488;--h3:#2f76b8;--h4:#5b9edb;"
    "--h5:#98c6ee;--h6:#dcedfb}}\n"
    "body{margin:0 auto;padding:16px;max-width:1380px;color:var(--ink);background:var(--paper);"
    "font:14px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}\n"
    "h1{font-size:20px}h2{font-size:16px;margin:28px 0 8px}\n"
    ".charts{display:grid;gap:16px;grid-template-columns:repeat(auto-fill,minmax(min(360px,100%),"
    "1fr))}\n"
    "figure{margin:0}figcaption{font-weight:600}figcaption small,.note{color:var(--faint);"
    "font-weight:400}\n"
    "svg{display:block;width:100%;height:auto}svg text{font:11px system-ui,sans-serif;"
    "fill:var(--ink)}\n"
    ".axis line{stroke:var(--ink);stroke-width:1}.axis .grid{stroke:var(--grid)}"
    ".mark{stroke:var(--faint);stroke-dasharray:3 3}\n"
    ".line{fill:none;stroke-width:1.6}.band{stroke:none;opacity:.22}"
    ".stacked .line{stroke-width:.8}.stacked .band{opacity:.75}\n"
    ".legend{list-style:none;margin:2px 0;padding:0;display:flex;flex-wrap:wrap;gap:2px 12px;"
    "font-size:12px}\n"
    ".legend li::before,th[class]::before{content:'';display:inline-block;border:5px solid;"
    "margin-right:5px}.legend span,th[class] span{color:var(--ink)}\n"
    ".wide{overflow-x:auto;margin-bottom:16px}table{border-collapse:collapse;font-size:13px}"
    "th,td{text-align:left;padding:3px 12px 3px 0;border-bottom:1px solid var(--grid);"
    "vertical-align:top;overflow-wrap:normal;font-variant-numeric:tabular-nums}"
    "th[class]{white-space:nowrap}\n"
    "summary{cursor:pointer;margin-top:8px}pre{font-size:12px;white-space:pre-wrap}\n"
    /* on paper nothing scrolls, two charts stand side by side, and none is cut in two */
    "@media print{:root{--ink:#000;--faint:#555;--grid:#ddd}body{padding:0}"
    ".charts{grid-template-columns:1fr 1fr}.wide{overflow:visible}"
    "table{font-size:10px}th,td,th[class]{white-space:normal;overflow-wrap:anywhere;"
    "padding-right:8px}"
    "h2,summary{break-after:avoid}figure,tr{break-inside:avoid}}\n";

static void begin_page(FILE *out, int count)
{
    char when[64];
    const time_t now = time(NULL);
    struct tm utc;
    strftime(when, sizeof when, "%Y-%m-%d %H:%M UTC", gmtime_r(&now, &utc));
    fprintf(out,
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
            "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
            "<meta name=\"color-scheme\" content=\"light dark\">"
            "<title>Switchyard: %d run%s</title><style>\n%s",
            count, count > 1 ? "s" : "", style);
    for (int c = 0; c < CHART_COLORS; c++) {
        fprintf(out,
                ".line.c%d,circle.c%d{stroke:var(--c%d)}.band.c%d,circle.c%d{fill:var(--c%d)}"
                "li.c%d,th.c%d{color:var(--c%d)}\n",
                c, c, c, c, c, c, c, c, c);
    }
    for (int l = 0; l < CHART_LEVELS; l++) {
        fprintf(out, "rect.h%d{fill:var(--h%d)}li.h%d{color:var(--h%d)}", l, l, l, l);
    }
    fprintf(out,
            "\n</style></head><body>\n<h1>Switchyard: %d run%s</h1>\n"
            "<p class=\"note\">Written %s by version %s. Lines are means of neighbouring steps "
            "where there are many, with the range behind them; a dashed line is a restart.</p>\n",
            count, count > 1 ? "s" : "", when, version_commit());
}

enum status report_write(FILE *out, const struct report_run *runs, int count)
{
    begin_page(out, count);
    run_table(out, runs, count);
    draw_shared(out, runs, count);
    for (int r = 0; r < count; r++) {
        draw_run(out, &runs[r]);
    }
    const enum status status = differences(out, runs, count);
    fprintf(out, "<h2>What they ran on</h2>\n");
    for (int r = 0; r < count; r++) {
        environment(out, &runs[r]);
    }
    fprintf(out, "</body></html>\n");
    return status;
}
