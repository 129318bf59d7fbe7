/* stages: what each rank of a pipeline has of a model: all blocks once, in order, and every
 * parameter on the ranks that use it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "tiny_model.h"

static void load(struct config *config, struct architecture *arch, const char *const *overrides)
{
    if (tiny_config(config, TINY_V3, overrides) != STATUS_OK) {
        fail_msg("%s", status_message());
    }
    architecture_init(arch, config);
}

static struct pipeline_shape shape_of(const struct config *config)
{
    return stages_shape(config, config->parallel.schedule, config->parallel.pp, 8);
}

/* How many ranks have a parameter of this name. */
static int holders(const struct params *params, int ranks, const char *name)
{
    int count = 0;
    for (int r = 0; r < ranks; r++) {
        for (int64_t i = 0; i < params[r].count; i++) {
            count += strcmp(params[r].table[i].name, name) == 0;
        }
    }
    return count;
}

static void expect_slices(const char *const *overrides)
{
    enum { MOST = 4 };
    struct config config;
    struct architecture arch;
    struct params params[MOST], all;
    struct slice slice[MOST];
    int64_t next = 0;
    load(&config, &arch, overrides);
    const struct pipeline_shape shape = shape_of(&config);
    const int ranks = (int)shape.ranks;
    assert_int_equal(params_init(&all, &arch, false, &PARAMS_ALL), STATUS_OK);
    for (int r = 0; r < ranks; r++) {
        assert_int_equal(slice_init(&slice[r], &config, &arch, &shape, r), STATUS_OK);
        const struct params_place place = {
            .ep_size = 1, .etp_size = 1, .tp_size = 1, .slice = &slice[r]};
        assert_int_equal(params_init(&params[r], &arch, false, &place), STATUS_OK);
        assert_true(params[r].total == all.total && params[r].active == all.active &&
                    params[r].mtp == all.mtp);
        assert_true(slice[r].shared == (arch.mtp_depth > 0));
        assert_true(slice[r].embeds == (r == 0) && slice[r].heads == (r == ranks - 1));
    }
    for (int64_t s = 0; s < pipeline_stages(&shape); s++) { /* one behind the other */
        const struct pipeline_place place = pipeline_place(&shape, s, 0);
        const struct stage *stage = &slice[place.rank].part[place.part];
        assert_true(stage->first == next && stage->blocks > 0);
        assert_true(stage->embedding == (s == 0) &&
                    stage->head == (s == pipeline_stages(&shape) - 1));
        next += stage->blocks;
    }
    assert_int_equal(next, architecture_blocks(&arch));
    for (int64_t i = 0; i < all.count; i++) {
        const char *name = all.table[i].name;
        const bool both = strcmp(name, "model.embed_tokens.weight") == 0 && arch.mtp_depth > 0;
        assert_int_equal(holders(params, ranks, name), both ? 2 : 1);
    }
    for (int r = 0; r < ranks; r++) {
        params_free(&params[r]);
    }
    params_free(&all);
    config_free(&config);
}

static void test_slices(void **state)
{
    (void)state;
    static const char *const cases[][TINY_OVERRIDES] = {
        {"parallel.pp=2"},
        {"parallel.pp=3"},
        {"parallel.pp=2", "model.num_nextn_predict_layers=2"},
        {"parallel.pp=2", "model.num_nextn_predict_layers=1", "parallel.stages=[1,3]"},
        {"parallel.pp=2", "model.num_hidden_layers=6", "parallel.virtual_stages=3"},
        {"parallel.pp=4", "model.num_hidden_layers=9", "parallel.virtual_stages=2",
         "model.num_nextn_predict_layers=1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        expect_slices(cases[i]);
    }
}

/* A long dense layer in front, the head and a prediction module behind: fewer layers there. */
static void test_balance(void **state)
{
    (void)state;
    static const char *const overrides[TINY_OVERRIDES] = {
        "parallel.pp=2", "model.num_hidden_layers=8", "model.num_nextn_predict_layers=1",
        "model.vocab_size=200"};
    struct config config;
    struct architecture arch;
    struct stage stage[STAGES_MOST];
    load(&config, &arch, overrides);
    const struct pipeline_shape shape = shape_of(&config);
    assert_int_equal(stages_of(stage, &config, &arch, &shape), STATUS_OK);
    assert_true(stage[0].blocks > stage[1].blocks);
    config_free(&config);
}

static void expect_refused(const char *const *overrides, const char *part)
{
    struct config config;
    struct architecture arch;
    load(&config, &arch, overrides);
    assert_int_equal(stages_check(&config), STATUS_USAGE);
    if (strstr(status_message(), part) == NULL) {
        fail_msg("'%s' lacks '%s'", status_message(), part);
    }
    config_free(&config);
}

static void test_refused(void **state)
{
    (void)state;
    static const char *const many[TINY_OVERRIDES] = {"parallel.pp=4"},
                             *const thin[TINY_OVERRIDES] = {"parallel.pp=2",
                                                            "parallel.virtual_stages=2"},
                             *const none[TINY_OVERRIDES] = {"parallel.pp=2",
                                                            "parallel.stages=[3,0]"},
                             *const few[TINY_OVERRIDES] = {"parallel.pp=2",
                                                           "parallel.stages=[1,1]"},
                             *const apart[TINY_OVERRIDES] = {"parallel.pp=2",
                                                             "parallel.stages=[3,1]",
                                                             "model.num_nextn_predict_layers=1"};
    expect_refused(many, "makes 4 stages, more than the model's 3 layers");
    expect_refused(thin, "parallel.virtual_stages 2 makes 4 stages");
    expect_refused(none, "stage 0 has 3 blocks from 0 on: every stage needs one");
    expect_refused(few, "has 2 blocks, the model 3");
    expect_refused(apart, "the last one the last of 3 layers");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_balance),
        cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
