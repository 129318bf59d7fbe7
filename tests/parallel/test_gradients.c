/* gradients: as integers. What is at the limit counts, what is beyond or not finite is left out and
 * counted over all ranks, and ends the step; sums over ranks are exact; the norm has the same bits
 * on any number of ranks. What is frozen takes no part in any of it. */
#include <math.h>

#include "parallel/ranks.h"
#include "tests/tiny_model.h"
#include "trainer/optimizer.h"

enum { MIXTRAL_UNITS = 4 }; /* micro-batches of a step */

static const float LIMIT = 0x1p12F; /* 2^62 / MIXTRAL_UNITS integers of 2^-48 */

/* Experts are divided among all ranks unless `override`, NULL or one more, says else. */
static void open_tiny(struct tiny *tiny, struct comm *world, const char *override)
{
    char ep[32];
    snprintf(ep, sizeof ep, "parallel.ep=%d", world->size);
    const char *const overrides[TINY_OVERRIDES] = {"run.deterministic=layout", ep, override};
    CHECK(world, tiny_open(tiny, world, TINY_MIXTRAL, overrides) == STATUS_OK);
}

static const struct param *find(struct comm *world, const struct model *model, const char *name)
{
    for (int64_t p = 0; p < model->params.count; p++) {
        if (strstr(model->params.table[p].name, name) != NULL) {
            return &model->params.table[p];
        }
    }
    CHECK(world, name == NULL);
    return NULL;
}

/* What unit `unit` gives to element i of a parameter. */
typedef float (*value_of)(const struct param *param, int64_t i, int64_t unit);

/* As an op does and what follows it: this rank's share of the units. */
static void add_all(struct model *model, value_of value, int64_t units)
{
    for (int64_t p = 0; p < model->params.count; p++) {
        const struct param *param = &model->params.table[p];
        const struct model_group *group = &model->group[param->group];
        const struct comm *comm = group->zero.comm;
        for (int64_t unit = comm->rank; unit < units; unit += comm->size) {
            float *place = gradients_place(&model->gradients, NULL);
            for (int64_t i = 0; i < param->count; i++) {
                place[i] = value(param, i, unit);
            }
            gradients_add(&model->gradients, group->sums + param->offset, param->count);
        }
    }
}

/* The integer that all units' values of an element come to, by the definition. */
static int64_t expected_sum(const struct param *param, int64_t i, value_of value, int64_t units)
{
    int64_t sum = 0;
    for (int64_t unit = 0; unit < units; unit++) {
        const float x = value(param, i, unit);
        sum += fabsf(x) <= LIMIT ? (int64_t)llrint(ldexp((double)x, GRADIENT_BITS)) : 0;
    }
    return sum;
}

/* After the reduction: every element of this rank's share, with ==. */
static void expect_share(struct comm *world, const struct model *model, value_of value,
                         int64_t units)
{
    for (int64_t p = 0; p < model->params.count; p++) {
        const struct param *param = &model->params.table[p];
        const struct model_group *group = &model->group[param->group];
        const struct param_piece piece = param_piece(param, &group->zero, group->zero.comm->rank);
        for (int64_t i = piece.first; i < piece.last; i++) {
            const int64_t sum =
                param->frozen ? 0 : expected_sum(param, i - param->offset, value, units);
            CHECK(world,
                  group->shard[zero_place(&group->zero, i)] == ldexpf((float)sum, -GRADIENT_BITS));
        }
    }
}

/* ---- the limit ---- */

static float at_limit(const struct param *param, int64_t i, int64_t unit)
{
    const float values[] = {LIMIT, -LIMIT, nextafterf(LIMIT, 0), 0x1p-48F, -0x1p-49F, 0x1.8p-48F};
    (void)param;
    return values[(i + unit) % 6];
}

/* Of 5 elements, 2 are too large. */
static float beyond(const struct param *param, int64_t i, int64_t unit)
{
    const float above = nextafterf(LIMIT, INFINITY);
    const float values[] = {above, -above, LIMIT, -LIMIT, 3};
    (void)param;
    return values[(i + unit) % 5];
}

/* Of 7 elements, 4 are not finite and 2 too large. */
static float broken(const struct param *param, int64_t i, int64_t unit)
{
    const float values[] = {NAN, INFINITY, -INFINITY, -NAN, 0x1p100F, -0x1.fp127F, -LIMIT};
    (void)param;
    return values[(i + unit) % 7];
}

/* Elements of all parameters, every one once, and of all units, that `value` makes too large, or
 * not finite. */
static void count_all(const struct model *whole, value_of value, int64_t units, int64_t *saturated,
                      int64_t *bad)
{
    *saturated = *bad = 0;
    for (int64_t p = 0; p < whole->params.count; p++) {
        const struct param *param = &whole->params.table[p];
        for (int64_t i = 0; i < param->count * units && !param->frozen; i++) {
            const float x = value(param, i / units, i % units);
            *bad += !isfinite(x);
            *saturated += isfinite(x) && fabsf(x) > LIMIT;
        }
    }
}

/* On these ranks as the whole model, of one rank, wants it; returns the norm. */
static double reduce(struct comm *world, struct tiny *tiny, const struct model *whole,
                     value_of value)
{
    struct model *model = &tiny->model;
    int64_t saturated, bad;
    model_zero_grads(model);
    add_all(model, value, MIXTRAL_UNITS);
    const double norm = optimizer_reduce(model);
    for (int g = 0; g < model->params.groups; g++) {
        optimizer_decode(model, (enum param_group)g);
    }
    count_all(whole, value, MIXTRAL_UNITS, &saturated, &bad);
    CHECK_EQUAL(world, model->gradients.saturated, saturated);
    CHECK_EQUAL(world, model->gradients.bad, bad);
    expect_share(world, model, value, MIXTRAL_UNITS);
    for (int64_t i = 0; i < find(world, model, "embed")->count; i++) {
        CHECK(world, model->gradients.unit[i] == 0.0F);
    }
    return norm;
}

static void check_limit(struct comm *world, struct comm *self, const char *freeze)
{
    struct tiny tiny, whole;
    open_tiny(&tiny, world, freeze);
    open_tiny(&whole, self, freeze);
    CHECK_EQUAL(world, tiny.model.gradients.most_adds, MIXTRAL_UNITS);
    CHECK(world, isfinite(reduce(world, &tiny, &whole.model, at_limit)));
    CHECK(world, reduce(world, &tiny, &whole.model, beyond) == (double)INFINITY);
    CHECK(world, isnan(reduce(world, &tiny, &whole.model, broken)));
    CHECK(world, isfinite(reduce(world, &tiny, &whole.model, at_limit))); /* counts begin anew */
    tiny_close(&tiny);
    tiny_close(&whole);
}

static void test_limit(struct comm *world)
{
    struct comm self;
    comm_split(world, world->rank, 0, &self);
    check_limit(world, &self, NULL);
    check_limit(world, &self, "optimizer.freeze=*embed*,*.1.self_attn.k_proj*,*experts.3.w2*");
    comm_free(&self);
}

/* All that may be added at once reaches 2^62 integers, which a sum and its square hold. */
static float all_at_limit(const struct param *param, int64_t i, int64_t unit)
{
    (void)param;
    (void)unit;
    return i % 2 == 0 ? LIMIT : -LIMIT;
}

static void test_range(struct comm *world)
{
    struct comm self;
    struct tiny tiny, whole;
    int64_t count = 0;
    comm_split(world, world->rank, 0, &self);
    open_tiny(&tiny, world, NULL);
    open_tiny(&whole, &self, NULL);
    for (int64_t p = 0; p < whole.model.params.count; p++) {
        count += whole.model.params.table[p].count;
    }
    const double norm = reduce(world, &tiny, &whole.model, all_at_limit);
    CHECK(world, norm == MIXTRAL_UNITS * (double)LIMIT * sqrt((double)count));
    tiny_close(&tiny);
    tiny_close(&whole);
    comm_free(&self);
}

/* ---- sums and norm ---- */

static uint32_t random_bits(const struct param *param, int64_t i, int64_t unit)
{
    uint32_t bits[4];
    rng_bits(rng_key((uint64_t)unit, param->name), (uint64_t)i, bits);
    return bits[0];
}

static float small_integer(const struct param *param, int64_t i, int64_t unit)
{
    return (float)((int)(random_bits(param, i, unit) % 17) - 8);
}

/* 24 random bits, sign, and magnitudes from 2^-34 to 2^0, some of them rounded. */
static float real(const struct param *param, int64_t i, int64_t unit)
{
    const uint32_t bits = random_bits(param, i, unit);
    return ldexpf((float)(int32_t)bits, -31 - (int)(bits % 35));
}

/* Of the definition's f32 numbers, in long double. */
static double reference_norm(const struct model *whole, value_of value)
{
    long double square = 0;
    for (int64_t p = 0; p < whole->params.count; p++) {
        const struct param *param = &whole->params.table[p];
        for (int64_t i = 0; i < param->count && !param->frozen; i++) {
            const float f = (float)expected_sum(param, i, value, MIXTRAL_UNITS);
            square += (long double)f * (long double)f;
        }
    }
    return (double)ldexpl(sqrtl(square), -GRADIENT_BITS);
}

/* Chunks of 64 add in double, each in error by at most 15 x 2^-53 of itself; over more than a
 * hundred of them that averages out to far less than the last rounding. */
static void check_norm(struct comm *world, struct comm *self, const char *override, value_of value)
{
    struct tiny tiny, whole;
    open_tiny(&tiny, world, override);
    open_tiny(&whole, self, override);
    const double norm = reduce(world, &tiny, &whole.model, value),
                 alone = reduce(world, &whole, &whole.model, value),
                 reference = reference_norm(&whole.model, value);
    CHECK(world, norm == alone);
    CHECK(world, norm >= nextafter(reference, 0) && norm <= nextafter(reference, INFINITY));
    CHECK(world, value != small_integer || norm == reference);
    tiny_close(&tiny);
    tiny_close(&whole);
}

static void test_sums(struct comm *world)
{
    struct comm self;
    comm_split(world, world->rank, 0, &self);
    check_norm(world, &self, NULL, small_integer);
    check_norm(world, &self, NULL, real);
    check_norm(world, &self, "parallel.ep=1", real);
    check_norm(world, &self, "optimizer.freeze=*norm*,*v_proj*,*experts*", real);
    comm_free(&self);
}

/* ---- whole steps ---- */

/* The head's gradient is far beyond the limit, others' are small: logits are 0 and nothing goes
 * back through the head. */
static void make_head_large(struct comm *world, struct model *model, bool others)
{
    float *weights = model->group[PARAM_DENSE].weights;
    const struct param *norm = find(world, model, "model.norm"),
                       *head = find(world, model, "lm_head");
    for (int64_t i = 0; i < norm->count; i++) {
        weights[norm->offset + i] = 0x1p24F;
    }
    for (int64_t i = 0; i < head->count && !others; i++) {
        weights[head->offset + i] = 0;
    }
}

static enum status step_once(struct comm *world, struct comm *ranks, const char *freeze,
                             bool others, struct step_result *result)
{
    struct tiny tiny;
    open_tiny(&tiny, ranks, freeze);
    make_head_large(world, &tiny.model, others);
    const enum status status = stepper_step(&tiny.stepper, 1, 0, result);
    tiny_close(&tiny);
    return status;
}

/* As many as on one rank, which the message says too; returns how many. */
static int64_t check_saturated(struct comm *world, struct comm *self, const char *freeze,
                               bool others)
{
    struct step_result result, alone;
    char message[512];
    CHECK_EQUAL(world, step_once(world, self, freeze, others, &alone), STATUS_DIVERGED);
    CHECK_MESSAGE(world, "0 elements of gradients are NaN or infinity");
    CHECK_MESSAGE(world, "too large for run.deterministic layout");
    snprintf(message, sizeof message, "%s", status_message());
    CHECK_EQUAL(world, step_once(world, world, freeze, others, &result), STATUS_DIVERGED);
    CHECK_MESSAGE(world, message);
    CHECK(world, alone.saturated > 0 && alone.bad_gradients == 0);
    CHECK_EQUAL(world, result.saturated, alone.saturated);
    CHECK_EQUAL(world, result.bad_gradients, 0);
    CHECK(world, result.grad_norm == (double)INFINITY);
    return alone.saturated;
}

static void test_step_saturated(struct comm *world)
{
    struct comm self;
    comm_split(world, world->rank, 0, &self);
    (void)check_saturated(world, &self, NULL, false);
    (void)check_saturated(world, &self, NULL, true);
    comm_free(&self);
}

/* Experts of which a part is frozen count what is not, whichever of them a rank has: one of four,
 * one half of what one product makes (w1, w3), the other, and what they have in common. */
static void test_step_partly_frozen(struct comm *world)
{
    struct comm self;
    comm_split(world, world->rank, 0, &self);
    const int64_t all = check_saturated(world, &self, "optimizer.freeze=lm_head*", true),
                  expert =
                      check_saturated(world, &self, "optimizer.freeze=lm_head*,*experts.2.*", true),
                  gates = check_saturated(world, &self, "optimizer.freeze=lm_head*,*.w1.*", true),
                  ups = check_saturated(world, &self, "optimizer.freeze=lm_head*,*.w3.*", true),
                  both = check_saturated(
                      world, &self, "optimizer.freeze=lm_head*,*.w1.*,*.w3.*,*experts.2.*", true);
    CHECK(world, expert < all && gates < all && ups < all);
    CHECK(world, both < expert && both < gates && both < ups);
    comm_free(&self);
}

static void test_step_not_finite(struct comm *world)
{
    struct tiny tiny;
    struct step_result result;
    char fault[48];
    snprintf(fault, sizeof fault, "debug.fault=nan:1:%d", world->size - 1);
    open_tiny(&tiny, world, fault);
    CHECK_EQUAL(world, stepper_step(&tiny.stepper, 1, 0, &result), STATUS_DIVERGED);
    CHECK_MESSAGE(world, "elements of gradients are NaN or infinity, 0 too large for "
                         "run.deterministic layout");
    CHECK(world, result.bad_gradients > 0 && result.saturated == 0 && isnan(result.grad_norm));
    tiny_close(&tiny);
}

/* What is frozen does not end the run, as with run.deterministic run; all else still does. */
static void test_step_frozen(struct comm *world)
{
    struct step_result result;
    CHECK_EQUAL(world, step_once(world, world, "optimizer.freeze=lm_head*", false, &result),
                STATUS_OK);
    CHECK(world, result.saturated == 0 && isfinite(result.grad_norm));
    CHECK_EQUAL(world, step_once(world, world, "optimizer.freeze=*", true, &result), STATUS_OK);
    CHECK(world, result.saturated == 0 && result.grad_norm == 0);
    CHECK_EQUAL(world, step_once(world, world, "optimizer.freeze=*experts*", false, &result),
                STATUS_DIVERGED);
    CHECK(world, result.saturated > 0);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_limit),
        RANKS_TEST(test_range),
        RANKS_TEST(test_sums),
        RANKS_TEST(test_step_saturated),
        RANKS_TEST(test_step_partly_frozen),
        RANKS_TEST(test_step_not_finite),
        RANKS_TEST(test_step_frozen),
    };
    return RANKS_MAIN(tests);
}
