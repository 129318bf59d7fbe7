/* aside: the first name that is free, whatever slashes the path ends in; nothing there is fine. */
#include "unit/scratch.h"

#include "kernels/base/aside.h"

static void expect_moved(const char *path, const char *expected)
{
    char old[ASIDE_PATH_BYTES];
    assert_int_equal(aside_move(path, old), STATUS_OK);
    assert_string_equal(old, expected);
    assert_true(expected[0] == '\0' || io_exists(expected));
    assert_false(io_exists(path));
}

static void test_names(void **state)
{
    (void)state;
    static const char *const paths[] = {"run", "run/", "run//"}, *const kept[] = {"run.old-1",
                                                                                  "run.old-2",
                                                                                  "run.old-3"};
    expect_moved("run", "");
    for (int i = 0; i < 3; i++) {
        assert_int_equal(io_make_dir("run/checkpoints"), STATUS_OK);
        expect_moved(paths[i], kept[i]);
    }
    put("file", "text");
    put("file.old-1", "older");
    expect_moved("file", "file.old-2");
}

static void test_too_long(void **state)
{
    (void)state;
    char path[ASIDE_PATH_BYTES] = "", old[ASIDE_PATH_BYTES];
    while (strlen(path) + sizeof "./file" < sizeof path) {
        strcat(path, "./");
    }
    strcat(path, "file");
    put("file", "text");
    assert_int_equal(aside_move(path, old), STATUS_IO);
    expect_message("path too long");
    assert_true(io_exists(path));
}

int main(void)
{
    const struct CMUnitTest tests[] = {SCRATCH_TEST(test_names), SCRATCH_TEST(test_too_long)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
