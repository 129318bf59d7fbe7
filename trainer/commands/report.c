#include <stdio.h>
#include <stdlib.h>

#include "kernels/base/io.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/report/report.h"

enum { MAX_PATH = 4096 };

static enum status write_page(const struct report_run *runs, int count, const char *path)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (out == NULL) {
        return status_fail(STATUS_RESOURCE, "%s: out of memory", path);
    }
    enum status status = report_write(out, runs, count);
    const bool whole = fclose(out) == 0;
    status = status == STATUS_OK && !whole ? status_fail(STATUS_RESOURCE, "%s: out of memory", path)
                                           : status;
    status = status == STATUS_OK ? io_write_file(path, text, bytes) : status;
    free(text);
    if (status == STATUS_OK) {
        printf("%s: %d run%s, %.0f KiB\n", path, count, count > 1 ? "s" : "", (double)bytes / 1024);
    }
    return status;
}

enum status command_report(int argc, char **argv)
{
    struct option_result options;
    const char *output = NULL;
    char path[MAX_PATH];
    const struct option_spec specs[] = {
        {"--output", OPTION_TEXT, &output, "F.html", "the page (report.html in the first run)"},
        {0},
    };
    TRY(options_parse(&options, argc, argv, specs, "report RUN_DIR...",
                      "Writes one HTML page of the runs' charts: losses, learning rate, speed, "
                      "time, expert load, config differences.\nIt needs no network and no script; "
                      "light, dark and printed.",
                      1, REPORT_MOST_RUNS));
    if (options.help) {
        return STATUS_OK;
    }
    snprintf(path, sizeof path, "%s/report.html", options.words[0]);
    struct report_run *runs = calloc((size_t)options.word_count, sizeof *runs);
    enum status status =
        runs != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory for the runs");
    for (int r = 0; r < options.word_count && status == STATUS_OK; r++) {
        status = report_run_open(&runs[r], options.words[r]);
    }
    if (status == STATUS_OK) {
        status = write_page(runs, options.word_count, output != NULL ? output : path);
    }
    for (int r = 0; r < options.word_count && runs != NULL; r++) {
        report_run_close(&runs[r]);
    }
    free(runs);
    return status;
}
