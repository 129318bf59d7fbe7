#define _DEFAULT_SOURCE
#include "trainer/profile.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/base/json_out.h"
#include "parallel/activity.h"
#include "trainer/hidden.h"

enum { MOST_SPANS = 1 << 18, ROUNDS = 32 };

static bool asked(const struct profile *profile)
{
    return profile->config != NULL && profile->config->debug.profile != NULL;
}

static enum status fail(const struct profile *profile)
{
    return status_fail(STATUS_IO, "debug.profile: %s: cannot write: %s",
                       profile->config->debug.profile, strerror(errno));
}

/* Rank 0: that the file can be made. */
static enum status try_file(const struct profile *profile)
{
    FILE *out = profile->world->rank == 0 ? fopen(profile->config->debug.profile, "a") : NULL;
    if (out == NULL) {
        return profile->world->rank == 0 ? fail(profile) : STATUS_OK;
    }
    fclose(out);
    return STATUS_OK;
}

static bool by_device(const struct mesh *mesh)
{
    return strcmp(comm_wire_name(&mesh->stage), "nccl") == 0;
}

enum status profile_open(struct profile *profile, struct mesh *mesh, const struct config *config)
{
    struct comm *world = mesh->world;
    *profile = (struct profile){.world = world,
                                .mesh = mesh,
                                .config = config,
                                .hidden_ms = (double)NAN,
                                .exposed_ms = (double)NAN,
                                .idle_ms = (double)NAN};
    if (!asked(profile)) {
        return STATUS_OK;
    }
    const enum status status = spans_init(&profile->spans, MOST_SPANS);
    return comm_agree(world, status == STATUS_OK ? try_file(profile) : status, NULL);
}

void profile_close(struct profile *profile)
{
    if (profile->recording) {
        profile->world->activity->spans = NULL;
    }
    spans_free(&profile->spans);
    *profile = (struct profile){0};
}

/* --- clocks --- */

void profile_bounds(int64_t bounds[2], int64_t from0, int64_t to0, int64_t from, int64_t to)
{
    const int64_t low = from - to0, high = to - from0;
    bounds[0] = low > bounds[0] ? low : bounds[0];
    bounds[1] = high < bounds[1] ? high : bounds[1];
}

/* Collective. */
static void align(struct profile *profile)
{
    int64_t bounds[2] = {INT64_MIN, INT64_MAX};
    int64_t times[2] = {0}, first[2];
    for (int round = 0; round < ROUNDS; round++) {
        int32_t nothing = 0;
        times[0] = spans_clock();
        comm_all_reduce(profile->world, &nothing, 1, DTYPE_I32, REDUCE_MAX);
        times[1] = spans_clock();
        memcpy(first, times, sizeof first);
        comm_broadcast(profile->world, first, sizeof first, 0);
        profile_bounds(bounds, first[0], first[1], times[0], times[1]);
    }
    const bool same = bounds[0] <= 0 && bounds[1] >= 0;
    profile->offset_us = same ? 0 : (double)(bounds[0] + (bounds[1] - bounds[0]) / 2) / 1e3;
    profile->error_us = (double)(bounds[1] - bounds[0]) / 2e3;
    profile->origin_ns = first[0];
}

/* --- a rank's text --- */

static const char *const lane_names[SPAN_LANES] = {[SPAN_TRAINING] = "training",
                                                   [SPAN_WRITER] = "checkpoint writer",
                                                   [SPAN_WIRE] = "messages under way"};
static const char *const kind_names[] = {[SPAN_PHASE] = "phase",
                                         [SPAN_OPERATION] = "operation",
                                         [SPAN_MESSAGE] = "message",
                                         [SPAN_CALL] = "message",
                                         [SPAN_WAIT] = "message"};

static int64_t kept(const struct spans *spans)
{
    return spans->count < spans->room ? spans->count : spans->room;
}

static void print_span(FILE *out, const struct profile *profile, const struct span *span)
{
    const double begin = (double)(span->begin_ns - profile->origin_ns) / 1e3 - profile->offset_us;
    fprintf(out,
            ",\n{\"ph\":\"X\",\"name\":\"%s\",\"cat\":\"%s\",\"pid\":%d,\"tid\":%d,\"ts\":%.3f,"
            "\"dur\":%.3f,\"args\":{\"step\":%lld",
            span->name, kind_names[span->kind], profile->world->rank, span->lane + span->row, begin,
            (double)(span->end_ns - span->begin_ns) / 1e3, (long long)span->step);
    if (span->layer >= 0) {
        fprintf(out, ",\"layer\":%lld", (long long)span->layer);
    }
    if (span->kind >= SPAN_MESSAGE) {
        fprintf(out, ",\"group\":\"%s\",\"bytes\":%lld", span->group, (long long)span->bytes);
        if (span->peer >= 0) {
            fprintf(out, ",\"peer\":%d", (int)span->peer);
        }
    }
    if (span->ranks > 0) {
        fprintf(out, ",\"ranks\":%d", (int)span->ranks);
    }
    fprintf(out, "}}");
}

/* How many rows messages under way need, of which there is one at least. */
static int wire_rows(const struct spans *spans)
{
    int rows = 1;
    for (int64_t i = 0; i < kept(spans); i++) {
        rows = spans->span[i].row >= rows ? spans->span[i].row + 1 : rows;
    }
    return rows;
}

/* This rank's events, each behind a comma. */
static void print_events(FILE *out, const struct profile *profile)
{
    char host[64] = "", name[96];
    const int rank = profile->world->rank;
    gethostname(host, sizeof host - 1);
    snprintf(name, sizeof name, "rank %d (%s)", rank, host);
    fprintf(out, ",\n{\"ph\":\"M\",\"name\":\"process_name\",\"pid\":%d,\"args\":{", rank);
    json_out_text(out, "\"name\":", name);
    fprintf(out,
            "}},\n{\"ph\":\"M\",\"name\":\"process_sort_index\",\"pid\":%d,\"args\":{\"sort_"
            "index\":%d}}",
            rank, rank);
    for (int row = 0; row < SPAN_WIRE + wire_rows(&profile->spans); row++) {
        char number[16] = "";
        if (row > SPAN_WIRE) {
            snprintf(number, sizeof number, ", %d", row - SPAN_WIRE + 1);
        }
        fprintf(out,
                ",\n{\"ph\":\"M\",\"name\":\"thread_name\",\"pid\":%d,\"tid\":%d,\"args\":{"
                "\"name\":\"%s%s\"}}",
                rank, row, lane_names[row < SPAN_WIRE ? row : SPAN_WIRE], number);
    }
    for (int64_t i = 0; i < kept(&profile->spans); i++) {
        if (profile->spans.span[i].name != NULL) { /* not one that the writer is about to add */
            print_span(out, profile, &profile->spans.span[i]);
        }
    }
}

/* The communication that this rank is still in. */
static void print_unfinished(FILE *out, const struct profile *profile)
{
    const struct comm_activity *activity = profile->world->activity;
    const char *operation = activity->operation;
    if (operation != NULL) {
        print_span(out, profile,
                   &(struct span){.name = operation,
                                  .group = activity->group,
                                  .begin_ns = activity->entered_ns,
                                  .end_ns = spans_clock(),
                                  .bytes = activity->bytes,
                                  .layer = activity->layer,
                                  .step = profile->spans.step,
                                  .peer = activity->peer,
                                  .kind = SPAN_MESSAGE});
    }
}

/* Milliseconds of a rank's own spans of a kind and those behind it, of names that begin so; NULL:
 * of any. */
static double sum_ms(const struct spans *spans, enum span_kind from, enum span_kind to,
                     const char *name)
{
    double ns = 0;
    for (int64_t i = 0; i < kept(spans); i++) {
        const struct span *span = &spans->span[i];
        if (span->lane == SPAN_TRAINING && span->kind >= from && span->kind <= to &&
            (name == NULL || strncmp(span->name, name, strlen(name)) == 0)) {
            ns += (double)(span->end_ns - span->begin_ns);
        }
    }
    return ns / 1e6;
}

/* Collective, behind the recording. What a device does (nccl), its events tell; the messages
 * between stages are the host's there, too. Errors, agreed: STATUS_RESOURCE. */
static enum status measure_hidden(struct profile *profile)
{
    const bool device = by_device(profile->mesh);
    double run = 0, waited = 0;
    struct hidden hidden;
    TRY(hidden_measure(&hidden, profile->mesh, &profile->spans, (int64_t)(1e3 * profile->offset_us),
                       device));
    if (!hidden.known || (device && !mesh_device_times(profile->mesh, &run, &waited))) {
        return STATUS_OK;
    }
    waited = waited < run ? waited : run;
    profile->hidden_ms = hidden.hidden + run - waited;
    profile->exposed_ms = hidden.exposed + waited;
    profile->idle_ms = hidden.idle;
    return STATUS_OK;
}

/* Collective. NOTE: what one rank does not know nobody does: NAN. */
static void take_means(struct profile *profile)
{
    double all[] = {profile->hidden_ms, profile->exposed_ms, profile->idle_ms};
    const double ranks = profile->world->size;
    comm_all_reduce(profile->world, all, 3, DTYPE_F64, REDUCE_SUM);
    profile->mean_ms.hidden = all[0] / ranks;
    profile->mean_ms.exposed = all[1] / ranks;
    profile->mean_ms.idle = all[2] / ranks;
}

/* Which share of the communication passed beside computing; 0 where there was none. */
static double hidden_share(double hidden_ms, double exposed_ms)
{
    const double all = hidden_ms + exposed_ms;
    return all == 0 ? 0 : hidden_ms / all;
}

double profile_hidden(const struct profile *profile)
{
    return profile->written ? hidden_share(profile->mean_ms.hidden, profile->mean_ms.exposed)
                            : (double)NAN;
}

/* This rank's entry of otherData. */
static void print_summary(FILE *out, const struct profile *profile)
{
    const struct spans *spans = &profile->spans;
    fprintf(out,
            "\n\"rank %d\":{\"clock_offset_us\":%.3f,\"clock_error_us\":%.3f,\"spans\":%lld,"
            "\"lost\":%lld,\"phases_ms\":%.3f,\"communication_ms\":%.3f,\"all_to_all_ms\":%.3f",
            profile->world->rank, profile->offset_us, profile->error_us, (long long)kept(spans),
            (long long)(spans->count - kept(spans)), sum_ms(spans, SPAN_PHASE, SPAN_PHASE, NULL),
            sum_ms(spans, SPAN_MESSAGE, SPAN_WAIT, NULL),
            sum_ms(spans, SPAN_MESSAGE, SPAN_WAIT, "all_to_all"));
    json_out_number(out, ",\"idle_ms\":", profile->idle_ms, 6);
    json_out_number(out, ",\"exposed_ms\":", profile->exposed_ms, 6);
    json_out_number(out, ",\"hidden_ms\":", profile->hidden_ms, 6);
    json_out_number(out, ",\"hidden_communication\":",
                    hidden_share(profile->hidden_ms, profile->exposed_ms), 6);
    fprintf(out, "}");
}

/* --- the file --- */

static void begin_file(FILE *file)
{
    fprintf(file, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{\"ph\":\"M\",\"name\":"
                  "\"trace\",\"pid\":0,\"args\":{}}");
}

static void begin_summaries(FILE *file)
{
    fprintf(file, "\n],\n\"otherData\":{");
}

static bool end_file(FILE *file)
{
    fprintf(file, "\n}}\n");
    const bool good = ferror(file) == 0, closed = fclose(file) == 0;
    return good && closed;
}

/* Collective. What `print` prints of each rank, in rank order and with `between` between them, into
 * rank 0's file; one rank's text at a time. Errors, agreed: STATUS_RESOURCE. */
static enum status collect(const struct profile *profile, FILE *file, const char *between,
                           void (*print)(FILE *out, const struct profile *profile))
{
    struct comm *world = profile->world;
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (out != NULL) {
        print(out, profile);
        fclose(out);
    }
    enum status status = text != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
    status = comm_agree(world, status, NULL);
    for (int r = 0; r < world->size && status == STATUS_OK; r++) {
        int64_t size = (int64_t)bytes;
        comm_broadcast(world, &size, sizeof size, r);
        char *one = r == world->rank ? text : malloc((size_t)size);
        status = one != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
        status = comm_agree(world, status, NULL);
        if (status == STATUS_OK) {
            comm_broadcast(world, one, (size_t)size, r);
            if (file != NULL) {
                fputs(r > 0 ? between : "", file);
                fwrite(one, 1, (size_t)size, file);
            }
        }
        if (one != text) {
            free(one);
        }
    }
    free(text);
    return status;
}

/* Collective. */
static enum status write_trace(struct profile *profile)
{
    const char *path = profile->config->debug.profile;
    const bool writes = profile->world->rank == 0;
    profile->world->activity->spans = NULL;
    profile->recording = false;
    profile->written = true;
    TRY(measure_hidden(profile));
    take_means(profile);
    FILE *file = writes ? fopen(path, "w") : NULL;
    TRY(comm_agree(profile->world, !writes || file != NULL ? STATUS_OK : fail(profile), NULL));
    if (writes) {
        begin_file(file);
    }
    enum status status = collect(profile, file, "", print_events);
    if (writes) {
        begin_summaries(file);
    }
    status = status == STATUS_OK ? collect(profile, file, ",", print_summary) : status;
    if (writes && !end_file(file) && status == STATUS_OK) {
        status = fail(profile);
    }
    return comm_agree(profile->world, status, NULL);
}

enum status profile_step(struct profile *profile, int64_t step)
{
    if (!asked(profile) || profile->written) {
        return STATUS_OK;
    }
    const int64_t from = profile->config->debug.profile_from,
                  end = from + profile->config->debug.profile_steps;
    if (step >= end) {
        return profile_end(profile);
    }
    if (!profile->recording && step >= from) {
        align(profile);
        profile->recording = true;
        profile->world->activity->spans = &profile->spans;
    }
    profile->spans.step = step;
    return STATUS_OK;
}

enum status profile_end(struct profile *profile)
{
    return profile->recording ? write_trace(profile) : STATUS_OK;
}

void profile_alone(void *context)
{
    const struct profile *profile = context;
    char path[4096], part[4096 + 8];
    if (!profile->recording) {
        return;
    }
    const int used = snprintf(path, sizeof path, "%s.rank%d", profile->config->debug.profile,
                              profile->world->rank);
    snprintf(part, sizeof part, "%s.part", path);
    FILE *file = used < (int)sizeof path ? fopen(part, "w") : NULL;
    if (file == NULL) {
        return; /* the job ends for another reason, which has been said */
    }
    begin_file(file);
    print_events(file, profile);
    print_unfinished(file, profile);
    begin_summaries(file);
    print_summary(file, profile);
    if (end_file(file)) {
        (void)rename(part, path);
    }
}
