/* bench_case: what bench_kernels.c, bench_layer.c and bench_fp8.c share: shapes and buffers of one
 * layer and one micro-batch, and a kernel that is timed on them.
 */
#ifndef TRAINER_COMMANDS_BENCH_CASE_H
#define TRAINER_COMMANDS_BENCH_CASE_H

#include "kernels/base/arena.h"
#include "kernels/device.h"
#include "kernels/ops_fp8.h"
#include "trainer/model/architecture.h"

/* Operands of FP8: codes of what struct bench has as tensors. t: transposed. */
struct bench_fp8 {
    bool there;                           /* the device has the ops, widths are multiples of 16 */
    struct fp8_rows x, xt;                /* of x[N,C] */
    struct fp8_rows o, ot;                /* of o[N,H*v] */
    struct fp8_rows in, in_t, out, out_t; /* [R,C] */
    struct fp8_rows kept, d, d_t;         /* [R,2F] */
    struct fp8_rows inner, inner_t;       /* [R,F] */
    struct fp8_weights o_proj, o_proj_t;  /* [C,H*v] */
    struct fp8_weights up, up_t, down, down_t; /* E of [2F,C], [C,F] */
    uint8_t *packed, *e5m6;        /* [R, fp8_packed_bytes(C)], [N, fp8_e5m6_bytes(H*v)] */
    struct fp8_counters *counters; /* [1] */
};

/* Shapes and buffers. N tokens of a micro-batch, R = N*K rows, E experts of this rank. */
struct bench {
    struct device *device;
    const struct ops *ops;
    enum dtype act;
    struct arena arena;
    int64_t n, width, vocab, rows, experts, top_k, expert_width;
    struct attention_shape attention;
    struct router_shape router;
    struct rope_shape rope;                          /* of q */
    struct tensor x, y, dx, norm_w, norm_dw;         /* [N,C] act, [C] act, [C] f32 */
    struct tensor q, dq, kv, dkv, k_rope, dk_rope;   /* [N, row] act */
    struct tensor o, d_o;                            /* [N,H*v] act */
    struct tensor o_w, o_dw;                         /* [C,H*v] act, f32 */
    struct tensor table, position;                   /* [T, rope.dim] f32, [N] int32 */
    struct tensor in, out, gate_up, dgate_up, inner; /* [R,C] [R,C] [R,2F] [R,2F] [R,F] act */
    struct tensor expert_w, expert_dw;               /* [E, 3FC] act, f32 */
    struct tensor master, moment1, moment2;          /* [E, 3FC] f32 */
    struct tensor head_w, head_dw;                   /* [V,C] act, f32 */
    struct tensor router_w, logits, score;           /* [E,C] act, [N,E] f32 */
    struct tensor weight, choice, slot_row, row;     /* [N,K] f32, int32; [R] int32 */
    struct tensor dweight;                           /* [N,K] f32 */
    struct tensor labels, rstd, lse, router_lse;     /* [N] int32, f32; [B*H,T]; [N] */
    struct tensor count, offset;                     /* [B,E] int64, [E+1] int64 */
    struct tensor loss, fill;                        /* [1] f64, [FILL_PIECE] f32 */
    struct bench_fp8 fp8;                            /* where there is FP8 */
};

/* Of the names of CUDA kernels: the products' of wgmma in bf16, gemm_f32_kernel's in f32. */
#define BENCH_PRODUCTS "gemm_sm90_kernel"
enum { BENCH_CUDA = 2, BENCH_FP8_PRODUCTS = 2 };

/* What is timed: one op, or a few that belong together. */
struct kernel {
    const char *name;
    void (*run)(struct bench *bench);
    double (*flops)(const struct bench *bench); /* of products; NULL: it only moves */
    double (*bytes)(const struct bench *bench); /* each operand read or written once */
    const char *cuda[BENCH_CUDA]; /* how the names of its CUDA kernels begin, or NULL */
    /* FP8's products in it, how many; NULL: none. */
    int (*products)(const struct bench *bench, struct device_fp8_product out[BENCH_FP8_PRODUCTS]);
};

enum { BENCH_MOST = 64 }; /* kernels */
struct bench_time {
    const struct kernel *kernel;
    double seconds; /* median */
};

struct tensor bench_hand_out(struct bench *bench, enum dtype dtype, int64_t rows, int64_t cols);
/* Normal numbers. */
void bench_fill(struct bench *bench, struct tensor *t, float std, uint64_t key);

/* bench_layer.c: in an order in which none spoils what a later one reads; *count of them. */
const struct kernel *bench_layer_kernels(int *count);

/* bench_fp8.c. Buffers, from the arena, with those of struct bench handed out; their contents, from
 * those of struct bench. */
void bench_fp8_layout(struct bench *bench);
void bench_fp8_fill(struct bench *bench);
/* As bench_layer_kernels. */
const struct kernel *bench_fp8_kernels(int *count);

#endif
