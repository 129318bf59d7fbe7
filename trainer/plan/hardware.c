#include "trainer/plan/hardware.h"

#include <string.h>
#include <unistd.h>

#include "parallel/comm.h"
#include "parallel/cores.h"

const char *const kernel_names[KERNELS] = {
    [KERNEL_DENSE] = "dense_gemm",
    [KERNEL_DENSE_WEIGHT] = "dense_gemm_weight",
    [KERNEL_EXPERTS] = "expert_gemm",
    [KERNEL_EXPERTS_WEIGHT] = "expert_gemm_weight",
    [KERNEL_ROUTER] = "router",
    [KERNEL_ATTENTION] = "attention_forward",
    [KERNEL_ATTENTION_BACK] = "attention_backward",
    [KERNEL_NORM] = "norm",
    [KERNEL_ROTARY] = "rotary",
    [KERNEL_SWIGLU] = "swiglu",
    [KERNEL_PERMUTE] = "permute",
    [KERNEL_QUANTIZE] = "quantize",
    [KERNEL_LOSS] = "loss",
    [KERNEL_OPTIMIZER] = "optimizer",
    [KERNEL_SMALL] = "small",
};

/* Shares of the peak of the precision at hand, or of memory's rate. bf16 products: cuBLAS and
 * CUTLASS on H100 at its power limit; attention: cuDNN 9 and FlashAttention-3. */
static const double gpu_share[KERNELS] = {
    [KERNEL_DENSE] = 0.72,          [KERNEL_DENSE_WEIGHT] = 0.68, [KERNEL_EXPERTS] = 0.66,
    [KERNEL_EXPERTS_WEIGHT] = 0.60, [KERNEL_ROUTER] = 0.34,       [KERNEL_ATTENTION] = 0.62,
    [KERNEL_ATTENTION_BACK] = 0.48, [KERNEL_NORM] = 0.50,         [KERNEL_ROTARY] = 0.73,
    [KERNEL_SWIGLU] = 0.75,         [KERNEL_PERMUTE] = 0.47,      [KERNEL_QUANTIZE] = 0.37,
    [KERNEL_LOSS] = 0.60,           [KERNEL_OPTIMIZER] = 0.75,    [KERNEL_SMALL] = 0.50,
};
static const double gpu_share_fp8[KERNELS] = {
    [KERNEL_DENSE] = 0.65,
    [KERNEL_DENSE_WEIGHT] = 0.45,
    [KERNEL_EXPERTS] = 0.69,
    [KERNEL_EXPERTS_WEIGHT] = 0.50,
};
/* This program's kernels on two Zen 4 cores (docs/benchmarks.md). Attention's tiles are f32: of the
 * peak in f32 they reach twice as much. */
static const double cpu_share[KERNELS] = {
    [KERNEL_DENSE] = 0.88,          [KERNEL_DENSE_WEIGHT] = 0.88, [KERNEL_EXPERTS] = 0.88,
    [KERNEL_EXPERTS_WEIGHT] = 0.88, [KERNEL_ROUTER] = 0.30,       [KERNEL_ATTENTION] = 0.33,
    [KERNEL_ATTENTION_BACK] = 0.36, [KERNEL_NORM] = 0.50,         [KERNEL_ROTARY] = 0.50,
    [KERNEL_SWIGLU] = 0.30,         [KERNEL_PERMUTE] = 0.50,      [KERNEL_QUANTIZE] = 0.10,
    [KERNEL_LOSS] = 0.30,           [KERNEL_OPTIMIZER] = 0.60,    [KERNEL_SMALL] = 0.50,
};

/* TFLOP/s bf16, fp8 and f32, GB, GB/s of memory, NVLink, network and host each way. NVLink of H800:
 * what DeepSeek-V3's report counts on. Host: of eight GPUs' links both ways what the memory of two
 * usual processors carries (eight channels of DDR5-4800 each, 80 %; A100: of DDR4-3200). */
static const struct {
    const char *name;
    double peak, peak_fp8, peak_f32, memory, memory_rate, nvlink, network, host;
} gpus[CONFIG_GPUS] = {
    [CONFIG_GPU_CPU] = {"cpu", 0, 0, 0, 0, 0, 5, 5, 0},
    [CONFIG_GPU_H100] = {"h100", 989, 1979, 67, 80, 3350, 450, 50, 30},
    [CONFIG_GPU_H800] = {"h800", 989, 1979, 67, 80, 3350, 160, 50, 30},
    [CONFIG_GPU_H200] = {"h200", 989, 1979, 67, 141, 4800, 450, 50, 30},
    [CONFIG_GPU_A100] = {"a100", 312, 0, 19.5, 80, 2039, 300, 25, 20},
    [CONFIG_GPU_B200] = {"b200", 2250, 4500, 75, 180, 8000, 900, 50, 30},
    [CONFIG_GPU_CUSTOM] = {"custom", 0, 0, 0, 0, 0, 300, 25, 20},
};
static const double CPU_F32_SHARE = 0.5;        /* of the peak in bf16, where that is given */
static const double GPU_F32_SHARE = 67.0 / 989; /* the same of a custom GPU: Hopper's */
static const double CPU_BYTES_PER_CORE = 20e9;  /* of memory, a second */

static double given_or(double given, double otherwise, double unit)
{
    return unit * (given >= 0 ? given : otherwise);
}

static void set_shares(struct hardware *hardware, bool fp32)
{
    memcpy(hardware->share, hardware->cpu ? cpu_share : gpu_share, sizeof hardware->share);
    memcpy(hardware->share_fp8, hardware->cpu ? cpu_share : gpu_share_fp8,
           sizeof hardware->share_fp8);
    if (hardware->cpu && fp32) {
        hardware->share[KERNEL_ATTENTION] *= 2;
        hardware->share[KERNEL_ATTENTION_BACK] *= 2;
    }
    hardware->gemm_memory = 0.9;
    hardware->start = hardware->cpu ? 2e-6 : 4.5e-6;
    hardware->message = hardware->cpu ? 5e-6 : 2e-5;
    hardware->link = 0.85;
    hardware->link_busy = 0.75;
    hardware->network_share = 0.9;
    hardware->network_busy = 0.65;
    hardware->reduce = 0.8;
    hardware->own = hardware->cpu ? 1 : 112.0 / 132;
    hardware->imperfect = 0.10;
}

static enum status open_device(struct hardware *hardware, int threads)
{
    const struct device_options options = {
        .name = "cpu", .threads = threads, .cores = NULL, .deterministic = true};
    return device_open(&hardware->device, &options);
}

void hardware_free(struct hardware *hardware)
{
    device_close(hardware->device);
    hardware->device = NULL;
}

/* A rank's threads and share of the machine; its peak is measured unless the config gives it. */
static enum status init_cpu(struct hardware *hardware, const struct config *config)
{
    enum { MAX_CORES = 1024 };
    int cores[MAX_CORES];
    const struct comm alone = {.size = 1, .node_size = 1};
    const int all = cores_share(&alone, 0, cores, MAX_CORES);
    const int share = all / (int)hardware->ranks_per_node, threads = config->run.threads > 0
                                                                         ? (int)config->run.threads
                                                                     : share > 0 ? share
                                                                                 : 1;
    hardware->threads = threads;
    const double memory = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
    const double rate = CPU_BYTES_PER_CORE * threads;
    hardware->memory =
        given_or(config->cluster.memory_gb, memory / 1e9 / (double)hardware->ranks_per_node, 1e9);
    hardware->memory_rate = given_or(config->cluster.memory_gb_s, rate / 1e9, 1e9);
    hardware->peak = given_or(config->cluster.peak_tflops, 0, 1e12);
    TRY(open_device(hardware, threads));
    if (config->cluster.peak_tflops < 0) {
        hardware->peak = device_peak_flops(
            hardware->device, config->train.precision == CONFIG_FP32 ? DTYPE_F32 : DTYPE_BF16);
    }
    hardware->peak_bf16 = hardware->peak;
    hardware->peak_fp8 = hardware->peak;
    hardware->peak_f32 =
        config->train.precision == CONFIG_FP32 ? hardware->peak : hardware->peak * CPU_F32_SHARE;
    if (config->cluster.peak_tflops < 0 && config->train.precision != CONFIG_FP32 &&
        config->optimizer.name == CONFIG_MUON) {
        hardware->peak_f32 = device_peak_flops(hardware->device, DTYPE_F32);
    }
    return STATUS_OK;
}

/* The fewest ranks of a stage: a multiple of both. */
static int64_t fewest_of_stage(int64_t ep, int64_t divided)
{
    int64_t ranks = ep;
    while (ranks % divided != 0) {
        ranks += ep;
    }
    return ranks;
}

static int gpu_of(const struct config *config)
{
    const int said = config->cluster.gpu;
    return said != CONFIG_GPU_AUTO                    ? said
           : config->run.device == CONFIG_DEVICE_CUDA ? CONFIG_GPU_H100
                                                      : CONFIG_GPU_CPU;
}

static int64_t ranks_of_machine(const struct config *config)
{
    const int64_t fewest = config->parallel.pp *
                           fewest_of_stage(config->parallel.ep * config->parallel.etp,
                                           config->parallel.cp * config->parallel.tp),
                  nodes = config->cluster.nodes;
    if (config->cluster.gpus_per_node > 0) {
        return config->cluster.gpus_per_node;
    }
    return gpu_of(config) != CONFIG_GPU_CPU ? 8 : fewest % nodes == 0 ? fewest / nodes : 1;
}

int64_t hardware_ranks_of_node(const struct config *config)
{
    return config->parallel.ranks_per_node > 0 ? config->parallel.ranks_per_node
           : config->cluster.nodes > 1         ? ranks_of_machine(config)
                                               : INT32_MAX;
}

bool hardware_stages(const struct config *config)
{
    return gpu_of(config) != CONFIG_GPU_CPU && config->run.comm == CONFIG_COMM_MPI &&
           config->parallel.ep * config->parallel.etp > 1;
}

enum status hardware_init(struct hardware *hardware, const struct config *config)
{
    const int gpu = gpu_of(config);
    const bool cpu = gpu == CONFIG_GPU_CPU, fp32 = config->train.precision == CONFIG_FP32;
    *hardware = (struct hardware){.name = gpus[gpu].name,
                                  .nodes = config->cluster.nodes,
                                  .ranks_per_node = ranks_of_machine(config),
                                  .cpu = cpu};
    hardware->ranks = hardware->nodes * hardware->ranks_per_node;
    hardware->nvlink = given_or(config->cluster.nvlink_gb_s, gpus[gpu].nvlink, 1e9);
    hardware->network = given_or(config->cluster.network_gb_s, gpus[gpu].network, 1e9);
    hardware->host = given_or(config->cluster.host_gb_s, gpus[gpu].host, 1e9);
    hardware->disk = config->cluster.disk_gb_s * 1e9;
    set_shares(hardware, fp32);
    if (cpu) {
        return init_cpu(hardware, config);
    }
    hardware->peak_bf16 = given_or(config->cluster.peak_tflops, gpus[gpu].peak, 1e12);
    hardware->peak = hardware->peak_bf16 / (fp32 ? 2 : 1); /* of TF32 */
    hardware->peak_f32 =
        gpu == CONFIG_GPU_CUSTOM ? GPU_F32_SHARE * hardware->peak_bf16 : 1e12 * gpus[gpu].peak_f32;
    hardware->peak_fp8 =
        given_or(config->cluster.peak_fp8_tflops,
                 gpu == CONFIG_GPU_CUSTOM ? 2e-12 * hardware->peak_bf16 : gpus[gpu].peak_fp8, 1e12);
    hardware->memory = given_or(config->cluster.memory_gb, gpus[gpu].memory, 1e9);
    hardware->memory_rate = given_or(config->cluster.memory_gb_s, gpus[gpu].memory_rate, 1e9);
    if (config->train.precision == CONFIG_FP8 && hardware->peak_fp8 <= 0) {
        return status_fail(STATUS_USAGE,
                           "train.precision fp8: %s has no products in FP8: use bf16, or give "
                           "cluster.peak_fp8_tflops",
                           hardware->name);
    }
    return open_device(hardware, 1);
}
