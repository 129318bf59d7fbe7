#include <stdio.h>
#include <string.h>

#include "checkpoints/checkpoint.h"
#include "checkpoints/verify.h"
#include "kernels/base/io.h"
#include "kernels/base/json_out.h"
#include "trainer/commands/ckpt.h"
#include "trainer/commands/options.h"
#include "trainer/step.h"

/* What is printed on the way. */
struct report {
    bool deep, json;
    int64_t checkpoints, damaged, gone;
    int64_t problems; /* of the one in hand */
};

static void tell(void *context, const char *line)
{
    struct report *report = context;
    if (report->json) {
        json_out_text(stdout, report->problems == 0 ? "" : ",", line);
    } else {
        printf("  %s\n", line);
    }
    report->problems++;
}

static enum status verify_one(struct report *report, const char *path)
{
    struct verify_result result;
    if (report->json) {
        json_out_text(stdout, report->checkpoints == 0 ? "{\"path\":" : ",{\"path\":", path);
        printf(",\"problems\":[");
    }
    const double started = step_clock();
    report->problems = 0;
    report->checkpoints++;
    const enum status status = verify_checkpoint(path, report->deep, &result, tell, report);
    const double seconds = step_clock() - started;
    const bool gone = status != STATUS_OK && !io_exists(path);
    report->damaged += result.problems > 0 && !gone;
    report->gone += gone;
    if (report->json) {
        printf("],\"gone\":%s,\"valid\":%s,\"deep\":%s,\"step\":%lld,\"files\":%lld,\"bytes\":%lld,"
               "\"tensors\":%lld,\"seconds\":%.3f}",
               gone ? "true" : "false", status == STATUS_OK ? "true" : "false",
               report->deep ? "true" : "false", (long long)result.step, (long long)result.files,
               (long long)result.bytes, (long long)result.tensors, seconds);
    } else {
        printf("%s: %s: %lld files, %.1f MiB, %lld tensors, %.2f s\n", path,
               status == STATUS_OK ? "whole"
               : gone              ? "gone: the run removed it meanwhile"
                                   : "DAMAGED",
               (long long)result.files, (double)result.bytes / 1048576.0, (long long)result.tensors,
               seconds);
    }
    /* counted; the others are looked at too */
    return status == STATUS_DATA || gone ? STATUS_OK : status;
}

static enum status verify_run(struct report *report, const char *run)
{
    char root[CKPT_PATH_BYTES];
    struct checkpoint_entry *entries = NULL;
    int64_t count = 0;
    snprintf(root, sizeof root, "%s/checkpoints", run);
    TRY(checkpoint_list(root, &entries, &count));
    enum status status =
        count > 0 ? STATUS_OK : status_fail(STATUS_DATA, "%s: no checkpoint here", run);
    for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
        status = verify_one(report, entries[i].path);
    }
    checkpoint_list_free(entries, count);
    return status;
}

enum status ckpt_verify(int argc, char **argv)
{
    struct option_result options;
    struct report report = {0};
    char name[CKPT_PATH_BYTES];
    const struct option_spec specs[] = {
        {"--deep", OPTION_FLAG, &report.deep, NULL,
         "also each tensor's own hash, and that HDF5 sees the same"},
        {"--json", OPTION_FLAG, &report.json, NULL, "print JSON"},
        {0}};
    TRY(options_parse(&options, argc, argv, specs, "ckpt verify CKPT_DIR|RUN_DIR [--deep]",
                      "Reads a checkpoint, or all of a run, and compares every block of 4 MiB with "
                      "its hash.\nPrints every damaged block with the tensors in it; exit code 65 "
                      "when there are any.",
                      1, 1));
    if (options.help) {
        return STATUS_OK;
    }
    const char *path = options.words[0];
    if (!io_exists(path)) {
        return status_fail(STATUS_IO, "%s: no such folder: name a checkpoint or a run", path);
    }
    snprintf(name, sizeof name, "%s/checkpoints", path);
    printf("%s", report.json ? "[" : "");
    const enum status status =
        io_exists(name) ? verify_run(&report, path) : verify_one(&report, path);
    printf("%s", report.json ? "]\n" : "");
    fflush(stdout);
    TRY(status);
    if (report.gone == report.checkpoints) {
        return status_fail(STATUS_DATA, "%s: what was there is gone", path);
    }
    return report.damaged == 0
               ? STATUS_OK
               : status_fail(STATUS_DATA, "%s: %lld of %lld checkpoints damaged", path,
                             (long long)report.damaged, (long long)report.checkpoints);
}
