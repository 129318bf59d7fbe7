/* Products of the router: logits, and their way back, dense or of the chosen experts alone. */
#include <assert.h>
#include <string.h>

#include "kernels/cpu/cpu.h"
#include "kernels/cpu/rows.h"

/* A sum over the tokens of an expert is of chains of CHAIN tokens, added. Up to FEW experts for
 * each chosen one, one product of them all costs as little. */
enum { PART = CPU_COMBINE_PART, CHAIN = 512, FEW = 4 };

/* Gradients of the logits of the chosen experts. */
struct chosen {
    const float *dlogits; /* [N,experts] */
    int64_t experts, top_k;
    const int32_t *expert; /* [N,top_k] */
    int64_t *offset;       /* [experts + 1] and */
    int32_t *token;        /* [N*top_k]: the tokens of each expert, rising */
    uint16_t *rest;        /* [N,experts] bf16 of the other experts, 0 of the chosen; or NULL */
};

void cpu_router_logits(struct device *device, struct tensor logits, struct tensor x,
                       struct tensor w)
{
    assert(logits.dtype == DTYPE_F32);
    cpu_linear_forward(device, logits, x, w, false);
}

/* Whether row n has a gradient of an expert that was not chosen, or of none at all. */
CPU_CLONES static bool has_others(const struct chosen *chosen, int64_t n)
{
    const float *slope = chosen->dlogits + n * chosen->experts;
    int32_t all = 0, mine = 0;
    for (int64_t e = 0; e < chosen->experts; e++) {
        all += slope[e] != 0 ? 1 : 0;
    }
    for (int64_t k = 0; k < chosen->top_k; k++) {
        mine += slope[chosen->expert[n * chosen->top_k + k]] != 0 ? 1 : 0;
    }
    return all != mine;
}

/* dx[N,C] += dlogits w, rows of w in the order of the choice. */
static void chosen_input(struct device *device, struct tensor dx, struct tensor w,
                         const struct chosen *chosen)
{
    const int64_t width = dx.dim[1], top_k = chosen->top_k;
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < dx.dim[0]; n++) {
        const float *slope = chosen->dlogits + n * chosen->experts;
        float room[PART];
        assert(chosen->rest != NULL || !has_others(chosen, n));
        for (int64_t i = 0; i < width; i += PART) {
            const int64_t count = width - i < PART ? width - i : PART, at = n * width + i;
            float *sum = dx.dtype == DTYPE_F32 ? (float *)dx.data + at : room;
            if (sum == room) {
                row_load(room, dx.data, dx.dtype, at, count);
            }
            for (int64_t k = 0; k < top_k; k++) {
                const int32_t e = chosen->expert[n * top_k + k];
                row_add_scaled_of(sum, w.data, w.dtype, e * width + i, slope[e], count);
            }
            if (sum == room) {
                row_store(dx.data, dx.dtype, at, room, count);
            }
        }
    }
}

/* dw[count], elements [first, first + count) of expert e's row, += dlogits^T x. */
static void chosen_weight_part(float *dw, struct tensor x, const struct chosen *chosen, int64_t e,
                               int64_t first, int64_t count)
{
    float sum[PART];
    const int64_t end = chosen->offset[e + 1];
    for (int64_t chain = chosen->offset[e]; chain < end; chain += CHAIN) {
        memset(sum, 0, sizeof sum);
        for (int64_t r = chain; r < end && r < chain + CHAIN; r++) {
            const int64_t n = chosen->token[r];
            row_add_scaled_of(sum, x.data, x.dtype, n * x.dim[1] + first,
                              chosen->dlogits[n * chosen->experts + e], count);
        }
        row_add_scaled(dw, sum, 1.0F, count);
    }
}

/* dw[E,C] += dlogits^T x; experts differ in tokens, so threads take parts of rows as they come. */
static void chosen_weight(struct device *device, struct tensor dw, struct tensor x,
                          const struct chosen *chosen)
{
    const int64_t width = x.dim[1], parts = (width + PART - 1) / PART;
#pragma omp parallel for num_threads(device->threads) schedule(dynamic)
    for (int64_t task = 0; task < chosen->experts * parts; task++) {
        const int64_t e = task / parts, first = task % parts * PART,
                      count = width - first < PART ? width - first : PART;
        chosen_weight_part((float *)dw.data + e * width + first, x, chosen, e, first, count);
    }
}

/* Offsets, tokens, what sorting leaves besides, and rest. */
static void chosen_rooms(struct device *device, struct chosen *chosen, int64_t tokens, bool rest)
{
    const size_t slots = (size_t)(tokens * chosen->top_k), experts = (size_t)chosen->experts,
                 cells = rest ? (size_t)tokens * experts : 0;
    char *room = cpu_scratch(device, CPU_SLOT_ROUTER,
                             (experts + 1) * sizeof(int64_t) + 2 * slots * sizeof(int32_t) +
                                 cells * sizeof(uint16_t));
    chosen->offset = (int64_t *)(void *)room;
    chosen->token = (int32_t *)(void *)(chosen->offset + experts + 1);
    chosen->rest = rest ? (uint16_t *)(void *)(chosen->token + 2 * slots) : NULL;
    cpu_expert_sort(device, chosen->offset, chosen->token, chosen->token + slots, chosen->expert,
                    (int64_t)slots, chosen->top_k, chosen->experts);
    assert(chosen->offset[experts] == (int64_t)slots); /* every slot has an expert */
}

static struct tensor round_rest(struct device *device, const struct chosen *chosen, int64_t tokens)
{
    const int64_t experts = chosen->experts, top_k = chosen->top_k;
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < tokens; n++) {
        row_store(chosen->rest, DTYPE_BF16, n * experts, chosen->dlogits + n * experts, experts);
        for (int64_t k = 0; k < top_k; k++) {
            chosen->rest[n * experts + chosen->expert[n * top_k + k]] = 0;
        }
    }
    return tensor_2d(chosen->rest, DTYPE_BF16, tokens, experts);
}

static void product(struct device *device, struct tensor dx, struct tensor dw, struct tensor dy,
                    struct tensor x, struct tensor w)
{
    cpu_linear_backward_input(device, dx, dy, w, true);
    cpu_linear_backward_weight(device, dw, dy, x);
}

/* Rounding pays where pairs of bf16 are multiplied, and rows are whole pairs. */
static bool rounds(struct device *device, struct tensor x, int64_t experts)
{
    return x.dtype == DTYPE_BF16 && cpu_device_of(device)->wide == CPU_WIDE_PAIRS &&
           experts % 2 == 0;
}

void cpu_router_logits_backward(struct device *device, struct tensor dx, struct tensor dw,
                                struct tensor dlogits, struct tensor x, struct tensor w,
                                struct router_chosen chosen)
{
    const int64_t tokens = x.dim[0], width = x.dim[1], experts = w.dim[0];
    struct chosen rows = {.dlogits = dlogits.data,
                          .experts = experts,
                          .top_k = chosen.top_k,
                          .expert = chosen.expert};
    assert(tensor_is(&dlogits, DTYPE_F32, tokens, experts) &&
           tensor_is(&dw, DTYPE_F32, experts, width) && tensor_is(&w, x.dtype, experts, width) &&
           tensor_is(&dx, x.dtype, tokens, width));
    if (chosen.expert == NULL || experts <= FEW * chosen.top_k ||
        (chosen.rest && !rounds(device, x, experts))) {
        product(device, dx, dw, dlogits, x, w);
        return;
    }
    chosen_rooms(device, &rows, tokens, chosen.rest);
    if (chosen.rest) {
        product(device, dx, dw, round_rest(device, &rows, tokens), x, w);
    }
    chosen_input(device, dx, w, &rows);
    chosen_weight(device, dw, x, &rows);
}
