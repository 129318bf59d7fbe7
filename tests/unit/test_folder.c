/* folder: names that no new folder can have, and what a killed maker leaves to the next one. */
#include "unit/scratch.h"

#include "kernels/base/folder.h"

static enum status make(void)
{
    struct folder folder;
    TRY(folder_name(&folder, "deep/x/"));
    TRY(folder_begin(&folder));
    TRY(io_write_file("deep/.tmp-x/file", "text", 4));
    return folder_publish(&folder);
}

static void test_names(void **state)
{
    (void)state;
    static const char *const good[][3] = {{"x", ".", "x"},        {"x/", ".", "x"},
                                          {"x//", ".", "x"},      {"a/b///", "a/", "a/b"},
                                          {"/x/", "/", "/x"},     {"empty/", ".", "empty"},
                                          {"../x", "../", "../x"}};
    static const char *const bad[] = {"", "/", "//", ".", "./", "..", "a/..", "a/./"};
    struct folder folder;
    assert_int_equal(io_make_dir("empty"), STATUS_OK);
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_int_equal(folder_name(&folder, good[i][0]), STATUS_OK);
        assert_string_equal(folder.parent, good[i][1]);
        assert_string_equal(folder.place, good[i][2]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(folder_name(&folder, bad[i]), STATUS_USAGE);
        expect_message("is no name for a new folder");
    }
    put("file", "");
    assert_int_equal(io_make_dir("full/x"), STATUS_OK);
    assert_int_equal(symlink("nowhere", "link"), 0);
    for (int i = 0; i < 3; i++) {
        static const char *const taken[] = {"file", "full/", "link"};
        assert_int_equal(folder_name(&folder, taken[i]), STATUS_USAGE);
        expect_message("is there already");
    }
}

static void test_killed_makers_leave_a_clean_start(void **state)
{
    (void)state;
    int64_t k = 1;
    for (; killed(make, IO_FAULT_KILL_AFTER, k); k++) {
        if (!io_exists("deep/x")) {
            assert_false(killed(make, IO_FAULT_NONE, 0));
        }
        assert_true(io_exists("deep/x/file"));
        assert_int_equal(io_remove_tree("deep/x"), STATUS_OK);
        assert_false(killed(make, IO_FAULT_NONE, 0)); /* takes what is left of the lock over */
        assert_false(io_exists("deep/.tmp-x"));
        assert_false(io_exists("deep/.tmp-x.lock"));
        assert_int_equal(io_remove_tree("deep"), STATUS_OK);
    }
    assert_true(k > 8);
}

static void test_one_maker_at_a_time(void **state)
{
    (void)state;
    struct folder one, two;
    assert_int_equal(folder_name(&one, "x"), STATUS_OK);
    assert_int_equal(folder_name(&two, "x/"), STATUS_OK);
    assert_int_equal(folder_begin(&one), STATUS_OK);
    assert_int_equal(folder_begin(&two), STATUS_USAGE);
    expect_message("x: another process is making it");
    folder_drop(&two);
    assert_true(io_exists(".tmp-x"));
    enum status ignored = status_fail(STATUS_DATA, "the reason");
    (void)ignored;
    folder_drop(&one);
    expect_message("the reason");
    assert_false(io_exists(".tmp-x"));
    assert_int_equal(folder_begin(&two), STATUS_OK);
    assert_int_equal(folder_publish(&two), STATUS_OK);
    folder_drop(&two);
    assert_true(io_exists("x"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_names),
        SCRATCH_TEST(test_killed_makers_leave_a_clean_start),
        SCRATCH_TEST(test_one_maker_at_a_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
