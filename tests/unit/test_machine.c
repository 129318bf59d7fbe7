/* Memory limits of control groups, as doctor finds them. */
#include "unit/scratch.h"

#include <math.h>

#include "trainer/machine.h"

static const double GIB = 1073741824.0;

static void group(const char *folder, const char *file, const char *text)
{
    char path[256];
    assert_int_equal(io_make_dir(folder), STATUS_OK);
    snprintf(path, sizeof path, "%s/%s", folder, file);
    put(path, text);
}

static void test_none(void **state)
{
    (void)state;
    assert_true(isinf(machine_memory_limit("."))); /* no control groups at all */
    group("proc/self", "cgroup", "0::/\n");
    assert_true(isinf(machine_memory_limit(".")));
    group("sys/fs/cgroup", "memory.max", "max\n");
    assert_true(isinf(machine_memory_limit(".")));
    group("proc/self", "cgroup", "nonsense\n::\n:\n\n");
    assert_true(isinf(machine_memory_limit(".")));
}

/* A limit counts wherever it stands between the root and the process's own group. */
static void test_version_2(void **state)
{
    (void)state;
    group("proc/self", "cgroup", "0::/slurm/job_7/step_0\n");
    group("sys/fs/cgroup/slurm/job_7/step_0", "memory.max", "max\n");
    group("sys/fs/cgroup/slurm/job_7", "memory.max", "4294967296\n");
    group("sys/fs/cgroup/slurm", "memory.max", "8589934592\n");
    assert_true(machine_memory_limit(".") == 4 * GIB);
    group("sys/fs/cgroup/slurm/job_7/step_0", "memory.max", "1073741824\n");
    assert_true(machine_memory_limit(".") == GIB);
    group("sys/fs/cgroup", "memory.max", "536870912\n"); /* a container's, seen as the root */
    assert_true(machine_memory_limit(".") == GIB / 2);
    group("sys/fs/cgroup/slurm/job_8", "memory.max", "1\n"); /* another job's */
    assert_true(machine_memory_limit(".") == GIB / 2);
}

static void test_version_1(void **state)
{
    (void)state;
    group("proc/self", "cgroup",
          "9:name=systemd:/\n5:devices:/d\n4:cpu,memory:/docker/abc\n0::/\n");
    group("sys/fs/cgroup/memory", "memory.limit_in_bytes", "9223372036854771712\n");
    group("sys/fs/cgroup/memory/docker/abc", "memory.limit_in_bytes", "2147483648\n");
    assert_true(machine_memory_limit(".") == 2 * GIB);
    /* inside a container its own group is mounted as the root */
    assert_int_equal(io_remove_tree("sys/fs/cgroup/memory/docker"), STATUS_OK);
    group("sys/fs/cgroup/memory", "memory.limit_in_bytes", "3221225472\n");
    assert_true(machine_memory_limit(".") == 3 * GIB);
    group("sys/fs/cgroup/unified", "memory.max", "1073741824\n"); /* both versions at once */
    assert_true(machine_memory_limit(".") == GIB);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_none),
        SCRATCH_TEST(test_version_2),
        SCRATCH_TEST(test_version_1),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
