#define _GNU_SOURCE
#include "trainer/machine.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "kernels/base/io.h"
#include "trainer/step.h"

static struct finding *add(struct machine *machine, const char *name, const char *key,
                           double number)
{
    struct finding *finding = &machine->finding[machine->findings++];
    *finding = (struct finding){.name = name, .key = key, .number = number};
    return finding;
}

/* Ranks of one machine exchange through it, a few MiB each. */
static void look_at_shared_memory(struct machine *machine, const struct comm *world)
{
    enum { EACH_MIB = 32 };
    struct statvfs shm;
    const double mib = statvfs("/dev/shm", &shm) == 0
                           ? (double)shm.f_bavail * (double)shm.f_frsize / 1048576.0
                           : (double)NAN;
    struct finding *f = add(machine, "/dev/shm", "shm_free_mib", mib);
    snprintf(f->text, sizeof f->text, isnan(mib) ? "not there" : "%.0f MiB free", mib);
    if (!(mib >= (double)EACH_MIB * world->node_size)) {
        snprintf(f->remedy, sizeof f->remedy,
                 "little for %d ranks: in a container, start it with --shm-size=1g",
                 world->node_size);
    }
}

static double limit_of(__rlimit_resource_t resource)
{
    struct rlimit limit;
    return getrlimit(resource, &limit) != 0  ? (double)NAN
           : limit.rlim_cur == RLIM_INFINITY ? (double)INFINITY
                                             : (double)limit.rlim_cur;
}

static void look_at_limits(struct machine *machine, const struct comm *world)
{
    const double files = limit_of(RLIMIT_NOFILE), space = limit_of(RLIMIT_AS);
    struct finding *f = add(machine, "open files", "limit_open_files", files);
    snprintf(f->text, sizeof f->text, "at most %.0f", files);
    if (files < 64 + 8.0 * world->size) {
        snprintf(f->remedy, sizeof f->remedy, "few for %d ranks: ulimit -n 4096", world->size);
    }
    f = add(machine, "address space", "limit_address_space_gib", space / 1073741824.0);
    snprintf(f->text, sizeof f->text, isinf(space) ? "not limited" : "at most %.1f GiB",
             space / 1073741824.0);
    if (!isinf(space)) {
        snprintf(f->remedy, sizeof f->remedy, "allocations may fail early: ulimit -v unlimited");
    }
}

/* The number a file of a control group begins with; INFINITY: "max", or no such file. */
static double group_number(const char *path)
{
    char *text = NULL;
    size_t bytes = 0;
    const bool there = io_exists(path) && io_read_file(path, &text, &bytes, 4096) == STATUS_OK;
    char *end = text;
    const double number = there ? strtod(text, &end) : (double)INFINITY;
    const bool is_number = end != text;
    free(text);
    return is_number ? number : (double)INFINITY;
}

/* Least of `file` in the group `group` below `mount` and in all groups above it. */
static double group_limit(const char *mount, const char *group, const char *file)
{
    char path[4096], at[2048];
    double limit = INFINITY;
    snprintf(at, sizeof at, "%.2000s", strcmp(group, "/") == 0 ? "" : group);
    for (;;) {
        snprintf(path, sizeof path, "%.1900s%.2000s/%s", mount, at, file);
        limit = fmin(limit, group_number(path));
        char *last = strrchr(at, '/');
        if (last == NULL) {
            return limit;
        }
        *last = '\0';
    }
}

double machine_memory_limit(const char *root)
{
    char path[4096], *text = NULL, *rest = NULL;
    size_t bytes = 0;
    double limit = INFINITY;
    snprintf(path, sizeof path, "%.3900s/proc/self/cgroup", root);
    if (!io_exists(path) || io_read_file(path, &text, &bytes, 1 << 16) != STATUS_OK) {
        return limit;
    }
    /* "0::/GROUP" of version 2; "N:memory:/GROUP" of version 1, "memory" one of several perhaps */
    for (char *line = strtok_r(text, "\n", &rest); line != NULL;
         line = strtok_r(NULL, "\n", &rest)) {
        char *kinds = strchr(line, ':'), *group = kinds != NULL ? strchr(kinds + 1, ':') : NULL;
        if (group == NULL) {
            continue;
        }
        *group++ = '\0';
        if (kinds[1] == '\0') {
            snprintf(path, sizeof path, "%.3900s/sys/fs/cgroup", root);
            limit = fmin(limit, group_limit(path, group, "memory.max"));
            snprintf(path, sizeof path, "%.3900s/sys/fs/cgroup/unified", root);
            limit = fmin(limit, group_limit(path, group, "memory.max"));
        } else if (strstr(kinds, "memory") != NULL) {
            snprintf(path, sizeof path, "%.3900s/sys/fs/cgroup/memory", root);
            limit = fmin(limit, group_limit(path, group, "memory.limit_in_bytes"));
        }
    }
    free(text);
    return limit;
}

/* What the control groups allow, where they do not allow all. */
static void look_at_group(struct machine *machine, const struct comm *world)
{
    const double limit = machine_memory_limit("");
    const double whole = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    struct finding *f = add(machine, "memory limit", "memory_limit_gib",
                            (limit < whole ? limit : whole) / 1073741824.0);
    snprintf(f->text, sizeof f->text,
             limit < whole ? "%.1f GiB of this control group, for its %d ranks" : "none",
             limit / 1073741824.0, world->node_size);
    if (limit < whole) {
        snprintf(
            f->remedy, sizeof f->remedy,
            "beyond it ranks are killed: see what plan says, or ask for more (--mem, --memory)");
    }
}

static void look_at_cores(struct machine *machine, const struct comm *world, int threads)
{
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    struct finding *f = add(machine, "threads here", "threads_of_node", threads * world->node_size);
    snprintf(f->text, sizeof f->text, "%d ranks x %d, %ld cores", world->node_size, threads, cores);
    if ((long)threads * world->node_size > cores) {
        snprintf(f->remedy, sizeof f->remedy, "more than cores: fewer ranks, or run.threads=1");
    }
}

/* GB/s of writing past the page cache, synced; NAN: it could not be written. */
static double disk_rate(const char *folder)
{
    enum { PIECE = 4 << 20, PIECES = 16 };
    char path[4096];
    struct io_file file = {.fd = -1};
    void *piece = aligned_alloc(IO_ALIGNMENT, PIECE);
    snprintf(path, sizeof path, "%.3900s/.switchyard-doctor-%ld", folder, (long)getpid());
    enum status status = piece != NULL ? io_create_direct(&file, path)
                                       : status_fail(STATUS_RESOURCE, "out of memory");
    const double began = step_clock();
    if (status == STATUS_OK) {
        memset(piece, 0x5a, PIECE);
    }
    for (int i = 0; i < PIECES && status == STATUS_OK; i++) {
        status = io_pwrite(&file, piece, PIECE, (int64_t)i * PIECE);
    }
    status = status == STATUS_OK ? io_sync(&file) : status;
    const double seconds = step_clock() - began;
    const enum status closed = io_close(&file), removed = io_remove(path);
    free(piece);
    return status == STATUS_OK && closed == STATUS_OK && removed == STATUS_OK
               ? (double)PIECES * PIECE / seconds / 1e9
               : (double)NAN;
}

static void look_at_disk(struct machine *machine, const char *folder)
{
    const double rate = disk_rate(folder);
    struct finding *f = add(machine, "disk speed", "disk_write_gb_per_s", rate);
    if (isnan(rate)) {
        snprintf(f->text, sizeof f->text, "cannot be written");
        snprintf(f->remedy, sizeof f->remedy, "set run.dir to a folder that can: %.90s",
                 status_message());
        return;
    }
    snprintf(f->text, sizeof f->text, "writes %.2f GB/s", rate);
    if (rate < 0.05) {
        snprintf(f->remedy, sizeof f->remedy,
                 "slow for checkpoints: put run.dir on a faster disk, or save less often");
    }
}

/* Between the first and the last rank's clock, once all have met. */
static void look_at_clocks(struct machine *machine, struct comm *world)
{
    struct timespec now;
    comm_barrier(world);
    clock_gettime(CLOCK_REALTIME, &now);
    double high = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec, low = -high;
    comm_all_reduce(world, &high, 1, DTYPE_F64, REDUCE_MAX);
    comm_all_reduce(world, &low, 1, DTYPE_F64, REDUCE_MAX);
    const double skew = high + low;
    struct finding *f = add(machine, "clocks", "clock_skew_s", skew);
    snprintf(f->text, sizeof f->text, "%.3f s between the ranks", skew);
    if (skew > 1) {
        snprintf(f->remedy, sizeof f->remedy, "set them by NTP: file times and logs disagree");
    }
}

void machine_look(struct machine *machine, struct comm *world, const char *folder, int threads)
{
    *machine = (struct machine){0};
    look_at_clocks(machine, world);
    look_at_cores(machine, world, threads);
    look_at_shared_memory(machine, world);
    look_at_limits(machine, world);
    look_at_group(machine, world);
    if (world->rank == 0) {
        look_at_disk(machine, folder);
    }
}
