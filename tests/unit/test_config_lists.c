/* config: keys that take lists, and the relations of the keys around them: schedule, batch ramp. */
#include "unit/config_text.h"

static const char *item(const struct config *config, int64_t index)
{
    return config->optimizer.freeze.item[index];
}

static void test_lists_of_a_file(void **state)
{
    (void)state;
    static const char *const lists[] = {
        "optimizer: {freeze: [\"*.gate*\", 'a,b', [plain]]}\n",
        "optimizer: {freeze: [\"*.gate*\", 'a,b', plain]}\nschedule: {milestones: [0.6, 9e-1]}\n",
        "optimizer:\n  freeze:\n    - \"*.gate*\"\n    - a,b\n    - plain\n"
        "schedule:\n  milestones:\n    - 0.6\n    - 0.9\n",
    };
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        struct config config;
        char text[1024];
        snprintf(text, sizeof text, "%s%s", BASE, lists[i]);
        const enum status status = parse(&config, text, strlen(text));
        assert_int_equal(status, i == 0 ? STATUS_USAGE : STATUS_OK);
        if (i > 0) {
            assert_int_equal(config.optimizer.freeze.count, 3);
            assert_string_equal(item(&config, 0), "*.gate*");
            assert_string_equal(item(&config, 1), "a,b"); /* commas part overrides only */
            assert_string_equal(item(&config, 2), "plain");
            assert_int_equal(config.schedule.milestones.count, 2);
            assert_true(config.schedule.milestones.item[0] == 0.6);
            assert_true(config.schedule.milestones.item[1] == 0.9);
        }
        config_free(&config);
        config_free(&config);
        assert_int_equal(config.optimizer.freeze.count, 0);
    }
}

static void test_lists_of_overrides(void **state)
{
    (void)state;
    static const struct {
        const char *override;
        int64_t count;
        const char *items[3];
    } cases[] = {
        {"optimizer.freeze=a", 1, {"a"}},
        {"optimizer.freeze=a,b , c", 3, {"a", "b", "c"}},
        {"optimizer.freeze=[a*,b?]", 2, {"a*", "b?"}},
        {"optimizer.freeze=layers.[01].*", 1, {"layers.[01].*"}},
        {"optimizer.freeze=[a", 1, {"[a"}},
        {"optimizer.freeze=null", 0, {NULL}},
        {"optimizer.freeze=", 0, {NULL}},
        {"optimizer.freeze=[]", 0, {NULL}},
        {"optimizer.freeze=[ ]", 0, {NULL}},
        {"optimizer.freeze=[*a,*b]", 2, {"*a", "*b"}},
        {"optimizer.freeze=[\"*a\", 'b,c' , d*]", 3, {"*a", "b,c", "d*"}},
        {"optimizer.freeze=\"a,b\"", 1, {"a,b"}},
    };
    struct config config;
    put("base.yaml", BASE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *const overrides[OVERRIDES] = {"optimizer.freeze=x,y,z,w", cases[i].override};
        assert_int_equal(load(&config, overrides), STATUS_OK); /* the last one wins */
        assert_int_equal(config.optimizer.freeze.count, cases[i].count);
        for (int64_t j = 0; j < cases[i].count; j++) {
            assert_string_equal(item(&config, j), cases[i].items[j]);
        }
        config_free(&config);
    }
}

static void test_lists_are_refused(void **state)
{
    (void)state;
    static const struct bad cases[] = {
        {"optimizer: {freeze: {a: b}}\n",
         {"t.yaml:1:21: key 'optimizer.freeze': one value is expected"}},
        {"optimizer: {freeze: [a, {b: c}]}\n", {"key 'optimizer.freeze': item 2 of the list"}},
        {"optimizer: {freeze: [a, \"\"]}\n", {"key 'optimizer.freeze': item 2 is empty"}},
        {"schedule: {milestones: [0.6, x]}\n",
         {"t.yaml:1:24: key 'schedule.milestones': 'x' is not a number"}},
        {"schedule: {milestones: [0.6, \"0.7\"]}\n", {"item 2 of the list is not a number"}},
        {"schedule: {milestones: [0.6, 1.5]}\n", {"1.5 is outside 0 to 1"}},
        {"schedule: {milestones: [nan]}\n", {"'nan' is not a number"}},
        {"schedule: {milestones: [0.6, null]}\n", {"null is not a value here"}},
        {"schedule: {milestones: \"0.6\"}\n", {"is text: write it without quotes"}},
        {"run: {steps: [1, 2]}\n", {"key 'run.steps': one value is expected"}},
    };
    EXPECT_REFUSED(cases);
}

static void test_ramp_of_a_file(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int64_t start, increment, tokens;
    } cases[] = {
        {"batch_ramp: {start: 4, increment: 4, tokens: 1e9}", 4, 4, 1000000000},
        {"batch_ramp: null", 0, 0, 0},
        {"batch_ramp: {start: null, increment: null, tokens: null}", 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        char text[1024];
        snprintf(text, sizeof text, "%.*s, %s}\n", (int)(strrchr(BASE, '}') - BASE), BASE,
                 cases[i].text);
        assert_int_equal(parse(&config, text, strlen(text)), STATUS_OK);
        assert_int_equal(config.train.batch_ramp.start, cases[i].start);
        assert_int_equal(config.train.batch_ramp.increment, cases[i].increment);
        assert_int_equal(config.train.batch_ramp.tokens, cases[i].tokens);
        config_free(&config);
    }
}

static void test_long_lists(void **state)
{
    (void)state;
    struct config config;
    put("base.yaml", BASE);
    for (int count = CONFIG_MOST_ITEMS; count <= CONFIG_MOST_ITEMS + 1; count++) {
        char override[1024] = "optimizer.freeze=a";
        for (int i = 1; i < count; i++) {
            strcat(override, ",a");
        }
        const char *const overrides[OVERRIDES] = {override};
        const bool fits = count == CONFIG_MOST_ITEMS;
        assert_int_equal(load(&config, overrides), fits ? STATUS_OK : STATUS_USAGE);
        if (!fits) {
            expect_message("65 items, at most 64 are taken");
        }
        config_free(&config);
    }
    char override[CONFIG_TEXT_BYTES + 64] = "optimizer.freeze=b,";
    memset(override + strlen(override), 'a', CONFIG_TEXT_BYTES - 2);
    const char *const overrides[OVERRIDES] = {override};
    assert_int_equal(load(&config, overrides), STATUS_USAGE);
    expect_message("longer than 4096 bytes");
    config_free(&config);
}

static void test_relations(void **state)
{
    (void)state;
    static const struct {
        const char *overrides[OVERRIDES];
        const char *part; /* NULL: accepted */
    } cases[] = {
        {{"schedule.kind=multistep", "schedule.milestones=0.6,0.9"}, NULL},
        {{"schedule.kind=multistep"}, "multistep needs schedule.milestones"},
        {{"schedule.milestones=0.9,0.6"}, "schedule.milestones: 0.6 after 0.9"},
        {{"schedule.milestones=0.6,0.6"}, "0.6 after 0.6"},
        {{"schedule.kind=wsd", "schedule.decay_start=0.5", "schedule.decay_end=0.5"}, NULL},
        {{"schedule.kind=wsd", "schedule.decay_start=0.9", "schedule.decay_end=0.5"},
         "schedule.decay_end 0.5 is before schedule.decay_start 0.9"},
        {{"train.batch_ramp.start=4", "train.batch_ramp.increment=4",
          "train.batch_ramp.tokens=1e6"},
         NULL},
        {{"train.batch_ramp.start=8", "train.batch_ramp.increment=3", "train.batch_ramp.tokens=9"},
         NULL}, /* nothing to grow */
        {{"train.batch_ramp.start=4", "train.batch_ramp.tokens=9"}, "'increment' is missing"},
        {{"train.batch_ramp.increment=4"}, "'start' is missing"},
        {{"train.batch_ramp.start=4", "train.batch_ramp.increment=4"}, "'tokens' is missing"},
        {{"train.batch_ramp.start=12", "train.batch_ramp.increment=4", "train.batch_ramp.tokens=9"},
         "steps of 4 do not lead from start 12 to train.global_batch 8"},
        {{"train.batch_ramp.start=4", "train.batch_ramp.increment=3", "train.batch_ramp.tokens=9"},
         "steps of 3 do not lead from start 4"},
        {{"train.batch_ramp.start=2", "train.batch_ramp.increment=2", "train.batch_ramp.tokens=9"},
         "start 2 or increment 2 is not a multiple of train.micro_batch 4"},
        {{"train.batch_ramp.start=0"}, "0 is outside 1 to"},
        {{"train.batch_ramp.strat=4"}, "did you mean 'train.batch_ramp.start'"},
    };
    put("base.yaml", BASE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        const enum status status = load(&config, cases[i].overrides);
        if (status != (cases[i].part == NULL ? STATUS_OK : STATUS_USAGE)) {
            fail_msg("status %d for %s: %s", status, cases[i].overrides[0], status_message());
        }
        if (cases[i].part != NULL) {
            expect_message(cases[i].part);
        }
        config_free(&config);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists_of_a_file),
        SCRATCH_TEST(test_lists_of_overrides),
        cmocka_unit_test(test_lists_are_refused),
        cmocka_unit_test(test_ramp_of_a_file),
        SCRATCH_TEST(test_long_lists),
        SCRATCH_TEST(test_relations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
