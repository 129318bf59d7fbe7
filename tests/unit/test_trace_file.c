/* trace_file, trace_diff: what comes first, what is only in one, what was kept; files whose writer
 * was killed, and bytes that were changed. */
#include "unit/scratch.h"

#include <math.h>

#include "checkpoints/trace_diff.h"
#include "kernels/base/rng.h"

enum { NAMES = 4, ROWS = 20, COLS = 10, COUNT = ROWS * COLS, UNITS = 2 };
static char names[NAMES][TRACE_NAME_BYTES] = {"first", "second", "third", "weight"};

/* What a file is to hold, and where it departs from the others. */
struct spec {
    int64_t from, steps;
    int64_t kept;       /* of COUNT */
    int64_t step, unit; /* here, unit -2: nowhere, */
    int64_t name;       /* this tensor's element */
    int64_t element;    /* is other by 1 */
    int64_t left_out;   /* name that is not in the file; -1: none */
    int64_t rows;       /* of "third" */
};
static const struct spec plain = {
    .from = 1, .steps = 3, .kept = COUNT, .unit = -2, .left_out = -1, .rows = ROWS};

static void write_tensor(struct trace_file *file, const struct spec *spec, int64_t step,
                         int64_t unit, int64_t name)
{
    float data[COUNT], kept[COUNT];
    for (int64_t i = 0; i < COUNT; i++) {
        data[i] = (float)(step * 1000 + name * 100 + unit * 10 + i);
    }
    if (step == spec->step && unit == spec->unit && name == spec->name) {
        data[spec->element] += 1;
    }
    for (int64_t i = 0; i < spec->kept; i++) {
        kept[i] = data[spec->kept == COUNT ? i : trace_position(COUNT, i)];
    }
    struct trace_record record = {.unit = unit,
                                  .layer = name,
                                  .name = name,
                                  .dtype = DTYPE_F32,
                                  .rows = name == 2 ? spec->rows : ROWS,
                                  .cols = name == 2 ? COUNT / spec->rows : COLS,
                                  .hash = trace_hash(data, DTYPE_F32, 0, COUNT),
                                  .kept = spec->kept};
    if (name != spec->left_out) {
        assert_int_equal(
            trace_file_append(file, &record, 1, kept, spec->kept * (int64_t)sizeof *kept),
            STATUS_OK);
    }
}

static void write_step(struct trace_file *file, const struct spec *spec, int64_t step)
{
    for (int64_t unit = 0; unit < UNITS; unit++) {
        for (int64_t name = 0; name < NAMES - 1; name++) {
            write_tensor(file, spec, step, unit, name);
        }
    }
    write_tensor(file, spec, step, -1, NAMES - 1);
    assert_int_equal(trace_file_end_step(file, step, false), STATUS_OK);
}

static void write_file(const char *path, const struct spec *spec)
{
    struct trace_file *file = NULL;
    remove(path);
    assert_int_equal(trace_file_create(&file, path, names, NAMES), STATUS_OK);
    write_tensor(file, spec, spec->from - 1, -1, NAMES - 1);
    assert_int_equal(trace_file_end_step(file, spec->from - 1, true), STATUS_OK);
    for (int64_t step = spec->from; step < spec->from + spec->steps; step++) {
        write_step(file, spec, step);
    }
    assert_int_equal(trace_file_close(file), STATUS_OK);
}

static struct trace_difference compare(const struct spec *a, const struct spec *b)
{
    struct trace_difference d;
    write_file("a.h5", a);
    write_file("b.h5", b);
    assert_int_equal(trace_diff(&d, "a.h5", "b.h5"), STATUS_OK);
    return d;
}

static void test_same(void **state)
{
    (void)state;
    struct spec other = plain;
    other.from = 2;
    other.kept = 0;
    const struct trace_difference d = compare(&plain, &other);
    assert_int_equal(d.found, TRACE_SAME);
    assert_int_equal(d.steps, 3);
    assert_int_equal(d.first_step, 1); /* what step 2 started from */
    assert_int_equal(d.last_step, 3);
    other.from = 5;
    struct trace_difference none;
    write_file("b.h5", &other);
    assert_int_equal(trace_diff(&none, "a.h5", "b.h5"), STATUS_DATA);
}

static void test_values(void **state)
{
    (void)state;
    struct spec other = plain;
    other.step = 2;
    other.unit = 1;
    other.name = 1;
    other.element = 37;
    struct trace_difference d = compare(&plain, &other);
    assert_int_equal(d.found, TRACE_VALUES);
    assert_int_equal(d.step, 2);
    assert_int_equal(d.unit, 1);
    assert_string_equal(d.name, "second");
    assert_int_equal(d.compared, COUNT);
    assert_int_equal(d.different, 1);
    assert_int_equal(d.first, 37);
    assert_true(d.first_a == 2147 && d.first_b == 2148 && d.most == 1); /* step, name, unit, i */
    assert_true(d.relative > 0 && d.relative < 1e-4);
    assert_int_equal(d.tensors, UNITS * (NAMES - 1) + 1);
    assert_int_equal(d.tensors_different, 1);
    /* a sample that has the element, on one side; then one that has not */
    other.kept = TRACE_SAMPLES;
    other.element = trace_position(COUNT, 9);
    d = compare(&plain, &other);
    assert_int_equal(d.compared, TRACE_SAMPLES);
    assert_int_equal(d.first, other.element);
    other.element++;
    d = compare(&other, &plain);
    assert_int_equal(d.found, TRACE_VALUES);
    assert_int_equal(d.different, 0);
}

/* The earliest in the order of computation, not in that of the file. */
static void test_order(void **state)
{
    (void)state;
    struct spec a = plain, b = plain;
    a.step = b.step = 2;
    a.unit = 0;
    a.name = 2;
    b.unit = 1;
    b.name = 0;
    const struct trace_difference d = compare(&a, &b);
    assert_int_equal(d.unit, 1);
    assert_string_equal(d.name, "first");
    assert_int_equal(d.tensors_different, 2);
}

static void test_other_tensors(void **state)
{
    (void)state;
    struct spec other = plain;
    other.rows = COLS;
    assert_int_equal(compare(&plain, &other).found, TRACE_SHAPE);
    other = plain;
    other.left_out = 1;
    struct trace_difference d = compare(&plain, &other);
    assert_int_equal(d.found, TRACE_ONLY_A);
    assert_string_equal(d.name, "second");
    d = compare(&other, &plain);
    assert_int_equal(d.found, TRACE_ONLY_B);
    assert_int_equal(d.tensors_different, UNITS);
}

/* A child writes steps until it is killed. Whole steps read as they were written. */
static void test_kills(void **state)
{
    (void)state;
    enum { KILLS = 6 };
    struct spec spec = plain;
    for (int kill_number = 0; kill_number < KILLS; kill_number++) {
        struct trace_difference d;
        int pipes[2];
        char byte;
        remove("a.h5");
        assert_int_equal(pipe(pipes), 0);
        const pid_t child = fork();
        if (child == 0) {
            struct trace_file *file = NULL;
            bool good = trace_file_create(&file, "a.h5", names, NAMES) == STATUS_OK;
            for (int64_t step = 1; good; step++) {
                write_step(file, &spec, step);
                good = write(pipes[1], &byte, 1) == 1;
            }
            _exit(1);
        }
        close(pipes[1]);
        for (int i = 0; i < 3 + 5 * kill_number; i++) {
            assert_int_equal(read(pipes[0], &byte, 1), 1);
        }
        kill(child, SIGKILL); /* wherever the next step is */
        waitpid(child, NULL, 0);
        close(pipes[0]);
        spec.steps = 3 + 5 * kill_number;
        write_file("b.h5", &spec);
        assert_int_equal(trace_diff(&d, "a.h5", "b.h5"), STATUS_OK);
        assert_int_equal(d.found, TRACE_SAME);
        assert_true(d.last_step >= spec.steps);
    }
}

/* Whatever bytes are other, the answer is one of the statuses, never a crash. */
static void test_damage(void **state)
{
    (void)state;
    enum { TRIES = 150 };
    static char bytes[1 << 21];
    write_file("b.h5", &plain);
    FILE *in = fopen("b.h5", "rb");
    const size_t size = fread(bytes, 1, sizeof bytes, in);
    fclose(in);
    assert_true(size > 0 && size < sizeof bytes);
    for (uint64_t i = 0; i < TRIES; i++) {
        struct trace_difference d;
        const uint64_t r = rng_subkey(2, i);
        const size_t at = (size_t)(r >> 8) % (i % 2 == 0 ? 4096 : size);
        const char old = bytes[at];
        bytes[at] = (char)(bytes[at] ^ (char)(1 + r % 255));
        FILE *out = fopen("a.h5", "wb");
        assert_int_equal(fwrite(bytes, 1, i % 7 == 6 ? at : size, out), i % 7 == 6 ? at : size);
        fclose(out);
        bytes[at] = old;
        const enum status status = trace_diff(&d, "a.h5", "b.h5");
        assert_true(status == STATUS_OK || status == STATUS_DATA || status == STATUS_RESOURCE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_same),          SCRATCH_TEST(test_values), SCRATCH_TEST(test_order),
        SCRATCH_TEST(test_other_tensors), SCRATCH_TEST(test_kills),  SCRATCH_TEST(test_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
