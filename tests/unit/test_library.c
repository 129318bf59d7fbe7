/* library: found in the program, in a file, or not, with a line that says why. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/base/library.h"

static void test_program_first(void **state)
{
    (void)state;
    void (*length)(void) = NULL;
    const struct library_symbol symbols[] = {{"strlen", &length}};
    const char *const names[] = {"libswitchyard-none.so.1", NULL};
    void *handle = &length;
    assert_int_equal(library_open(&handle, names, symbols, 1), STATUS_OK);
    assert_null(handle);
    assert_int_equal(((size_t(*)(const char *))length)("four"), 4);
    library_close(handle);
}

/* A C program does not hold the C++ runtime's symbols itself, and where oneDNN is, the library is
 * there. */
static const char *const runtime[] = {"libswitchyard-none.so.1", "libstdc++.so.6", NULL};

static void test_next_name(void **state)
{
    (void)state;
    void (*begin)(void) = NULL;
    const struct library_symbol symbols[] = {{"__cxa_begin_catch", &begin}};
    void *handle = NULL;
    assert_int_equal(library_open(&handle, runtime, symbols, 1), STATUS_OK);
    assert_non_null(begin);
    library_close(handle);
}

static void test_missing_library(void **state)
{
    (void)state;
    void (*function)(void) = NULL;
    const struct library_symbol symbols[] = {{"switchyard_no_such_symbol", &function}};
    const char *const names[] = {"libswitchyard-none.so.2", "libswitchyard-none.so.1", NULL};
    void *handle = &function;
    assert_int_equal(library_open(&handle, names, symbols, 1), STATUS_RESOURCE);
    assert_null(handle);
    assert_null(function);
    assert_non_null(strstr(status_message(), "libswitchyard-none.so.2, libswitchyard-none.so.1"));
    assert_non_null(strstr(status_message(), "No such file"));
}

/* The reason is the library that is there, not the name after it. Nothing is filled by halves. */
static void test_missing_symbol(void **state)
{
    (void)state;
    void (*there)(void) = NULL, (*missing)(void) = NULL;
    const struct library_symbol symbols[] = {{"__cxa_begin_catch", &there},
                                             {"switchyard_no_such_symbol", &missing}};
    const char *const names[] = {"libstdc++.so.6", "libswitchyard-none.so.1", NULL};
    void *handle = NULL;
    assert_int_equal(library_open(&handle, names, symbols, 2), STATUS_RESOURCE);
    assert_null(there);
    assert_null(missing);
    assert_non_null(strstr(status_message(), "libstdc++.so.6 has no switchyard_no_such_symbol"));
    assert_null(strstr(status_message(), "\n"));
}

/* A file of that name that is no library: the loader's own words. */
static void test_broken_library(void **state)
{
    (void)state;
    void (*function)(void) = NULL;
    const struct library_symbol symbols[] = {{"switchyard_no_such_symbol", &function}};
    const char *const names[] = {SOURCE_DIR "/LICENSE", "libswitchyard-none.so.1", NULL};
    void *handle = NULL;
    assert_int_equal(library_open(&handle, names, symbols, 1), STATUS_RESOURCE);
    assert_null(strstr(status_message(), "No such file"));
    assert_non_null(strstr(status_message(), "invalid ELF header"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_program_first),   cmocka_unit_test(test_next_name),
        cmocka_unit_test(test_missing_library), cmocka_unit_test(test_missing_symbol),
        cmocka_unit_test(test_broken_library),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
