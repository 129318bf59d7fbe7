#include "trainer/model/stages.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Stages needed where none may cost more than `most`. */
static int64_t stages_within(const double *cost, int64_t blocks, double most, int64_t *begin)
{
    int64_t stages = 0;
    double sum = 0;
    for (int64_t b = 0; b < blocks; b++) {
        if (b == 0 || sum + cost[b] > most) {
            if (begin != NULL && stages < STAGES_MOST) {
                begin[stages] = b;
            }
            stages++;
            sum = 0;
        }
        sum += cost[b];
    }
    return stages;
}

/* Stages left over: the longest is cut in two. */
static void cut(int64_t *begin, int64_t stages, int64_t wanted)
{
    for (; stages < wanted; stages++) {
        int64_t longest = 0;
        for (int64_t s = 1; s < stages; s++) {
            longest = begin[s + 1] - begin[s] > begin[longest + 1] - begin[longest] ? s : longest;
        }
        memmove(&begin[longest + 2], &begin[longest + 1],
                (size_t)(stages - longest) * sizeof begin[0]);
        begin[longest + 1] = (begin[longest] + begin[longest + 2]) / 2;
    }
}

/* Both ends at once: a rank has stages s and pp - 1 - s, which together may cost `most`; a block is
 * left for each stage between. Returns whether all blocks found a place. */
static bool pairs_within(const double *cost, int64_t blocks, double most, int64_t pp,
                         int64_t *begin)
{
    int64_t front = 0, back = blocks;
    begin[pp] = blocks;
    for (int64_t s = 0; s < pp / 2; s++) {
        const int64_t between = pp - 2 * (s + 1);
        double near = 0, far = 0;
        begin[s] = front;
        for (bool more = true; more && front < back;) {
            const bool first = near <= far;
            const double next = first ? cost[front] : cost[back - 1];
            more = near == 0 || far == 0 || (near + far + next <= most && back - front > between);
            near += more && first ? next : 0;
            far += more && !first ? next : 0;
            front += more && first;
            back -= more && !first;
        }
        begin[pp - 1 - s] = back;
    }
    return front == back;
}

static bool within(const double *cost, int64_t blocks, double most, int64_t pp, bool pairs,
                   int64_t *begin)
{
    return pairs ? pairs_within(cost, blocks, most, pp, begin)
                 : stages_within(cost, blocks, most, begin) <= pp;
}

static void fill(struct stage *stage, const int64_t *begin, int64_t stages, int64_t layers)
{
    for (int64_t s = 0; s < stages; s++) {
        stage[s] = (struct stage){.first = begin[s],
                                  .blocks = begin[s + 1] - begin[s],
                                  .embedding = s == 0,
                                  .head = begin[s] < layers && begin[s + 1] >= layers};
    }
}

void stages_divide(struct stage *stage, const double *cost, int64_t blocks, int64_t layers,
                   int64_t pp, bool pairs)
{
    int64_t begin[STAGES_MOST + 1] = {0};
    double low = 0, high = 0;
    for (int64_t b = 0; b < blocks; b++) {
        low = fmax(low, cost[b]);
        high += cost[b];
    }
    high *= 1 + 1e-9;
    for (int i = 0; i < 60; i++) {
        const double middle = (low + high) / 2;
        *(within(cost, blocks, middle, pp, pairs, begin) ? &high : &low) = middle;
    }
    if (pairs) {
        (void)pairs_within(cost, blocks, high, pp, begin);
    } else {
        const int64_t stages = stages_within(cost, blocks, high, begin);
        begin[stages] = blocks;
        cut(begin, stages, pp);
    }
    fill(stage, begin, pp, layers);
}

enum status stages_listed(struct stage *stage, const struct config_reals *list, int64_t blocks,
                          int64_t layers, int64_t stages)
{
    int64_t begin[STAGES_MOST + 1] = {0};
    if (list->count != stages) {
        return status_fail(
            STATUS_USAGE,
            "parallel.stages names %lld stages, the schedule has %lld (parallel.pp x "
            "stages of a rank)",
            (long long)list->count, (long long)stages);
    }
    for (int64_t s = 0; s < stages; s++) {
        begin[s + 1] = begin[s] + (int64_t)list->item[s];
    }
    if (begin[stages] != blocks) {
        return status_fail(STATUS_USAGE,
                           "parallel.stages has %lld blocks, the model %lld (layers and prediction "
                           "modules)",
                           (long long)begin[stages], (long long)blocks);
    }
    fill(stage, begin, stages, layers);
    return STATUS_OK;
}

/* --- what a rank has --- */

/* Passes side by side without stages. */
static bool wants_pairs(const struct config *config)
{
    return config->parallel.pp == 1 && config->parallel.overlap == CONFIG_OVERLAP_ON &&
           config->parallel.ep * config->parallel.etp > 1 && config->parallel.zero < 3;
}

struct pipeline_shape stages_shape(const struct config *config, int pipeline, int64_t ranks,
                                   int64_t batches)
{
    static const enum pipeline_schedule schedules[] = {
        [CONFIG_PIPELINE_AUTO] = PIPELINE_ZERO_BUBBLE,
        [CONFIG_PIPELINE_1F1B] = PIPELINE_1F1B,
        [CONFIG_PIPELINE_ZERO_BUBBLE] = PIPELINE_ZERO_BUBBLE,
        [CONFIG_PIPELINE_DUALPIPE] = PIPELINE_DUALPIPE,
        [CONFIG_PIPELINE_DUALPIPE_V] = PIPELINE_DUALPIPE_V};
    const int64_t parts = config->parallel.virtual_stages;
    if (pipeline == CONFIG_PIPELINE_AUTO && parts > 1) {
        pipeline = CONFIG_PIPELINE_1F1B;
    }
    const enum pipeline_schedule alone = wants_pairs(config) ? PIPELINE_PAIRS : PIPELINE_1F1B;
    struct pipeline_shape shape = {.schedule = ranks > 1 ? schedules[pipeline] : alone,
                                   .ranks = ranks,
                                   .parts = 1,
                                   .batches = batches};
    if (ranks > 1 && shape.schedule == PIPELINE_1F1B && parts > 1) {
        shape.schedule = PIPELINE_INTERLEAVED;
        shape.parts = parts;
    } else if (shape.schedule >= PIPELINE_DUALPIPE) {
        shape.parts = 2;
    }
    return shape;
}

/* As even in operations as can be; the last layer, the head and what is behind it are one. */
static enum status divide_evenly(struct stage *stage, const struct config *config,
                                 const struct architecture *arch, int64_t stages, bool pairs)
{
    const int64_t layers = arch->layers, blocks = architecture_blocks(arch);
    double *cost = malloc((size_t)layers * sizeof *cost);
    if (cost == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld layers", (long long)layers);
    }
    for (int64_t b = 0; b < layers; b++) {
        cost[b] = architecture_block_flops(arch, b, config->train.sequence_length);
    }
    for (int64_t b = layers; b < blocks; b++) {
        cost[layers - 1] += architecture_block_flops(arch, b, config->train.sequence_length);
    }
    cost[layers - 1] += architecture_head_flops(arch);
    stages_divide(stage, cost, layers, layers, stages, pairs);
    stage[stages - 1].blocks += blocks - layers;
    free(cost);
    return STATUS_OK;
}

enum status stages_of(struct stage *stage, const struct config *config,
                      const struct architecture *arch, const struct pipeline_shape *shape)
{
    const struct config_reals *listed = &config->parallel.stages;
    const int64_t stages = pipeline_stages(shape), blocks = architecture_blocks(arch);
    const bool dual = shape->schedule >= PIPELINE_DUALPIPE; /* two stages on a rank */
    if (shape->ranks == 1) {
        stage[0] = (struct stage){.blocks = blocks, .embedding = true, .head = true};
        return STATUS_OK;
    }
    if (stages > arch->layers || stages > STAGES_MOST) {
        return status_fail(
            STATUS_USAGE,
            "parallel.pp %lld x %s %lld makes %lld stages, more than the model's %lld "
            "layers or %d",
            (long long)shape->ranks, dual ? "dualpipe_v's" : "parallel.virtual_stages",
            (long long)shape->parts, (long long)stages, (long long)arch->layers, STAGES_MOST);
    }
    if (listed->count == 0) {
        return divide_evenly(stage, config, arch, stages, dual);
    }
    TRY(stages_listed(stage, listed, blocks, arch->layers, stages));
    for (int64_t s = 0; s < stages; s++) {
        if (stage[s].blocks == 0 || stage[s].head != (s == stages - 1)) {
            return status_fail(STATUS_USAGE,
                               "parallel.stages: stage %lld has %lld blocks from %lld on: every "
                               "stage needs one, the last one the last of %lld layers and all "
                               "prediction modules",
                               (long long)s, (long long)stage[s].blocks, (long long)stage[s].first,
                               (long long)arch->layers);
        }
    }
    return STATUS_OK;
}

enum status stages_check(const struct config *config)
{
    struct stage stage[STAGES_MOST];
    struct architecture arch;
    const struct pipeline_shape shape =
        stages_shape(config, config->parallel.schedule, config->parallel.pp, 1);
    architecture_init(&arch, config);
    return stages_of(stage, config, &arch, &shape);
}

enum status slice_init(struct slice *slice, const struct config *config,
                       const struct architecture *arch, const struct pipeline_shape *shape,
                       int64_t rank)
{
    struct stage stage[STAGES_MOST];
    const int64_t last = pipeline_stages(shape) - 1;
    *slice = (struct slice){.shape = *shape, .rank = rank};
    assert(shape->parts <= SLICE_PARTS);
    TRY(stages_of(stage, config, arch, shape));
    for (int64_t i = 0; i < shape->parts; i++) {
        slice->part[i] = stage[pipeline_stage(shape, rank, i)];
        slice->embeds = slice->embeds || slice->part[i].embedding;
        slice->heads = slice->heads || slice->part[i].head;
    }
    slice->shared = arch->mtp_depth > 0 &&
                    pipeline_place(shape, 0, 0).rank != pipeline_place(shape, last, 0).rank;
    return STATUS_OK;
}

bool slice_has(const struct slice *slice, int64_t block)
{
    for (int64_t i = 0; i < slice->shape.parts; i++) {
        const struct stage *part = &slice->part[i];
        if (block >= part->first && block < part->first + part->blocks) {
            return true;
        }
    }
    return false;
}
