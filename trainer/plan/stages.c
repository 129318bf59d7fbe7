#include "trainer/plan/stages.h"

#include <math.h>
#include <string.h>

/* Stages needed where none may cost more than `most`. */
static int64_t stages_within(const double *cost, int64_t blocks, double most, int64_t *begin)
{
    int64_t stages = 0;
    double sum = 0;
    for (int64_t b = 0; b < blocks; b++) {
        if (b == 0 || sum + cost[b] > most) {
            if (begin != NULL && stages < PLAN_STAGES) {
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
    int64_t begin[PLAN_STAGES + 1] = {0};
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
    int64_t begin[PLAN_STAGES + 1] = {0};
    if (list->count != stages) {
        return status_fail(STATUS_USAGE,
                           "cluster.stages names %lld stages, the schedule has %lld (parallel.pp x "
                           "stages of a rank)",
                           (long long)list->count, (long long)stages);
    }
    for (int64_t s = 0; s < stages; s++) {
        begin[s + 1] = begin[s] + (int64_t)list->item[s];
    }
    if (begin[stages] != blocks) {
        return status_fail(STATUS_USAGE,
                           "cluster.stages has %lld blocks, the model %lld (layers and prediction "
                           "modules)",
                           (long long)begin[stages], (long long)blocks);
    }
    fill(stage, begin, stages, layers);
    return STATUS_OK;
}
