#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "kernels/base/json_out.h"
#include "kernels/device.h"
#include "parallel/cores.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/machine.h"
#include "trainer/version.h"

static double memory_gib(int name)
{
    return (double)sysconf(name) * (double)sysconf(_SC_PAGESIZE) / 1073741824.0;
}

static double disk_free_gib(const char *path)
{
    struct statvfs disk;
    return statvfs(path, &disk) == 0 ? (double)disk.f_bavail * (double)disk.f_frsize / 1073741824.0
                                     : -1;
}

/* What doctor looks at: every device this binary may train on. */
struct found {
    const char *name;
    struct device *device; /* owned */
    char why[512];         /* "", or why a rank lacks it */
    double f32, bf16;      /* GFLOP/s of a large GEMM */
};
enum { DEVICES = 2 };

static void print_json(const struct comm *world, const struct found *found,
                       const struct machine *machine)
{
    const struct device_info *host = device_info(found[0].device);
    printf("{\"comm\":\"%s\",\"ranks\":%d", world->table->name, world->size);
    json_out_text(stdout, ",\"cpu\":", host->cpu);
    printf(",\"threads\":%d,\"devices\":[", host->threads);
    for (int d = 0; d < DEVICES; d++) {
        json_out_text(stdout, d > 0 ? ",{\"device\":" : "{\"device\":", found[d].name);
        if (found[d].why[0] != '\0') {
            json_out_text(stdout, ",\"missing\":", found[d].why);
            printf("}");
            continue;
        }
        const struct device_info *info = device_info(found[d].device);
        for (int i = 0; i < info->fact_count; i++) {
            char key[64];
            snprintf(key, sizeof key, ",\"%s\":", info->fact[i].key);
            json_out_text(stdout, key, info->fact[i].value);
        }
        printf(",\"batch_invariant\":%s", info->batch_invariant ? "true" : "false");
        json_out_number(stdout, ",\"gflops_fp32\":", found[d].f32, 5);
        json_out_number(stdout, ",\"gflops_bf16\":", found[d].bf16, 5);
        printf("}");
    }
    json_out_number(stdout, "],\"memory_gib\":", memory_gib(_SC_PHYS_PAGES), 5);
    json_out_number(stdout, ",\"memory_free_gib\":", memory_gib(_SC_AVPHYS_PAGES), 5);
    json_out_number(stdout, ",\"disk_free_gib\":", disk_free_gib("."), 5);
    printf(",\"findings\":[");
    for (int i = 0; i < machine->findings; i++) {
        const struct finding *f = &machine->finding[i];
        char key[64];
        json_out_text(stdout, i > 0 ? ",{\"name\":" : "{\"name\":", f->name);
        snprintf(key, sizeof key, ",\"%s\":", f->key);
        json_out_number(stdout, key, f->number, 5);
        json_out_text(stdout, ",\"remedy\":", f->remedy);
        printf("}");
    }
    printf("]}\n");
}

static void print(const struct comm *world, const struct found *found,
                  const struct machine *machine)
{
    const struct device_info *host = device_info(found[0].device);
    const double disk = disk_free_gib(".");
    version_print(stdout);
    printf("ranks        %d over %s\n", world->size, world->table->name);
    printf("cpu          %s, %d threads for this rank\n", host->cpu, host->threads);
    for (int d = 0; d < DEVICES; d++) {
        if (found[d].why[0] != '\0') {
            printf("device %-5s %s\n", found[d].name, found[d].why);
            continue;
        }
        const struct device_info *info = device_info(found[d].device);
        printf("device %-5s GEMM fp32 %.0f, bf16 %.0f GFLOP/s\n", info->name, found[d].f32,
               found[d].bf16);
        for (int i = 0; i < info->fact_count; i++) {
            printf("  %-18s %s\n", info->fact[i].key, info->fact[i].value);
        }
        printf("  rows of a batch    %s on the other rows%s\n",
               info->batch_invariant ? "do not depend" : "DEPEND",
               info->batch_invariant ? "" : ": losses of different layouts agree to rounding only");
    }
    printf("memory       %.1f GiB, %.1f free\n", memory_gib(_SC_PHYS_PAGES),
           memory_gib(_SC_AVPHYS_PAGES));
    printf("disk here    %.1f GiB free%s\n", disk,
           disk < 5 ? ": checkpoints may not fit, free some or set run.dir" : "");
    for (int i = 0; i < machine->findings; i++) {
        const struct finding *f = &machine->finding[i];
        printf("%-12s %s%s%s\n", f->name, f->text, f->remedy[0] != '\0' ? ": " : "", f->remedy);
    }
}

/* Every rank opens, as in training; the first one measures. */
static enum status look(struct found *found, const struct comm *world)
{
    enum { MAX_CORES = 1024 };
    int cores[MAX_CORES];
    const struct device_options options = {.name = found->name,
                                           .threads = cores_share(world, 0, cores, MAX_CORES),
                                           .cores = cores,
                                           .node_rank = world->node_rank,
                                           .node_size = world->node_size};
    TRY(device_open(&found->device, &options));
    if (world->rank == 0) {
        found->f32 = device_peak_flops(found->device, DTYPE_F32) / 1e9;
        found->bf16 = device_peak_flops(found->device, DTYPE_BF16) / 1e9;
    }
    return STATUS_OK;
}

enum status command_doctor(int argc, char **argv)
{
    struct option_result options;
    struct comm world = {0};
    struct found found[DEVICES] = {{.name = "cpu"}, {.name = "cuda"}};
    bool json = false;
    const struct option_spec specs[] = {{"--json", OPTION_FLAG, &json, NULL, "print JSON"}, {0}};
    TRY(options_parse(
        &options, argc, argv, specs, "doctor",
        "Looks at this machine: MPI, cores, GPU, GEMM, memory, disk, limits, clocks. Run it under "
        "mpirun as you would train.",
        0, 0));
    if (options.help) {
        return STATUS_OK;
    }
    TRY(comm_open(&world, "auto"));
    const enum status status = comm_agree(&world, look(&found[0], &world), NULL);
    /* A GPU that is missing, on whichever rank, is said; it is no error. */
    if (status == STATUS_OK && comm_agree(&world, look(&found[1], &world), NULL) != STATUS_OK) {
        snprintf(found[1].why, sizeof found[1].why, "%s", status_message());
    }
    struct machine machine = {0};
    if (status == STATUS_OK) {
        machine_look(&machine, &world, ".", device_info(found[0].device)->threads);
    }
    if (status == STATUS_OK && world.rank == 0) {
        (json ? print_json : print)(&world, found, &machine);
    }
    comm_barrier(&world);
    for (int d = 0; d < DEVICES; d++) {
        device_close(found[d].device);
    }
    comm_close(&world);
    return status;
}
