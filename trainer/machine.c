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

/* What the control group allows, where it does not allow all. */
static void look_at_group(struct machine *machine)
{
    char *text = NULL;
    size_t bytes = 0;
    const bool there = io_exists("/sys/fs/cgroup/memory.max") &&
                       io_read_file("/sys/fs/cgroup/memory.max", &text, &bytes, 4096) == STATUS_OK;
    const double limit = there && text[0] != 'm' ? strtod(text, NULL) : (double)INFINITY;
    const double whole = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    struct finding *f = add(machine, "memory limit", "memory_limit_gib",
                            (limit < whole ? limit : whole) / 1073741824.0);
    snprintf(f->text, sizeof f->text, limit < whole ? "%.1f GiB of this control group" : "none",
             limit / 1073741824.0);
    free(text);
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
    look_at_group(machine);
    if (world->rank == 0) {
        look_at_disk(machine, folder);
    }
}
