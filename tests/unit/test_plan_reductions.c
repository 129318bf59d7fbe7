/* plan's time of gradients that are reduced beside backward, against hand counts. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "plan_check.h"
#include "trainer/plan/memory.h"

/* Of four GPUs that all hold the same: gradients go a block at a time beside the last micro-batch's
 * backward, but where ranks exchange rows inside attention, a GPU records exchanges with experts,
 * or the host carries them.
 */
static void test_reductions_are_planned(void **state)
{
    (void)state;
    static const struct {
        const char *divide, *more;
        bool beside;
        int64_t replicas; /* of experts */
    } cases[] = {{"parallel.ep=1", "router.dispatch=padded", true, 4},
                 {"parallel.ep=2", "parallel.zero=1", true, 2},
                 {"parallel.ep=2", "router.dispatch=padded", false, 2},
                 {"parallel.ep=2", "run.comm=mpi", false, 2},
                 {"parallel.ep=1", "parallel.cp=2", false, 4}};
    static struct plan plan;
    const struct stage whole = {.blocks = 4, .embedding = true, .head = true};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *const list[] = {"run.device=cuda",
                                    "cluster.gpu=h100",
                                    "cluster.nodes=1",
                                    "train.micro_batch=16",
                                    "cluster.gpus_per_node=4",
                                    "model.num_hidden_layers=4",
                                    "train.precision=bf16",
                                    cases[i].divide,
                                    cases[i].more,
                                    NULL};
        struct config config;
        struct hardware hw;
        struct stage_memory memory;
        open_small(&config, &hw, list);
        assert_int_equal(
            memory_of_stage(&memory, &config, &whole, hw.device, 4, config.parallel.ep, false),
            STATUS_OK);
        assert_int_equal(plan_make(&plan, &config, &hw), STATUS_OK);
        const int64_t ranks[] = {4, cases[i].replicas}, parts[] = {4 + 3, 4};
        double expected = 0;
        for (int g = PARAM_DENSE; g <= PARAM_EXPERT; g++) {
            const double count = (double)memory.elements[g], n = (double)ranks[g];
            const int64_t stride = 4 / ranks[g];
            const double last =
                n / (n - 1) *
                    (exchange_reduce_seconds(&hw, 4 * count, ranks[g], stride) - 2 * hw.message) +
                (double)(parts[g] + ranks[g]) * hw.message;
            expected += cases[i].beside
                            ? exchange_reduce_seconds(&hw, 2 * count, ranks[g], stride) +
                                  hw.imperfect * last
                            : exchange_reduce_seconds(&hw, 6 * count, ranks[g], stride);
        }
        expect_near(plan.time.reduce, expected, 1e-9, cases[i].more);
        hardware_free(&hw);
        config_free(&config);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_reductions_are_planned)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
