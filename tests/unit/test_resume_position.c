/* resume: schedules go on where as many tokens are behind, to less than one sample. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "trainer/resume.h"

static void test_position(void **state)
{
    (void)state;
    for (int64_t from = 1; from <= 40; from++) {
        for (int64_t to = 1; to <= 40; to++) {
            for (int64_t position = 0; position < 300; position += 7) {
                const int64_t next = resume_position(position, from, to);
                assert_true(next * to >= position * from);
                assert_true(next == 0 || (next - 1) * to < position * from);
                assert_true(from != to || next == position);
            }
        }
    }
    assert_int_equal(resume_position(176, 32, 48), 118);
    assert_int_equal(resume_position((int64_t)1 << 50, 1 << 17, 1 << 12), (int64_t)1 << 55);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_position)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
