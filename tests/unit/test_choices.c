/* choices: questions are answered, or refused where the model says nothing. */
#include "unit/scratch.h"

#include <math.h>
#include <stdio.h>

#include "tiny_model.h"
#include "trainer/choices.h"

static const char QUESTIONS[] =
    "{\"question\": [1, 2], \"choices\": [[3], [4, 5]], \"answer\": 0}\n"
    "\n"
    "{\"question\": [6], \"choices\": [[7], [60]], \"answer\": 1}\n";

struct fixture {
    struct comm world;
    struct tiny tiny;
    struct choices choices;
};

static void check(enum status status)
{
    if (status != STATUS_OK) {
        fail_msg("status %d: %s", status, status_message());
    }
}

static void fixture_open(struct fixture *f)
{
    static const char *const overrides[TINY_OVERRIDES] = {NULL};
    put("questions.jsonl", QUESTIONS);
    check(comm_open(&f->world, "self"));
    check(tiny_open(&f->tiny, &f->world, TINY_MIXTRAL, overrides));
    check(choices_read(&f->choices, "questions.jsonl", NULL, 61, 8));
}

static void fixture_close(struct fixture *f)
{
    choices_free(&f->choices);
    tiny_close(&f->tiny);
    comm_close(&f->world);
}

static void test_lines(void **state)
{
    static struct fixture f;
    struct choices_result result;
    (void)state;
    fixture_open(&f);
    assert_int_equal(f.choices.question_count, 2);
    assert_int_equal(f.choices.questions[0].line, 1);
    assert_int_equal(f.choices.questions[1].line, 3);
    check(choices_score(&f.tiny.model, &f.choices, &result));
    assert_true(result.correct >= 0 && result.correct <= 2);
    fixture_close(&f);
}

/* The embedding of one token of one choice: no other question sees it. */
static void expect_diverged(struct fixture *f, int64_t token, float value, const char *where)
{
    struct model *model = &f->tiny.model;
    const int64_t width = model->arch.width;
    float *row = (float *)model->group[PARAM_DENSE].weights + model->params.embed + token * width;
    const float kept = *row;
    struct choices_result result;
    *row = value;
    assert_int_equal(choices_score(model, &f->choices, &result), STATUS_DIVERGED);
    expect_message(where);
    *row = kept;
    check(choices_score(model, &f->choices, &result));
}

static void test_not_finite(void **state)
{
    static struct fixture f;
    (void)state;
    fixture_open(&f);
    expect_diverged(&f, 6, NAN, "questions.jsonl:3: ");
    expect_diverged(&f, 6, INFINITY, "questions.jsonl:3: ");
    expect_diverged(&f, 4, NAN, "questions.jsonl:1: "); /* its second choice only */
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {SCRATCH_TEST(test_lines), SCRATCH_TEST(test_not_finite)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
