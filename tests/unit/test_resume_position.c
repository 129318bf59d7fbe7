/* resume: no token of an epoch is seen twice for another length of samples, and less than one
 * sample is skipped. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "trainer/resume.h"

static void test_position(void **state)
{
    (void)state;
    const int64_t tokens = 1000;
    for (int64_t from = 1; from <= 40; from++) {
        for (int64_t to = 1; to <= 40; to++) {
            const int64_t samples = tokens / from, again = tokens / to;
            for (int64_t position = 0; position < 3 * samples; position += 7) {
                const int64_t epoch = position / samples,
                              next = resume_position(position, tokens, from, to);
                const int64_t consumed = position % samples * from;
                const int64_t begin = (next - epoch * again) * to;
                if (begin < consumed) { /* only at the end of an epoch, whose rest is no sample */
                    assert_true(next == (epoch + 1) * again && tokens - consumed < to + from);
                } else {
                    assert_true(begin - consumed < to);
                }
                assert_true(from != to || next == position);
            }
        }
    }
    assert_int_equal(resume_position(176, 32641, 32, 48), 118);
    assert_int_equal(resume_position(5, 10, 20, 5), 5); /* no sample of that length is there */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_position)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
