/* Selection bias: every layout counts the same integers over a global batch, so biases have the
 * same bits everywhere, those of one rank alone included.
 */
#include "parallel/ranks.h"

#include "kernels/base/hash.h"
#include "tiny_model.h"

enum { BLOCKS = 3, EXPERTS = 8, CELLS = BLOCKS * EXPERTS, STEPS = 4, GLOBAL_BATCH = 8 };

/* What the steps of one layout counted and made. Two layers with experts, one module of multi-token
 * prediction. */
struct history {
    int64_t load[STEPS][CELLS];
    float bias[STEPS][CELLS];
};

static void check_status(struct comm *world, enum status status)
{
    CHECK_EQUAL(world, status, STATUS_OK);
}

/* Collective over `group`. */
static void train(struct comm *world, struct comm *group, int ep, const char *recompute,
                  struct history *history)
{
    static struct tiny tiny;
    char layout[32];
    snprintf(layout, sizeof layout, "parallel.ep=%d", ep);
    /* Weights stay: layouts add gradients in different orders, which is not what this is about. */
    const char *const overrides[TINY_OVERRIDES] = {"router.bias_update_speed=0.125",
                                                   "model.num_nextn_predict_layers=1",
                                                   "optimizer.lr=0", layout, recompute};
    check_status(world, tiny_open(&tiny, group, TINY_V3, overrides));
    for (int64_t step = 1; step <= STEPS; step++) {
        struct step_result result;
        check_status(world, stepper_step(&tiny.stepper, step, (step - 1) * GLOBAL_BATCH, &result));
        memcpy(history->load[step - 1], tiny.stepper.load, sizeof history->load[0]);
        memcpy(history->bias[step - 1], tiny.model.router_bias, sizeof history->bias[0]);
    }
    tiny_close(&tiny);
}

/* Every slot of the global batch is counted once. */
static void check_totals(struct comm *world, const struct history *history)
{
    for (int step = 0; step < STEPS; step++) {
        for (int64_t block = 0; block < BLOCKS; block++) {
            int64_t sum = 0;
            for (int e = 0; e < EXPERTS; e++) {
                sum += history->load[step][block * EXPERTS + e];
            }
            CHECK_EQUAL(world, sum, GLOBAL_BATCH * 3 * (block == BLOCKS - 1 ? 7 : 8));
        }
    }
}

/* The rule, applied to the integers: b += speed * sign(mean - count). */
static void check_rule(struct comm *world, const struct history *history)
{
    float bias[CELLS] = {0};
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < CELLS; i++) {
            int64_t sum = 0;
            for (int e = 0; e < EXPERTS; e++) {
                sum += history->load[step][i / EXPERTS * EXPERTS + e];
            }
            const int64_t below = sum - EXPERTS * history->load[step][i];
            bias[i] += below > 0 ? 0.125F : below < 0 ? -0.125F : 0;
        }
        CHECK(world, memcmp(bias, history->bias[step], sizeof bias) == 0);
    }
}

static void check_same(struct comm *world, const struct history *got,
                       const struct history *expected)
{
    for (int step = 0; step < STEPS; step++) {
        for (int i = 0; i < CELLS; i++) {
            CHECK_EQUAL(world, got->load[step][i], expected->load[step][i]);
        }
        CHECK(world, memcmp(got->bias[step], expected->bias[step], sizeof got->bias[0]) == 0);
    }
}

/* All ranks hold the same. */
static void check_agreed(struct comm *world, const struct history *history)
{
    uint64_t own = hash_bytes(history, sizeof *history);
    uint64_t *all = ranks_memory(world, (size_t)world->size * sizeof own);
    comm_all_gather(world, all, &own, sizeof own);
    for (int r = 0; r < world->size; r++) {
        CHECK(world, all[r] == own);
    }
    free(all);
}

/* Every rank runs the same steps alone too, all micro-batches one after another. */
static void test_every_layout(struct comm *world)
{
    static struct history one, many;
    struct comm alone;
    comm_split(world, world->rank, 0, &alone);
    train(world, &alone, 1, NULL, &one);
    comm_free(&alone);
    check_totals(world, &one);
    check_rule(world, &one);
    CHECK(world, memcmp(one.bias[0], one.bias[STEPS - 1], sizeof one.bias[0]) != 0);
    for (int ep = 1; ep <= world->size; ep *= 2) {
        train(world, world, ep, NULL, &many);
        check_agreed(world, &many);
        check_same(world, &many, &one);
    }
}

/* Running a block again for its backward counts nothing again. */
static void test_recompute(struct comm *world)
{
    static struct history none, again;
    static const char *const modes[] = {"train.recompute=norms", "train.recompute=experts",
                                        "train.recompute=block"};
    train(world, world, world->size, NULL, &none);
    for (int i = 0; i < 3; i++) {
        train(world, world, world->size, modes[i], &again);
        check_same(world, &again, &none);
    }
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_every_layout),
        RANKS_TEST(test_recompute),
    };
    return RANKS_MAIN(tests);
}
