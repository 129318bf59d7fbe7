/* json_out: whatever is printed is JSON. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "kernels/base/json_out.h"

static const struct {
    double value;
    int digits;
    const char *expected;
} numbers[] = {
    {0.1, 17, "0.10000000000000001"},
    {0.1, 6, "0.1"},
    {-2, 17, "-2"},
    {1e300, 6, "1e+300"},
    {(double)INFINITY, 17, "null"},
    {-HUGE_VAL, 6, "null"},
    {(double)NAN, 17, "null"},
};

static void test_numbers(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        char *text = NULL, expected[64];
        size_t bytes = 0;
        FILE *out = open_memstream(&text, &bytes);
        json_out_number(out, ",\"x\":", numbers[i].value, numbers[i].digits);
        fclose(out);
        snprintf(expected, sizeof expected, ",\"x\":%s", numbers[i].expected);
        assert_string_equal(text, expected);
        free(text);
    }
}

/* NULL: reads back as itself. */
static const struct {
    const char *text, *reads;
} texts[] = {
    {"", NULL},
    {"runs/quickstart", NULL},
    {"a \"b\" \\ c", NULL},
    {"line\nbreak\ttab\x01\x1f\x7f", NULL},
    {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80", NULL},
    {"a\xff"
     "b",
     "a\xef\xbf\xbd"
     "b"},
    {"\xc3", "\xef\xbf\xbd"},
    {"\xe2\x82", "\xef\xbf\xbd\xef\xbf\xbd"},
    {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},
    {"\xe0\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
    {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"},
};

static void test_texts(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        char *text = NULL;
        size_t bytes = 0;
        json_error_t problem;
        FILE *out = open_memstream(&text, &bytes);
        json_out_text(out, "{\"x\":", texts[i].text);
        fputs("}", out);
        fclose(out);
        json_t *json = json_loads(text, 0, &problem);
        if (json == NULL) {
            fail_msg("%s: %s", text, problem.text);
        }
        assert_string_equal(json_string_value(json_object_get(json, "x")),
                            texts[i].reads != NULL ? texts[i].reads : texts[i].text);
        json_decref(json);
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_numbers),
                                       cmocka_unit_test(test_texts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
