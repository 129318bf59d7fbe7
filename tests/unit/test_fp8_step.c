/* A step in FP8: what it says of its scale, and that weights which an update spoils end it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>

#include "tiny_model.h"

static void check(enum status status)
{
    if (status != STATUS_OK) {
        fail_msg("%s", status_message());
    }
}

static void open_tiny(struct tiny *tiny, struct comm *world)
{
    const char *const overrides[TINY_OVERRIDES] = {"train.precision=fp8",
                                                   "model.intermediate_size=16"};
    check(comm_open(world, "self"));
    check(tiny_open(tiny, world, TINY_MIXTRAL, overrides));
}

/* The least power of two that is at least 8 sequences of 8 labels. */
static void test_unit(void **state)
{
    static struct tiny tiny;
    struct comm world;
    struct step_result result;
    (void)state;
    open_tiny(&tiny, &world);
    check(stepper_step(&tiny.stepper, 1, 0, &result));
    check(stepper_updated(1, &result));
    assert_true(result.unit == 64);
    assert_true(result.fp8[LINEAR_GRADIENTS].values > 0);
    tiny_close(&tiny);
    comm_close(&world);
}

/* A master that is infinite, as too long a step leaves it: nothing of this step's own forward and
 * backward shows it. */
static void test_spoilt_weights(void **state)
{
    static struct tiny tiny;
    struct comm world;
    struct step_result result;
    (void)state;
    open_tiny(&tiny, &world);
    const struct model_group *group = &tiny.model.group[PARAM_EXPERT];
    const struct linear *linear = linears_at(&tiny.model.linears, 1, LINEAR_EXPERTS_DOWN);
    group->master[(uint16_t *)linear->weight - (uint16_t *)group->weights + 3] = INFINITY;
    check(stepper_step(&tiny.stepper, 1, 0, &result));
    assert_int_equal(result.bad_weights, 1);
    assert_int_equal(stepper_updated(1, &result), STATUS_DIVERGED);
    tiny_close(&tiny);
    comm_close(&world);
}

/* Blocks whose layers are in FP8, as bits; the modules of multi-token prediction stand behind. */
static unsigned coded_blocks(const char *text, const char *first, const char *last)
{
    static struct tiny tiny;
    static const enum linear_name names[] = {LINEAR_O, LINEAR_DOWN, LINEAR_EXPERTS_UP};
    const char *const overrides[TINY_OVERRIDES] = {"train.precision=fp8",
                                                   "model.intermediate_size=48",
                                                   "model.hidden_size=32",
                                                   first,
                                                   last,
                                                   "model.num_nextn_predict_layers=1",
                                                   "model.q_lora_rank=16",
                                                   "model.kv_lora_rank=16",
                                                   "model.qk_nope_head_dim=16",
                                                   "model.qk_rope_head_dim=16",
                                                   "model.v_head_dim=16",
                                                   "model.moe_intermediate_size=16"};
    struct comm world;
    struct step_result result;
    unsigned coded = 0;
    check(comm_open(&world, "self"));
    check(tiny_open(&tiny, &world, text, overrides));
    check(stepper_step(&tiny.stepper, 1, 0, &result));
    check(stepper_updated(1, &result));
    for (int64_t block = 0; block < tiny.model.linears.blocks; block++) {
        bool any = false, all = true;
        for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
            const struct linear *linear = linears_at(&tiny.model.linears, block, names[i]);
            const bool codes = linear->w.code != NULL;
            any = any || codes;
            all = all && (codes || linear->weight == NULL);
        }
        assert_true(any == all); /* altogether */
        coded |= any ? 1U << block : 0;
    }
    tiny_close(&tiny);
    comm_close(&world);
    return coded;
}

/* Three layers and a module: what stays in bf16 at either end. */
static void test_layers(void **state)
{
    (void)state;
    assert_int_equal(coded_blocks(TINY_V3, "fp8.first_bf16=0", "fp8.last_bf16=0"), 15);
    assert_int_equal(coded_blocks(TINY_V3, "fp8.first_bf16=1", "fp8.last_bf16=0"), 14);
    assert_int_equal(coded_blocks(TINY_V3, "fp8.first_bf16=0", "fp8.last_bf16=1"), 3);
    assert_int_equal(coded_blocks(TINY_V3, "fp8.first_bf16=1", "fp8.last_bf16=1"), 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unit),
        cmocka_unit_test(test_spoilt_weights),
        cmocka_unit_test(test_layers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
