/* compose: what the tokenizers library (0.23.3) makes of the same texts, those with characters
 * younger than its tables too. */
#include "unit/scratch.h"

#include "data/compose.h"

static void test_as_the_library(void **state)
{
    (void)state;
    static const struct {
        const char *text, *composed; /* NULL: unchanged */
    } cases[] = {
        {"", NULL},
        {"plain \xc3\xa9", NULL},
        {"e\xcc\x81", "\xc3\xa9"},
        {"\xe0\xbb\x88\xe0\xba\xb8",
         "\xe0\xba\xb8\xe0\xbb\x88"},       /* U+0EC8 U+0EB8: marks in order */
        {"\xe0\xbb\x88\xe0\xba\xba", NULL}, /* U+0EBA is of Unicode 12 */
        {"e\xe0\xa2\x97\xcc\x81", NULL},    /* U+0897 of 16 */
        {"a\xcd\x85\xe0\xba\xba\xcc\xb4", NULL},
        {"\xe1\x84\x80\xe1\x85\xa1\xe1\x86\xa8", "\xea\xb0\x81"},
        {"\xf0\x91\xa4\xb5\xf0\x91\xa4\xb0", NULL}, /* U+11935 U+11930 of 13 */
        {"\xf0\x91\x82\x99\xf0\x91\x82\xba", "\xf0\x91\x82\x9a"},
        {"\xe2\x84\xab\xe0\xb0\xbc\xcc\xa3", "\xc3\x85\xe0\xb0\xbc\xcc\xa3"}, /* U+0C3C of 14 */
    };
    struct byte_list out = {0};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *expected = cases[i].composed != NULL ? cases[i].composed : cases[i].text;
        out.count = 0;
        assert_int_equal(byte_list_add(&out, "", 0), STATUS_OK);
        assert_int_equal(compose(&out, cases[i].text, strlen(cases[i].text)), STATUS_OK);
        assert_string_equal(out.data, expected);
        assert_true(cases[i].composed == NULL ||
                    compose_changes(cases[i].text, strlen(cases[i].text)));
    }
    byte_list_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_as_the_library)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
