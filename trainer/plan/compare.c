#include "trainer/plan/compare.h"

#include <stdio.h>
#include <stdlib.h>

#include "kernels/base/json_out.h"

const struct compare_schedule compare_schedules[COMPARE_SCHEDULES] = {
    {CONFIG_PIPELINE_1F1B, 1},     {CONFIG_PIPELINE_1F1B, 2},
    {CONFIG_PIPELINE_1F1B, 4},     {CONFIG_PIPELINE_ZERO_BUBBLE, 1},
    {CONFIG_PIPELINE_DUALPIPE, 1}, {CONFIG_PIPELINE_DUALPIPE_V, 1},
};
const char *const compare_names[] = {[CONFIG_PIPELINE_AUTO] = "auto",
                                     [CONFIG_PIPELINE_1F1B] = "1f1b",
                                     [CONFIG_PIPELINE_ZERO_BUBBLE] = "zero_bubble",
                                     [CONFIG_PIPELINE_DUALPIPE] = "dualpipe",
                                     [CONFIG_PIPELINE_DUALPIPE_V] = "dualpipe_v"};

enum status compare_make(struct comparison *comparison, const struct plan *plan)
{
    *comparison = (struct comparison){.count = plan->pp > 1 ? COMPARE_SCHEDULES : 0};
    struct plan *other = malloc(sizeof *other);
    if (other == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a plan");
    }
    for (int i = 0; i < comparison->count; i++) {
        struct compare_row *row = &comparison->row[i];
        struct config config = *plan->config; /* its texts are borrowed */
        row->schedule = compare_schedules[i];
        config.parallel.schedule = row->schedule.pipeline;
        config.parallel.virtual_stages = row->schedule.virtual_stages;
        row->legal = plan_brief(other, &config, &plan->hardware, false) == STATUS_OK;
        if (row->legal) {
            row->fits = other->fits;
            row->step = other->time.step;
            row->bubble = other->time.bubble;
            row->held_batches = other->held_batches;
            row->memory = other->memory.all;
        } else {
            snprintf(row->why, sizeof row->why, "%s", status_message());
        }
    }
    free(other);
    return STATUS_OK;
}

static void name_of(const struct compare_row *row, char *out, size_t bytes)
{
    const int64_t parts = row->schedule.virtual_stages;
    char more[32] = "";
    if (parts > 1) {
        snprintf(more, sizeof more, ", %lld virtual", (long long)parts);
    }
    snprintf(out, bytes, "%s%s", compare_names[row->schedule.pipeline], more);
}

void compare_print_text(const struct comparison *comparison)
{
    char name[64];
    if (comparison->count == 0) {
        return;
    }
    printf(
        "\nschedules of this layout (parallel.schedule, virtual_stages)\n  %-18s %9s %9s %7s %12s "
        "%9s\n",
        "", "step s", "bubble s", "", "micro-batches", "GB");
    for (int i = 0; i < comparison->count; i++) {
        const struct compare_row *row = &comparison->row[i];
        name_of(row, name, sizeof name);
        if (row->legal) {
            printf("  %-18s %9.4f %9.4f %5.1f %% %13.4g %9.2f%s\n", name, row->step, row->bubble,
                   100 * row->bubble / row->step, row->held_batches, (double)row->memory / 1e9,
                   row->fits ? "" : "  does not fit");
        } else {
            printf("  %-18s %9s  %s\n", name, "-", row->why);
        }
    }
    printf("  micro-batches: whose activations the fullest rank keeps, each of one stage in "
           "parallel.pp\n");
}

void compare_print_json(const struct comparison *comparison)
{
    printf(",\"schedules\":[");
    for (int i = 0; i < comparison->count; i++) {
        const struct compare_row *row = &comparison->row[i];
        json_out_text(stdout, i > 0 ? ",\n{\"pipeline\":" : "\n{\"pipeline\":",
                      compare_names[row->schedule.pipeline]);
        printf(",\"virtual_stages\":%lld,\"legal\":%s", (long long)row->schedule.virtual_stages,
               row->legal ? "true" : "false");
        if (row->legal) {
            json_out_number(stdout, ",\"step_seconds\":", row->step, 15);
            json_out_number(stdout, ",\"bubble_seconds\":", row->bubble, 15);
            json_out_number(stdout, ",\"micro_batches_kept\":", row->held_batches, 9);
            printf(",\"memory_bytes\":%zu,\"fits\":%s", row->memory, row->fits ? "true" : "false");
        } else {
            json_out_text(stdout, ",\"why\":", row->why);
        }
        printf("}");
    }
    printf("]");
}
