/* hardware: what a rank and its links can do, and what kernels reach of it.
 *
 * Peaks are the makers' figures without sparsity. The shares of them that kernels reach belong to a
 * family of kernels on a kind of GPU, never to a model. Those of Hopper are read off DeepSeek-V3's
 * published profile (deepseek-ai/profile-data, H800), those of products in bf16 and of messages off
 * published benchmarks (cuBLAS, DeepEP); other GPUs take Hopper's shares of their own peaks.
 * docs/plan.md compares the outcome with published runs.
 */
#ifndef TRAINER_PLAN_HARDWARE_H
#define TRAINER_PLAN_HARDWARE_H

#include "kernels/device.h"
#include "trainer/config/config.h"

/* Families of kernels. Products take flops / (share * peak) plus their bytes / memory rate. */
enum kernel {
    KERNEL_DENSE,          /* products with one matrix: outputs and gradients of inputs */
    KERNEL_DENSE_WEIGHT,   /* gradients of the matrix */
    KERNEL_EXPERTS,        /* the same with a matrix for each expert */
    KERNEL_EXPERTS_WEIGHT, /* */
    KERNEL_ROUTER,         /* logits of the router */
    KERNEL_ATTENTION,
    KERNEL_ATTENTION_BACK,
    /* bound by memory */
    KERNEL_NORM,
    KERNEL_ROTARY,
    KERNEL_SWIGLU,
    KERNEL_PERMUTE,  /* tokens to expert rows and back */
    KERNEL_QUANTIZE, /* to FP8, and transposing it */
    KERNEL_LOSS,
    KERNEL_OPTIMIZER,
    KERNEL_SMALL, /* routing and other short kernels: their starts count, and streams of activations
                   */
    KERNELS
};
extern const char *const kernel_names[KERNELS]; /* for tables and JSON: [a-z_]+ */

/* Per rank; rates in 1/s, sizes in bytes. */
struct hardware {
    const char *name;
    struct device *device; /* owned: whose table of operations measures layouts */
    int64_t nodes, ranks_per_node, ranks;
    bool cpu;
    int threads;           /* of a CPU rank */
    double peak, peak_fp8; /* FLOP/s of the run's own precision outside FP8; of FP8 */
    double peak_bf16;      /* what MFU is a share of */
    double peak_f32;       /* of products in f32, on a GPU by its CUDA cores (Muon's) */
    double memory_rate, memory;
    double nvlink, network; /* each way */
    double host;            /* to and from the host's memory, at once, all GPUs of a node at it */
    double disk;            /* of a node */
    double share[KERNELS];  /* of peak, or of memory_rate */
    double share_fp8[KERNELS];
    double gemm_memory;     /* share of memory_rate in products */
    double start;           /* s, from a kernel to the next where both are short */
    double message;         /* s, before a message's first byte */
    double link, link_busy; /* share of a link: alone, beside kernels */
    double network_share, network_busy;
    double reduce;    /* share of links in reductions and gathers */
    double own;       /* share of the GPU that is left to kernels while messages travel beside */
    double imperfect; /* time that kernels and messages side by side take beyond the longer */
};

/* Ranks of a machine, for dispatch by machines (parallel.ranks_per_node, else cluster.*);
 * INT32_MAX: all. Where cluster.gpus_per_node leaves it to the layout, so does this: of a layout on
 * hardware of another, the config must say gpus_per_node. */
int64_t hardware_ranks_of_node(const struct config *config);

/* Whether rows between experts go through hosts, which wait for them: run.comm mpi on GPUs. */
bool hardware_stages(const struct config *config);

/* Of config->cluster; on a CPU peaks that are not given are measured here (a second). Errors:
 * STATUS_USAGE, STATUS_RESOURCE. */
enum status hardware_init(struct hardware *hardware, const struct config *config)
    __attribute__((warn_unused_result));
void hardware_free(struct hardware *hardware); /* also after an error */

#endif
