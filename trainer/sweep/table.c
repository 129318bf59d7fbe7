#define _DEFAULT_SOURCE
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/io.h"
#include "kernels/base/json_out.h"
#include "trainer/report/chart.h"
#include "trainer/sweep/sweep.h"

enum { MAX_PATH = 4096 };

/* Finished ones first, best first; then the others by value; then by number. */
static int better(const void *a, const void *b)
{
    static const int order[TRIAL_STATES] = {
        [TRIAL_DONE] = 0,    [TRIAL_RUNNING] = 1, [TRIAL_PAUSED] = 1,
        [TRIAL_STOPPED] = 1, [TRIAL_FAILED] = 2,  [TRIAL_WAITING] = 3};
    const struct sweep_trial *x = *(struct sweep_trial *const *)a,
                             *y = *(struct sweep_trial *const *)b;
    if (order[x->state] != order[y->state]) {
        return order[x->state] - order[y->state];
    }
    const double v = isnan(x->value) ? (double)INFINITY : x->value,
                 w = isnan(y->value) ? (double)INFINITY : y->value;
    return v != w ? (v > w) - (v < w) : (x->index > y->index) - (x->index < y->index);
}

/* Owned by the caller; NULL: out of memory. */
static struct sweep_trial **ranked(const struct sweep *sweep)
{
    struct sweep_trial **rank = calloc((size_t)sweep->plan.trials, sizeof *rank);
    for (int64_t i = 0; i < sweep->plan.trials && rank != NULL; i++) {
        rank[i] = &sweep->trial[i];
    }
    if (rank != NULL) {
        qsort(rank, (size_t)sweep->plan.trials, sizeof *rank, better);
    }
    return rank;
}

static const char *value_of(const struct sweep_trial *trial, const struct sweep_plan *plan, int p)
{
    return strchr(trial->values.text[plan->fixed_count + p], '=') + 1;
}

void sweep_print(FILE *out, const struct sweep *sweep)
{
    const struct sweep_plan *plan = &sweep->plan;
    struct sweep_trial **rank = ranked(sweep);
    fprintf(out, "%-6s %-8s %8s %12s", "trial", "state", "step", plan->metric);
    for (int p = 0; p < plan->parameters; p++) {
        fprintf(out, "  %s", plan->parameter[p].key);
    }
    fprintf(out, "\n");
    for (int64_t i = 0; i < plan->trials && rank != NULL; i++) {
        const struct sweep_trial *trial = rank[i];
        fprintf(out, "%04lld   %-8s %8lld ", (long long)trial->index,
                trial_state_name(trial->state), (long long)trial->step);
        char value[32] = "";
        if (!isnan(trial->value)) {
            snprintf(value, sizeof value, "%.4f", trial->value);
        }
        fprintf(out, "%12s", value);
        for (int p = 0; p < plan->parameters; p++) {
            fprintf(out, "  %*s", -(int)strlen(plan->parameter[p].key), value_of(trial, plan, p));
        }
        if (trial->state == TRIAL_FAILED) {
            fprintf(out, "  exit %d: %.100s", trial->exit_code, trial->why);
        }
        fprintf(out, "\n");
    }
    free(rank);
}

/* --- Files --- */

static void csv_field(FILE *out, const char *text)
{
    fputc('"', out);
    for (const char *c = text; *c != '\0'; c++) {
        fputs(*c == '"' ? "\"\"" : (char[]){*c, '\0'}, out);
    }
    fputc('"', out);
}

static void write_csv(FILE *out, const struct sweep *sweep, struct sweep_trial *const *rank)
{
    const struct sweep_plan *plan = &sweep->plan;
    fprintf(out, "trial,state,step,%s,exit", plan->metric);
    for (int p = 0; p < plan->parameters; p++) {
        fputc(',', out);
        csv_field(out, plan->parameter[p].key);
    }
    fprintf(out, "\n");
    for (int64_t i = 0; i < plan->trials; i++) {
        const struct sweep_trial *trial = rank[i];
        fprintf(out, "%lld,%s,%lld,", (long long)trial->index, trial_state_name(trial->state),
                (long long)trial->step);
        if (!isnan(trial->value)) {
            fprintf(out, "%.9g", trial->value);
        }
        fprintf(out, ",%d", trial->exit_code);
        for (int p = 0; p < plan->parameters; p++) {
            fputc(',', out);
            csv_field(out, value_of(trial, plan, p));
        }
        fprintf(out, "\n");
    }
}

static void html_cell(FILE *out, const char *tag, const char *text)
{
    fprintf(out, "<%s>", tag);
    html_text(out, text);
    fprintf(out, "</%s>", tag);
}

static void write_html(FILE *out, const struct sweep *sweep, struct sweep_trial *const *rank)
{
    const struct sweep_plan *plan = &sweep->plan;
    char text[64];
    fprintf(out, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta "
                 "name=\"viewport\" content=\"width=device-width,initial-scale=1\"><meta "
                 "name=\"color-scheme\" content=\"light dark\"><title>Sweep</title><style>"
                 "body{font:14px/1.45 system-ui,sans-serif;margin:16px}div{overflow-x:auto}"
                 "table{border-collapse:collapse}th,td{text-align:left;padding:3px 12px 3px 0;"
                 "border-bottom:1px solid #8886;font-variant-numeric:tabular-nums}"
                 ".failed{opacity:.6}</style></head><body><h1>");
    html_text(out, plan->dir);
    fprintf(out, "</h1><div><table><thead><tr><th>trial</th><th>state</th><th>step</th>");
    html_cell(out, "th", plan->metric);
    for (int p = 0; p < plan->parameters; p++) {
        html_cell(out, "th", plan->parameter[p].key);
    }
    fprintf(out, "<th></th></tr></thead><tbody>\n");
    for (int64_t i = 0; i < plan->trials; i++) {
        const struct sweep_trial *trial = rank[i];
        fprintf(out, "<tr class=\"%s\"><td>%04lld</td><td>%s</td><td>%lld</td>",
                trial_state_name(trial->state), (long long)trial->index,
                trial_state_name(trial->state), (long long)trial->step);
        snprintf(text, sizeof text, "%.4f", trial->value);
        html_cell(out, "td", isnan(trial->value) ? "" : text);
        for (int p = 0; p < plan->parameters; p++) {
            html_cell(out, "td", value_of(trial, plan, p));
        }
        html_cell(out, "td", trial->why);
        fprintf(out, "</tr>\n");
    }
    fprintf(out, "</tbody></table></div></body></html>\n");
}

static enum status
write_with(const struct sweep *sweep, struct sweep_trial *const *rank, const char *name,
           void (*write)(FILE *, const struct sweep *, struct sweep_trial *const *))
{
    char path[MAX_PATH], *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL) {
        return status_fail(STATUS_RESOURCE, "%s: out of memory", name);
    }
    write(out, sweep, rank);
    fclose(out);
    snprintf(path, sizeof path, "%.4000s/%s", sweep->plan.dir, name);
    const enum status status = io_write_file(path, text, bytes);
    free(text);
    return status;
}

/* The config of the best trial: its config.yaml, to be run under another run.dir and to its end. */
static enum status write_best(const struct sweep *sweep, const struct sweep_trial *best)
{
    static const size_t most_bytes = (size_t)1 << 20;
    char path[MAX_PATH], dir[MAX_PATH], *text = NULL, *whole = NULL;
    size_t bytes = 0, whole_bytes = 0;
    trial_path(&sweep->plan, best->index, "/config.yaml", path, sizeof path);
    if (best->state == TRIAL_FAILED || isnan(best->value) || !io_exists(path)) {
        return STATUS_OK;
    }
    TRY(io_read_file(path, &text, &bytes, most_bytes));
    const char *line = strstr(text, "\n  dir: ");
    const char *pause = line != NULL ? strstr(line, "\n  pause_at: ") : NULL;
    FILE *out = line != NULL ? open_memstream(&whole, &whole_bytes) : NULL;
    if (out == NULL) {
        free(text);
        return status_fail(STATUS_INTERNAL, "%s: no run.dir in it", path);
    }
    snprintf(dir, sizeof dir, "%.4000s-best", sweep->plan.dir);
    fprintf(out, "# The best of %s: trial %04lld, %s %.6g. Train it: switchyard train best.yaml\n",
            sweep->plan.dir, (long long)best->index, sweep->plan.metric, best->value);
    fprintf(out, "%.*s", (int)(line - text), text);
    json_out_text(out, "\n  dir: ", dir); /* YAML reads it alike */
    const char *rest = strchr(line + 1, '\n');
    if (pause != NULL) {
        fprintf(out, "%.*s\n  pause_at: 0%s", (int)(pause - rest), rest, strchr(pause + 1, '\n'));
    } else { /* trained by a version that had no pauses */
        fputs(rest, out);
    }
    fclose(out);
    snprintf(path, sizeof path, "%.4000s/best.yaml", sweep->plan.dir);
    const enum status status = io_write_file(path, whole, whole_bytes);
    free(text);
    free(whole);
    return status;
}

enum status sweep_write(const struct sweep *sweep)
{
    struct sweep_trial **rank = ranked(sweep);
    if (rank == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the table");
    }
    enum status status = write_with(sweep, rank, "results.csv", write_csv);
    status = status == STATUS_OK ? write_with(sweep, rank, "results.html", write_html) : status;
    status = status == STATUS_OK ? write_best(sweep, rank[0]) : status;
    free(rank);
    return status;
}

/* As one word of a shell, whatever is in it. */
static void shell_word(FILE *out, const char *text)
{
    fputc('\'', out);
    for (const char *c = text; *c != '\0'; c++) {
        fputs(*c == '\'' ? "'\\''" : (char[]){*c, '\0'}, out);
    }
    fputc('\'', out);
}

static void write_slurm(FILE *out, const struct sweep_plan *plan, const char *path)
{
    /* $0 of a batch script is a copy elsewhere: the program is named as it is found now */
    char *found = realpath("/proc/self/exe", NULL);
    fprintf(out,
            "#!/bin/bash\n#SBATCH --job-name=sweep\n#SBATCH --array=0-%lld%%%lld\n"
            "#SBATCH --ntasks=%lld\n#SBATCH --requeue\n#SBATCH --open-mode=append\n"
            "#SBATCH --signal=B:USR1@180\n"
            "# Each task is one trial; the table of all: switchyard sweep ... --table\nsweep=(",
            (long long)plan->trials - 1, (long long)plan->slots, (long long)plan->ranks);
    shell_word(out, found != NULL ? found : "switchyard");
    fprintf(out, " sweep ");
    shell_word(out, path);
    fprintf(out, ")\ntrap 'kill -USR1 \"$run\" 2>/dev/null' USR1\n"
                 "\"${sweep[@]}\" --trial \"$SLURM_ARRAY_TASK_ID\" &\nrun=$!\n"
                 "while wait \"$run\"; rc=$?; kill -0 \"$run\" 2>/dev/null; do :; done\n"
                 "# 85: saved before the end of its time; the same task again resumes\n"
                 "[ $rc -ne 85 ] || scontrol requeue \"$SLURM_JOB_ID\"\nexit $rc\n");
    free(found);
}

enum status sweep_write_slurm(const struct sweep *sweep, const char *path)
{
    const struct sweep_plan *plan = &sweep->plan;
    char file[MAX_PATH], *text = NULL;
    size_t bytes = 0;
    if (plan->method == SWEEP_ASHA) {
        return status_fail(STATUS_USAGE, "--slurm: asha decides while it runs: run the sweep "
                                         "itself inside one allocation");
    }
    TRY(io_make_dir(plan->dir));
    snprintf(file, sizeof file, "%.4000s/sweep.sbatch", plan->dir);
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL) {
        return status_fail(STATUS_RESOURCE, "%s: out of memory", file);
    }
    write_slurm(out, plan, path);
    fclose(out);
    const enum status status = io_write_file(file, text, bytes);
    free(text);
    if (status == STATUS_OK) {
        printf("%s: %lld tasks, %lld at a time: sbatch %s\n", file, (long long)plan->trials,
               (long long)plan->slots, file);
    }
    return status;
}
