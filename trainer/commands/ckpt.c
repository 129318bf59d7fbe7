#include <stdio.h>
#include <string.h>

#include "checkpoints/checkpoint.h"
#include "kernels/base/io.h"
#include "kernels/base/json_out.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"

static void print(const struct checkpoint_entry *entry, bool json, bool first)
{
    if (json) {
        json_out_text(stdout, first ? "{\"path\":" : ",{\"path\":", entry->path);
        printf(",\"step\":%lld,\"bytes\":%lld,\"tensors\":%lld,\"ranks\":%lld,\"valid\":%s}",
               (long long)entry->step, (long long)entry->bytes, (long long)entry->tensors,
               (long long)entry->ranks, entry->valid ? "true" : "false");
    } else if (entry->valid) {
        printf("step %8lld  %9.1f MiB  %6lld tensors  %4lld ranks  %s\n", (long long)entry->step,
               (double)entry->bytes / 1048576.0, (long long)entry->tensors, (long long)entry->ranks,
               entry->path);
    } else {
        printf("step %8lld  not usable: %s\n", (long long)entry->step, entry->why);
    }
}

enum status command_ckpt(int argc, char **argv)
{
    struct option_result options;
    bool json = false;
    char root[4096];
    const struct option_spec specs[] = {{"--json", OPTION_FLAG, &json, NULL, "print JSON"}, {0}};
    TRY(options_parse(&options, argc, argv, specs, "ckpt ls RUN_DIR",
                      "Lists the checkpoints of a run: step, size, tensors, ranks, and whether the "
                      "manifest is whole.",
                      2, 2));
    if (options.help) {
        return STATUS_OK;
    }
    if (strcmp(options.words[0], "ls") != 0) {
        return status_fail(STATUS_USAGE, "ckpt: unknown action '%s'; built: ls", options.words[0]);
    }
    snprintf(root, sizeof root, "%s/checkpoints", options.words[1]);
    if (!io_exists(root)) {
        return status_fail(STATUS_IO, "%s: no such folder: name a run directory", root);
    }
    struct checkpoint_entry *entries = NULL;
    int64_t count = 0;
    TRY(checkpoint_list(root, &entries, &count));
    printf("%s", json ? "[" : "");
    for (int64_t i = 0; i < count; i++) {
        print(&entries[i], json, i == 0);
    }
    printf("%s", json ? "]\n" : "");
    checkpoint_list_free(entries, count);
    return STATUS_OK;
}
