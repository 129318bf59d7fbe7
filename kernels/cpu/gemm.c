#include "kernels/cpu/gemm.h"

#include <assert.h>

#include "kernels/cpu/gemm_onednn.h"
#include "kernels/cpu/gemm_wide.h"

/* Register tile MR x NR; a task is a TILE_M x TILE_N piece of C; KC of k at a time, so that a B
 * panel stays in L1. */
enum { MR = 6, NR = 16, TILE_M = 96, TILE_N = 256, KC = 256, LANES = 8 };
/* Columns of bf16 for which oneDNN is faster than the wide kernel, which has panels of 32. */
enum { FEW = 16 };

typedef float lanes __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

struct plan {
    const struct gemm *gemm;
    float *a, *b; /* packed panels: [ceil(m/MR)][k][MR], [ceil(n/NR)][k][NR] */
    int64_t a_panels, b_panels;
    int64_t pack_first;          /* first packing task: a panels, then b panels */
    int64_t tile_first, tiles_n; /* first tile task; tiles along n */
};

static int64_t up(int64_t value, int64_t unit)
{
    return (value + unit - 1) / unit;
}

/* One panel: `width` lines of the operand side by side, zero beyond `valid`. line: stride from one
 * line to the next. */
CPU_CLONES static void pack(float *out, const void *data, enum dtype dtype, int64_t width,
                            int64_t valid, int64_t k, int64_t line, int64_t step)
{
    const float *f32 = data;
    const uint16_t *bf16 = data;
    for (int64_t j = 0; j < width; j++) {
        if (j >= valid) {
            for (int64_t i = 0; i < k; i++) {
                out[i * width + j] = 0.0F;
            }
        } else if (dtype == DTYPE_F32) {
            for (int64_t i = 0; i < k; i++) {
                out[i * width + j] = f32[j * line + i * step];
            }
        } else {
            for (int64_t i = 0; i < k; i++) {
                out[i * width + j] = bf16_to_float(bf16[j * line + i * step]);
            }
        }
    }
}

/* The same where lines are adjacent in memory (line == 1): whole rows of the panel at once. */
CPU_CLONES static void pack_adjacent(float *out, const void *data, enum dtype dtype, int64_t width,
                                     int64_t k, int64_t step)
{
    const float *f32 = data;
    const uint16_t *bf16 = data;
    for (int64_t i = 0; i < k; i++) {
        for (int64_t j = 0; j < width; j++) {
            out[i * width + j] =
                dtype == DTYPE_F32 ? f32[i * step + j] : bf16_to_float(bf16[i * step + j]);
        }
    }
}

static void pack_panel(float *out, const void *data, enum dtype dtype, int64_t width, int64_t valid,
                       int64_t k, int64_t line, int64_t step)
{
    if (line == 1 && valid >= width) {
        pack_adjacent(out, data, dtype, width, k, step);
    } else {
        pack(out, data, dtype, width, valid, k, line, step);
    }
}

/* acc[MR][TILE_N] at column 0 += a panel x b panel over k. */
CPU_CLONES static void micro(float *acc, const float *a, const float *b, int64_t k)
{
    lanes c[MR][2];
    for (int i = 0; i < MR; i++) {
        c[i][0] = *(const lanes *)(acc + i * TILE_N);
        c[i][1] = *(const lanes *)(acc + i * TILE_N + LANES);
    }
    for (int64_t p = 0; p < k; p++) {
        const lanes b0 = *(const lanes *)(b + p * NR), b1 = *(const lanes *)(b + p * NR + LANES);
#pragma GCC unroll 6
        for (int i = 0; i < MR; i++) {
            c[i][0] += a[p * MR + i] * b0;
            c[i][1] += a[p * MR + i] * b1;
        }
    }
    for (int i = 0; i < MR; i++) {
        *(lanes *)(acc + i * TILE_N) = c[i][0];
        *(lanes *)(acc + i * TILE_N + LANES) = c[i][1];
    }
}

CPU_CLONES static void store_row(void *c, enum dtype dtype, const float *acc, int64_t count)
{
    float *f32 = c;
    uint16_t *bf16 = c;
    if (dtype == DTYPE_F32) {
        for (int64_t j = 0; j < count; j++) {
            f32[j] = acc[j];
        }
    } else {
        for (int64_t j = 0; j < count; j++) {
            bf16[j] = bf16_from_float(acc[j]);
        }
    }
}

static void load_row(float *acc, const void *c, enum dtype dtype, int64_t count)
{
    const float *f32 = c;
    const uint16_t *bf16 = c;
    for (int64_t j = 0; j < count; j++) {
        acc[j] = dtype == DTYPE_F32 ? f32[j] : bf16_to_float(bf16[j]);
    }
}

static void run_tile(const struct plan *plan, int64_t tile)
{
    const struct gemm *g = plan->gemm;
    const int64_t m0 = tile / plan->tiles_n * TILE_M, n0 = tile % plan->tiles_n * TILE_N;
    const int64_t m = g->m - m0 < TILE_M ? g->m - m0 : TILE_M,
                  n = g->n - n0 < TILE_N ? g->n - n0 : TILE_N;
    const size_t element = dtype_bytes(g->c_dtype);
    float acc[TILE_M * TILE_N] __attribute__((aligned(64)));
    for (int64_t i = 0; i < up(m, MR) * MR; i++) {
        for (int64_t j = 0; j < TILE_N; j++) {
            acc[i * TILE_N + j] = 0.0F;
        }
        if (g->add && i < m) {
            load_row(acc + i * TILE_N,
                     (const char *)g->c + (size_t)((m0 + i) * g->c_row + n0) * element, g->c_dtype,
                     n);
        }
    }
    for (int64_t k0 = 0; k0 < g->k; k0 += KC) {
        const int64_t k = g->k - k0 < KC ? g->k - k0 : KC;
        for (int64_t j = 0; j < up(n, NR); j++) {
            const float *b = plan->b + (n0 / NR + j) * g->k * NR + k0 * NR;
            for (int64_t i = 0; i < up(m, MR); i++) {
                micro(acc + i * MR * TILE_N + j * NR, plan->a + (m0 / MR + i) * g->k * MR + k0 * MR,
                      b, k);
            }
        }
    }
    for (int64_t i = 0; i < m; i++) {
        store_row((char *)g->c + (size_t)((m0 + i) * g->c_row + n0) * element, g->c_dtype,
                  acc + i * TILE_N, n);
    }
}

static void run_pack(const struct plan *plan, int64_t task)
{
    const struct gemm *g = plan->gemm;
    if (task < plan->a_panels) {
        const char *data =
            (const char *)g->a + (size_t)(task * MR * g->a_row) * dtype_bytes(g->a_dtype);
        pack_panel(plan->a + task * g->k * MR, data, g->a_dtype, MR, g->m - task * MR, g->k,
                   g->a_row, g->a_col);
    } else {
        const int64_t panel = task - plan->a_panels;
        const char *data =
            (const char *)g->b + (size_t)(panel * NR * g->b_col) * dtype_bytes(g->b_dtype);
        pack_panel(plan->b + panel * g->k * NR, data, g->b_dtype, NR, g->n - panel * NR, g->k,
                   g->b_col, g->b_row);
    }
}

/* Which problem of the batch a task belongs to: the last whose first task is not beyond it. */
static const struct plan *find(const struct plan *plans, int64_t count, int64_t task, bool packing)
{
    int64_t low = 0, high = count - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        const int64_t first = packing ? plans[middle].pack_first : plans[middle].tile_first;
        if (first <= task) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return &plans[low];
}

/* By the kernel of this file: plans with nothing but the product set. */
static void run_own(struct device *device, struct plan *plans, int64_t count)
{
    int64_t used = 0, packs = 0, tiles = 0;
    for (int64_t i = 0; i < count; i++) {
        const struct gemm *g = plans[i].gemm;
        plans[i] = (struct plan){.gemm = g,
                                 .a_panels = up(g->m, MR),
                                 .b_panels = up(g->n, NR),
                                 .pack_first = packs,
                                 .tile_first = tiles,
                                 .tiles_n = up(g->n, TILE_N)};
        packs += plans[i].a_panels + plans[i].b_panels;
        tiles += up(g->m, TILE_M) * plans[i].tiles_n;
        used += (plans[i].a_panels * MR + plans[i].b_panels * NR) * g->k;
    }
    float *panel = cpu_scratch(device, CPU_SLOT_GEMM, (size_t)used * sizeof *panel);
    for (int64_t i = 0; i < count; i++) {
        plans[i].a = panel;
        plans[i].b = panel + plans[i].a_panels * MR * plans[i].gemm->k;
        panel = plans[i].b + plans[i].b_panels * NR * plans[i].gemm->k;
    }
#pragma omp parallel num_threads(device->threads)
    {
#pragma omp for schedule(dynamic, 8)
        for (int64_t task = 0; task < packs; task++) {
            const struct plan *plan = find(plans, count, task, true);
            run_pack(plan, task - plan->pack_first);
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tiles; task++) {
            const struct plan *plan = find(plans, count, task, false);
            run_tile(plan, task - plan->tile_first);
        }
    }
}

/* Whether the wide kernel takes a product; `to` is it with the way chosen. */
static bool choose_wide(struct gemm *to, const struct cpu_device *self, const struct gemm *g)
{
    *to = *g;
    to->way = g->a_dtype == DTYPE_F32        ? GEMM_F32
              : self->wide == CPU_WIDE_PAIRS ? GEMM_PAIRS
                                             : GEMM_WIDENED;
    const bool wanted = g->varies || g->vast || gemm_is_long(g) || g->a_dtype != g->b_dtype ||
                        to->way == GEMM_WIDENED || (to->way == GEMM_PAIRS && g->n > FEW);
    return self->wide != CPU_WIDE_OFF && wanted && gemm_wide_takes(to);
}

bool gemm_is_wide(struct device *device, const struct gemm *gemm)
{
    struct gemm wide;
    return choose_wide(&wide, cpu_device_of(device), gemm);
}

void gemm_run(struct device *device, const struct gemm *batch, int64_t count)
{
    const struct cpu_device *self = cpu_device_of(device);
    struct plan *plans = cpu_scratch(device, CPU_SLOT_PLAN, (size_t)count * sizeof *plans);
    struct gemm *wide = cpu_scratch(device, CPU_SLOT_WIDE, (size_t)count * sizeof *wide);
    int64_t own = 0, wides = 0;
    for (int64_t i = 0; i < count; i++) {
        const struct gemm *g = &batch[i];
        if (g->m == 0 || g->n == 0 || (g->k == 0 && g->add)) {
            continue;
        }
        if (choose_wide(&wide[wides], self, g)) {
            wides++;
            continue;
        }
        assert(g->fixed == NULL && g->exp == NULL);
        if (self->onednn == NULL || !onednn_gemm(self->onednn, g, device->threads)) {
            plans[own++].gemm = g; /* none is empty: first tasks ascend strictly */
        }
    }
    if (wides > 0) {
        gemm_wide_run(device, wide, wides);
    }
    if (own > 0) {
        run_own(device, plans, own);
    }
}
