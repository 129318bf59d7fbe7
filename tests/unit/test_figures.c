/* Numbers as people read them. */
#include "unit/scratch.h"

#include "trainer/figures.h"

static void test_texts(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *text;
    } shorts[] = {{0, "0"},       {0.003, "0.003"},  {1e-5, "1e-05"}, {999.9, "999.9"},
                  {999.97, "1k"}, {12345, "12.35k"}, {-2e7, "-20M"},  {3e12, "3T"}},
      durations[] = {{-1, "0:00"},      {59.6, "1:00"},        {299, "4:59"},
                     {3899, "1:04:59"}, {86399.4, "23:59:59"}, {183600, "2d 3h"}};
    char text[FIGURE_BYTES];
    for (size_t i = 0; i < sizeof shorts / sizeof shorts[0]; i++) {
        assert_string_equal(figure_short(text, shorts[i].value), shorts[i].text);
    }
    for (size_t i = 0; i < sizeof durations / sizeof durations[0]; i++) {
        assert_string_equal(figure_duration(text, durations[i].value), durations[i].text);
    }
}

static void test_sort(void **state)
{
    (void)state;
    double value[] = {3, -1, 2, -1};
    figure_sort(value, 4);
    assert_true(value[0] == -1 && value[1] == -1 && value[2] == 2 && value[3] == 3);
    figure_sort(value, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_texts), cmocka_unit_test(test_sort)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
