#include <string.h>

#include "kernels/cpu/cpu.h"

void cpu_router_count(struct device *device, int64_t *count, const int64_t *routed, int64_t rows,
                      int64_t experts)
{
    (void)device;
    for (int64_t i = 0; i < rows * experts; i++) {
        count[i % experts] += routed[i];
    }
}

void cpu_router_even(struct device *device, int32_t *expert, float *weight,
                     struct router_counts counts, struct router_shape shape)
{
    (void)device;
    memset(counts.routed, 0,
           (size_t)(shape.tokens / shape.row_tokens * shape.experts) * sizeof *counts.routed);
    for (int64_t slot = 0; slot < shape.tokens * shape.top_k; slot++) {
        const int64_t row = slot / shape.top_k / shape.row_tokens;
        expert[slot] = (int32_t)(slot % shape.experts);
        weight[slot] = 1.0F / (float)shape.top_k;
        counts.routed[row * shape.experts + slot % shape.experts]++;
    }
}

/* The device and communication losses weigh the P of a whole group. */
static double group_weight(const struct router_counts *counts, const struct router_shape *shape,
                           const struct balance_terms *terms, int64_t row, int64_t group)
{
    const int64_t groups = shape->loss_groups, size = shape->experts / groups;
    const double per_slot = (double)groups / (double)(shape->top_k * shape->row_tokens);
    double weight = 0;
    if (terms->device > 0) {
        int64_t slots = 0;
        for (int64_t e = group * size; e < (group + 1) * size; e++) {
            slots += counts->routed[row * shape->experts + e];
        }
        weight += terms->device * per_slot * (double)slots;
    }
    if (terms->communication > 0) {
        weight += terms->communication * (double)groups /
                  (double)(terms->top_groups * shape->row_tokens) *
                  (double)counts->group[row * groups + group];
    }
    return weight;
}

/* Weight of P[row,e], all terms but the batch's. */
static double row_weight(const struct router_counts *counts, const struct router_shape *shape,
                         const struct balance_terms *terms, int64_t row, int64_t e)
{
    const int64_t *count = terms->score_counts ? counts->scored : counts->routed;
    double weight = 0;
    if (terms->sequence > 0) {
        weight += terms->sequence * (double)shape->experts /
                  (double)(shape->top_k * shape->row_tokens) *
                  (double)count[row * shape->experts + e];
    }
    if (terms->device > 0 || terms->communication > 0) {
        weight += group_weight(counts, shape, terms, row, e * shape->loss_groups / shape->experts);
    }
    return weight;
}

void cpu_balance(struct device *device, double *loss, float *gradient, const double *sums,
                 struct router_counts counts, const int64_t *chosen, const float *lse,
                 struct router_shape shape, const struct balance_terms *terms)
{
    const int64_t rows = shape.tokens / shape.row_tokens;
    double total = 0;
    for (int64_t i = 0; i < rows * shape.experts; i++) {
        const int64_t row = i / shape.experts, e = i % shape.experts;
        const double weight = row_weight(&counts, &shape, terms, row, e) / (double)shape.tokens;
        const double batch = terms->batch_weight > 0
                                 ? terms->batch_weight * (double)chosen[e] * terms->batch_share
                                 : 0;
        total += (weight + batch) * sums[i];
        gradient[i] = (float)((weight + batch) * terms->unit);
    }
    if (terms->z > 0) {
        double squares = 0;
        cpu_sum_squares(device, &squares, lse, shape.tokens);
        total += terms->z * squares / (double)shape.tokens;
    }
    *loss += total;
}
