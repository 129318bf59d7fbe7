#include "trainer/model/gradients.h"

#include <assert.h>
#include <math.h>

#include "trainer/model/model.h"

/* Beyond this a sum of most_adds could exceed what decode takes. */
static const int MOST_BITS = 62;

enum status gradients_init(struct gradients *gradients, const struct model *model)
{
    const struct config *config = model->config;
    const int64_t units = config->train.global_batch / config->train.micro_batch;
    *gradients = (struct gradients){.device = model->device,
                                    .ops = model->ops,
                                    .model = model,
                                    .fixed = model->training && config->run.deterministic ==
                                                                    CONFIG_DETERMINISTIC_LAYOUT,
                                    .most_adds = 1};
    /* Embedding and head have a gradient from every module of multi-token prediction too. */
    while (gradients->most_adds < units * (1 + model->arch.mtp_depth)) {
        gradients->most_adds *= 2;
    }
    return !gradients->fixed || model->ops->fixed != NULL
               ? STATUS_OK
               : status_fail(STATUS_USAGE,
                             "run.deterministic layout: the device %s has no sums of integers "
                             "here: use run.deterministic run",
                             model->ops->name);
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Elements of the largest gradient that one op makes. */
static int64_t largest(const struct model *model)
{
    int64_t count = 0;
    for (int64_t i = 0; i < model->params.count; i++) {
        count = most(count, model->params.table[i].count);
    }
    for (int64_t i = 0; i < model->linears.blocks * LINEARS; i++) {
        count = most(count, model->linears.table[i].out * model->linears.table[i].in);
    }
    return count;
}

void gradients_layout(struct gradients *gradients, const struct model *model, struct arena *arena)
{
    if (gradients->fixed) {
        gradients->unit = arena_alloc(arena, (size_t)largest(model) * sizeof *gradients->unit);
        gradients->point = arena_alloc(arena, sizeof *gradients->point);
        gradients->square = arena_alloc(arena, FIXED_LIMBS * sizeof *gradients->square);
    }
}

void gradients_begin(struct gradients *gradients, double unit)
{
    const double limit = ldexp(1.0, MOST_BITS) / (double)gradients->most_adds;
    const struct fixed_point point = {.scale = (float)(ldexp(1.0, GRADIENT_BITS) / unit),
                                      .limit = (float)limit};
    if (gradients->fixed) {
        gradients->ops->upload(gradients->device, gradients->point, &point, sizeof point);
        gradients->ops->zero(gradients->device, gradients->square,
                             FIXED_LIMBS * sizeof *gradients->square);
    }
}

/* Elements [first, last) of sum[count] that are of this parameter, where it is frozen; else none.
 */
struct part {
    int64_t first, last;
};

static struct part frozen_part(const struct model *model, const struct param *param,
                               const int64_t *sum, int64_t count)
{
    const struct model_group *group = &model->group[param->group];
    if (!param->frozen || !shards_holds(group, param->offset)) {
        return (struct part){0};
    }
    const int64_t *own = shards_sum(group, param->offset);
    const int64_t first = own - sum, last = first + param->count;
    const struct part part = {.first = first > 0 ? first : 0, .last = last < count ? last : count};
    return part.first < part.last ? part : (struct part){0};
}

/* Parameters to look at: none where none is frozen. */
static int64_t freezable(const struct model *model)
{
    return model->config->optimizer.freeze.count > 0 ? model->params.count : 0;
}

struct fixed_rows gradients_live(const struct gradients *gradients, const int64_t *sum,
                                 int64_t rows, int64_t cols)
{
    const struct model *model = gradients->model;
    struct fixed_rows live = {0, rows};
    for (int64_t i = 0; i < freezable(model); i++) {
        const struct part part = frozen_part(model, &model->params.table[i], sum, rows * cols);
        if (part.first == part.last) {
            continue;
        }
        assert(part.first == 0 || part.last == rows * cols);
        if (part.first == 0) {
            live.first = most(live.first, part.last / cols);
        } else {
            live.last = least(live.last, part.first / cols);
        }
    }
    return live;
}

/* Of what an op gave. */
static void clear_frozen(const struct gradients *gradients, const int64_t *sum, int64_t count)
{
    const struct model *model = gradients->model;
    for (int64_t i = 0; i < freezable(model); i++) {
        const struct part part = frozen_part(model, &model->params.table[i], sum, count);
        if (part.first < part.last) {
            gradients->ops->zero(gradients->device, gradients->unit + part.first,
                                 (size_t)(part.last - part.first) * sizeof *gradients->unit);
        }
    }
}

void gradients_add(const struct gradients *gradients, int64_t *sum, int64_t count)
{
    if (gradients->fixed) {
        clear_frozen(gradients, sum, count);
        gradients->ops->fixed->add(gradients->device, sum, gradients->unit, count,
                                   gradients->point);
    }
}

float gradients_quantum(double unit)
{
    return (float)ldexp(unit, -GRADIENT_BITS);
}

void gradients_decode(const struct gradients *gradients, float *out, const int64_t *sum,
                      int64_t count, double unit)
{
    gradients->ops->fixed->decode(gradients->device, out, sum, count, gradients_quantum(unit));
}

void gradients_square(const struct gradients *gradients, const int64_t *sum, int64_t count)
{
    gradients->ops->fixed->squares(gradients->device, gradients->square, sum, count);
}

/* Every limb below 2^FIXED_LIMB_BITS but the last. */
static void carry(int64_t limb[FIXED_LIMBS])
{
    const int64_t base = (int64_t)1 << FIXED_LIMB_BITS;
    for (int i = 0; i + 1 < FIXED_LIMBS; i++) {
        limb[i + 1] += limb[i] / base;
        limb[i] %= base;
    }
}

double gradients_norm(struct gradients *gradients, struct comm *world)
{
    int64_t sums[FIXED_LIMBS + 2];
    struct fixed_point point;
    double square = 0;
    gradients->ops->download(gradients->device, sums, gradients->square,
                             FIXED_LIMBS * sizeof *sums);
    gradients->ops->download(gradients->device, &point, gradients->point, sizeof point);
    carry(sums); /* so that the sum over ranks does not overflow */
    sums[FIXED_LIMBS] = point.saturated;
    sums[FIXED_LIMBS + 1] = point.bad;
    comm_all_reduce(world, sums, FIXED_LIMBS + 2, DTYPE_I64, REDUCE_SUM);
    carry(sums);
    gradients->saturated = sums[FIXED_LIMBS];
    gradients->bad = sums[FIXED_LIMBS + 1];
    for (int i = FIXED_LIMBS - 1; i >= 0; i--) {
        square += ldexp((double)sums[i], FIXED_LIMB_BITS * i);
    }
    return gradients->bad > 0         ? (double)NAN
           : gradients->saturated > 0 ? (double)INFINITY
                                      : ldexp(sqrt(square), -GRADIENT_BITS);
}
