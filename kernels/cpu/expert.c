#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

void cpu_expert_sort(struct device *device, int64_t *offset, int32_t *token, int32_t *slot_row,
                     const int32_t *expert, int64_t slots, int64_t top_k, int64_t experts)
{
    int64_t *next = cpu_scratch(device, CPU_SLOT_OTHER, (size_t)experts * sizeof *next);
    memset(next, 0, (size_t)experts * sizeof *next);
    for (int64_t slot = 0; slot < slots; slot++) {
        assert(expert[slot] < experts);
        if (expert[slot] >= 0) {
            next[expert[slot]]++;
        }
    }
    offset[0] = 0;
    for (int64_t e = 0; e < experts; e++) {
        offset[e + 1] = offset[e] + next[e];
        next[e] = offset[e];
    }
    for (int64_t slot = 0; slot < slots; slot++) {
        slot_row[slot] = -1;
        if (expert[slot] >= 0) {
            const int64_t row = next[expert[slot]]++;
            token[row] = (int32_t)(slot / top_k);
            slot_row[slot] = (int32_t)row;
        }
    }
    for (int64_t row = offset[experts]; row < slots; row++) {
        token[row] = -1;
    }
}

void cpu_expert_regroup(struct device *device, int32_t *regroup, int32_t *ungroup, int64_t *offset,
                        const int64_t *taken, int64_t local, int64_t ranks)
{
    int64_t *arrival = cpu_scratch(device, CPU_SLOT_OTHER, (size_t)ranks * sizeof *arrival);
    int64_t first = 0, row = 0;
    for (int64_t from = 0; from < ranks; from++) {
        arrival[from] = first;
        for (int64_t e = 0; e < local; e++) {
            first += taken[e * ranks + from];
        }
    }
    for (int64_t i = 0; i < local * ranks; i++) {
        if (i % ranks == 0) {
            offset[i / ranks] = row;
        }
        for (int64_t j = 0; j < taken[i]; j++, row++) {
            const int64_t from = arrival[i % ranks]++;
            regroup[row] = (int32_t)from;
            ungroup[from] = (int32_t)row;
        }
    }
    offset[local] = row;
}

struct ranked {
    float weight;
    int64_t slot;
};

static int by_falling_weight(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->weight != y->weight) {
        return x->weight < y->weight ? 1 : -1;
    }
    return (x->slot > y->slot) - (x->slot < y->slot);
}

void cpu_expert_drop(struct device *device, int32_t *kept, const int32_t *expert,
                     const float *weight, int64_t slots, int64_t experts, int64_t groups,
                     int64_t capacity)
{
    const int64_t size = experts / groups;
    struct ranked *list = cpu_scratch(device, CPU_SLOT_OTHER, (size_t)slots * sizeof *list);
    memcpy(kept, expert, (size_t)slots * sizeof *kept);
    for (int64_t group = 0; group < groups; group++) {
        int64_t count = 0;
        for (int64_t slot = 0; slot < slots; slot++) {
            if (expert[slot] >= 0 && expert[slot] / size == group) {
                list[count++] = (struct ranked){.weight = weight[slot], .slot = slot};
            }
        }
        if (count > capacity) {
            qsort(list, (size_t)count, sizeof *list, by_falling_weight);
        }
        for (int64_t i = capacity; i < count; i++) {
            kept[list[i].slot] = -1;
        }
    }
}
