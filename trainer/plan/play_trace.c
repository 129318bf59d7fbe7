#include "trainer/plan/play_trace.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static const char *const kinds[] = {
    [PIPELINE_FORWARD] = "F",          [PIPELINE_BACKWARD] = "B", [PIPELINE_BACKWARD_INPUT] = "I",
    [PIPELINE_BACKWARD_WEIGHTS] = "W", [PIPELINE_PAIR] = "F&B",   [PIPELINE_SEND] = "send",
    [PIPELINE_RECEIVE] = "wait",
};

/* Microseconds, as the format has them. Sends, and waits for what is there, take no time. */
static void write_slice(FILE *file, const struct pipeline *pipeline, int64_t rank,
                        const struct pipeline_action *a, const struct timeline_span *span)
{
    const double us = 1e6;
    const int64_t stage = pipeline_stage(&pipeline->shape, rank, a->part);
    if (span->end <= span->start) {
        return;
    }
    fprintf(file,
            ",\n{\"name\":\"%s %d\",\"cat\":\"%s\",\"ph\":\"X\",\"pid\":0,\"tid\":%lld,\"ts\":%.3f,"
            "\"dur\":%.3f,\"args\":{\"stage\":%lld,\"part\":%d,\"micro_batch\":%d",
            kinds[a->kind], (int)a->batch, kinds[a->kind], (long long)rank, us * span->start,
            us * (span->end - span->start), (long long)stage, (int)a->part, (int)a->batch);
    if (a->kind == PIPELINE_PAIR) {
        fprintf(file, ",\"back_part\":%d,\"back_micro_batch\":%d", (int)a->back_part,
                (int)a->back_batch);
    }
    fprintf(file, "}}");
}

enum status play_trace_write(const char *path, const struct pipeline *pipeline,
                             const struct timeline *timeline)
{
    FILE *file = fopen(path, "w");
    if (file == NULL) {
        return status_fail(STATUS_IO, "%s: %s", path, strerror(errno));
    }
    fprintf(file, "[{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":0,\"args\":{\"name\":\"%s\"}}",
            pipeline_names[pipeline->shape.schedule]);
    for (int64_t r = 0; r < pipeline->shape.ranks; r++) {
        fprintf(file,
                ",\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":0,\"tid\":%lld,\"args\":"
                "{\"name\":\"rank %lld\"}}",
                (long long)r, (long long)r);
        for (int64_t i = 0; i < pipeline->track[r].count; i++) {
            write_slice(file, pipeline, r, &pipeline->track[r].action[i], &timeline->span[r][i]);
        }
    }
    fprintf(file, "\n]\n");
    const bool bad = ferror(file) != 0;
    if (fclose(file) != 0 || bad) {
        return status_fail(STATUS_IO, "%s: not written: %s", path, strerror(errno));
    }
    return STATUS_OK;
}
