/* arena: measured, then reserved from a source of memory. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kernels/base/arena.h"

static void *host_alloc(struct device *device, size_t bytes)
{
    (void)device;
    void *data = bytes > (size_t)1 << 50 ? NULL : aligned_alloc(ARENA_ALIGNMENT, bytes);
    return data == NULL ? NULL : memset(data, 0, bytes);
}

static void host_free(struct device *device, void *data, size_t bytes)
{
    (void)device;
    (void)bytes;
    free(data);
}

static const struct arena_source host_memory = {.alloc = host_alloc, .free = host_free};

enum { LAYOUT_PARTS = 4 };

static void lay_out(struct arena *arena, char *parts[LAYOUT_PARTS])
{
    static const size_t bytes[LAYOUT_PARTS] = {1, 256, 0, 257};
    for (int i = 0; i < LAYOUT_PARTS; i++) {
        parts[i] = arena_alloc(arena, bytes[i]);
    }
}

static void test_arena_measures_then_reserves(void **state)
{
    (void)state;
    struct arena arena = {.source = host_memory};
    char *parts[LAYOUT_PARTS];
    lay_out(&arena, parts);
    assert_int_equal(arena.used, 256 + 256 + 0 + 512);
    for (int i = 0; i < LAYOUT_PARTS; i++) {
        assert_null(parts[i]);
    }
    assert_int_equal(arena_reserve(&arena, "test"), STATUS_OK);
    assert_int_equal(arena.capacity, 1024);
    assert_int_equal(arena.used, 0);
    lay_out(&arena, parts);
    assert_int_equal(arena.used, arena.capacity);
    assert_ptr_equal(parts[1], parts[0] + 256);
    assert_ptr_equal(parts[3], parts[2]);
    for (int i = 0; i < LAYOUT_PARTS; i++) {
        assert_int_equal((uintptr_t)parts[i] % ARENA_ALIGNMENT, 0);
    }
    for (size_t i = 0; i < arena.capacity; i++) {
        assert_int_equal(arena.base[i], 0);
    }
    memset(arena.base, 1, arena.capacity); /* all of it is writable */
    arena_free(&arena);
    arena_free(&arena);
    assert_null(arena.base);
    assert_int_equal(arena.used, 0);
}

static void test_arena_may_be_empty(void **state)
{
    (void)state;
    struct arena arena = {.source = host_memory};
    assert_int_equal(arena_reserve(&arena, "nothing"), STATUS_OK);
    assert_non_null(arena_alloc(&arena, 0));
    arena_free(&arena);
}

static void test_arena_names_what_does_not_fit(void **state)
{
    (void)state;
    struct arena arena = {.source = host_memory};
    assert_null(arena_alloc(&arena, (size_t)1 << 60));
    assert_int_equal(arena_reserve(&arena, "the moments"), STATUS_RESOURCE);
    assert_non_null(strstr(status_message(), "the moments"));
    assert_null(arena.base);
    arena_free(&arena);
}

static void test_arena_overrun_is_a_bug(void **state)
{
    (void)state;
    struct arena arena = {.source = host_memory};
    assert_null(arena_alloc(&arena, 256));
    assert_int_equal(arena_reserve(&arena, "test"), STATUS_OK);
    fflush(NULL);
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        if (freopen("/dev/null", "w", stderr) == NULL) {
            _exit(2);
        }
        (void)arena_alloc(&arena, 257);
        _exit(0); /* reached only when the assert is gone */
    }
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFSIGNALED(how) && WTERMSIG(how) == SIGABRT);
    arena_free(&arena);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arena_measures_then_reserves),
        cmocka_unit_test(test_arena_may_be_empty),
        cmocka_unit_test(test_arena_names_what_does_not_fit),
        cmocka_unit_test(test_arena_overrun_is_a_bug),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
