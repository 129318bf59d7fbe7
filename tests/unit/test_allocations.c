/* The step loop allocates nothing: counted over whole steps, after a few that let scratch grow and
 * oneDNN make its primitives (which tests/allocations.h does not count anyway). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "allocations.h"
#include "tiny_model.h"

enum { WARMUP = 3, STEPS = 3 };

static const struct {
    const char *text;
    const char *overrides[TINY_OVERRIDES];
} variants[] = {
    {TINY_MIXTRAL, {NULL}},
    {TINY_MIXTRAL, {"train.precision=bf16", "router.capacity_factor=1", "optimizer.ema=0.9"}},
    {TINY_MIXTRAL, {"optimizer.name=muon", "router.z_loss_coef=0.01"}},
    {TINY_MIXTRAL, {"train.precision=fp8", "model.intermediate_size=16", "optimizer.name=muon"}},
    {TINY_V2, {"router.capacity_factor=1"}},
    {TINY_V3, {"model.num_nextn_predict_layers=2", "router.bias_update_speed=0.001"}},
    {TINY_V3, {"train.precision=bf16", "optimizer.moments=bf16", "data.mask_documents=true"}},
};

static void check(enum status status)
{
    if (status != STATUS_OK) {
        fail_msg("status %d: %s", status, status_message());
    }
}

static void test_nothing(void **state)
{
    static struct tiny tiny;
    struct comm world;
    struct step_result result;
    (void)state;
    check(comm_open(&world, "self"));
    for (size_t v = 0; v < sizeof variants / sizeof variants[0]; v++) {
        check(tiny_open(&tiny, &world, variants[v].text, variants[v].overrides));
        for (int64_t step = 1; step <= WARMUP + STEPS; step++) {
            const long long before = allocations;
            check(stepper_step(&tiny.stepper, step, 8 * (step - 1), &result));
            if (step > WARMUP && allocations != before) {
                fail_msg("variant %zu, step %lld: %lld allocations", v, (long long)step,
                         allocations - before);
            }
        }
        tiny_close(&tiny);
    }
    comm_close(&world);
}

/* The count itself works: opening a model allocates. */
static void test_counts(void **state)
{
    static struct tiny tiny;
    struct comm world;
    const long long before = allocations;
    (void)state;
    check(comm_open(&world, "self"));
    check(tiny_open(&tiny, &world, TINY_V3, variants[0].overrides));
    assert_true(allocations - before > 10);
    tiny_close(&tiny);
    comm_close(&world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_nothing),
                                       cmocka_unit_test(test_counts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
