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

static void print(const struct comm *world, struct device *device, bool json)
{
    const struct device_info *info = device_info(device);
    const double f32 = device_peak_flops(device, DTYPE_F32) / 1e9,
                 bf16 = device_peak_flops(device, DTYPE_BF16) / 1e9;
    const double memory = memory_gib(_SC_PHYS_PAGES), available = memory_gib(_SC_AVPHYS_PAGES),
                 disk = disk_free_gib(".");
    if (json) {
        printf("{\"comm\":\"%s\",\"ranks\":%d", world->table->name, world->size);
        json_out_text(stdout, ",\"cpu\":", info->cpu);
        printf(",\"threads\":%d", info->threads);
        json_out_text(stdout, ",\"device\":", info->name);
        for (int i = 0; i < info->fact_count; i++) {
            char key[64];
            snprintf(key, sizeof key, ",\"%s\":", info->fact[i].key);
            json_out_text(stdout, key, info->fact[i].value);
        }
        printf(",\"batch_invariant\":%s", info->batch_invariant ? "true" : "false");
        json_out_number(stdout, ",\"gflops_fp32\":", f32, 5);
        json_out_number(stdout, ",\"gflops_bf16\":", bf16, 5);
        json_out_number(stdout, ",\"memory_gib\":", memory, 5);
        json_out_number(stdout, ",\"memory_free_gib\":", available, 5);
        json_out_number(stdout, ",\"disk_free_gib\":", disk, 5);
        printf("}\n");
        return;
    }
    version_print(stdout);
    printf("ranks        %d over %s\n", world->size, world->table->name);
    printf("cpu          %s, %d threads for this rank\n", info->cpu, info->threads);
    printf("device       %s\n", info->name);
    for (int i = 0; i < info->fact_count; i++) {
        printf("  %-18s %s\n", info->fact[i].key, info->fact[i].value);
    }
    printf("GEMM         fp32 %.0f, bf16 %.0f GFLOP/s\n", f32, bf16);
    printf("             rows %s on the other rows of a batch%s\n",
           info->batch_invariant ? "do not depend" : "DEPEND",
           info->batch_invariant ? "" : ": losses of different layouts agree to rounding only");
    printf("memory       %.1f GiB, %.1f free\n", memory, available);
    printf("disk here    %.1f GiB free%s\n", disk,
           disk < 5 ? ": checkpoints may not fit, free some or set run.dir" : "");
}

enum status command_doctor(int argc, char **argv)
{
    enum { MAX_CORES = 1024 };
    struct option_result options;
    struct comm world = {0};
    struct device *device = NULL;
    bool json = false;
    int cores[MAX_CORES];
    const struct option_spec specs[] = {{"--json", OPTION_FLAG, &json, NULL, "print JSON"}, {0}};
    TRY(options_parse(&options, argc, argv, specs, "doctor",
                      "Looks at this machine: MPI, cores, GEMM, memory, disk. Run it under mpirun "
                      "as you would train.",
                      0, 0));
    if (options.help) {
        return STATUS_OK;
    }
    TRY(comm_open(&world, "auto"));
    const int threads = cores_share(&world, 0, cores, MAX_CORES);
    enum status status = device_open(
        &device, &(struct device_options){.name = "cpu", .threads = threads, .cores = cores});
    if (status == STATUS_OK && world.rank == 0) {
        print(&world, device, json);
    }
    comm_barrier(&world);
    device_close(device);
    comm_close(&world);
    return status;
}
