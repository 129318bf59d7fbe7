#include <assert.h>
#include <math.h>
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

/* The first slot of the same token that goes where `slot` goes. */
static int64_t first_there(const int32_t *expert, int64_t slot, int64_t top_k, int64_t local)
{
    int64_t first = slot - slot % top_k;
    while (expert[first] < 0 || expert[first] / local != expert[slot] / local) {
        first++;
    }
    return first;
}

void cpu_expert_unique(struct device *device, int64_t *begin, int32_t *token, int32_t *place,
                       const int32_t *expert, const int32_t *slot_row, struct dispatch_shape shape)
{
    const int64_t local = shape.experts / shape.ranks;
    int64_t *next = cpu_scratch(device, CPU_SLOT_OTHER, (size_t)shape.ranks * sizeof *next);
    assert(shape.experts % shape.ranks == 0);
    memset(next, 0, (size_t)shape.ranks * sizeof *next);
    for (int64_t slot = 0; slot < shape.slots; slot++) {
        if (expert[slot] >= 0 && first_there(expert, slot, shape.top_k, local) == slot) {
            next[expert[slot] / local]++;
        }
    }
    begin[0] = 0;
    for (int64_t r = 0; r < shape.ranks; r++) {
        begin[r + 1] = begin[r] + next[r];
        next[r] = begin[r];
    }
    for (int64_t slot = 0; slot < shape.slots; slot++) {
        if (expert[slot] < 0) {
            continue;
        }
        const int64_t first = first_there(expert, slot, shape.top_k, local),
                      to = expert[slot] / local;
        if (first == slot) {
            place[slot_row[slot]] = (int32_t)(next[to] - begin[to]);
            token[next[to]++] = (int32_t)(slot / shape.top_k);
        } else {
            place[slot_row[slot]] = place[slot_row[first]];
        }
    }
    for (int64_t row = begin[shape.ranks]; row < shape.slots; row++) {
        token[row] = -1;
    }
}

void cpu_expert_fan_out(struct device *device, int32_t *fan, const int32_t *ungroup,
                        const int32_t *place, const int64_t *arrived, const int64_t *unique,
                        int64_t ranks, int64_t rows)
{
    (void)device;
    assert(rows == arrived[ranks]);
    for (int64_t from = 0; from < ranks; from++) {
        for (int64_t p = arrived[from]; p < arrived[from + 1]; p++) {
            assert(place[p] >= 0 && unique[from] + place[p] < unique[ranks]);
            fan[ungroup[p]] = (int32_t)(unique[from] + place[p]);
        }
    }
    (void)rows;
}

void cpu_expert_relay(struct device *device, int32_t *relay, const int64_t *begin,
                      const int32_t *token, const int32_t *place, const int32_t *expert,
                      const int32_t *slot_row, struct dispatch_shape shape)
{
    const int64_t local = shape.experts / shape.ranks;
    (void)device;
    for (int64_t to = 0; to < shape.ranks; to++) {
        for (int64_t row = begin[to]; row < begin[to + 1]; row++) {
            int64_t slot = token[row] * shape.top_k;
            while (expert[slot] < 0 || expert[slot] / local != to) {
                slot++;
            }
            relay[row] = place[slot_row[slot]];
        }
    }
}

void cpu_expert_pad(struct device *device, int32_t *message, int32_t *token, int32_t *row,
                    int32_t *back, const int64_t *offset, const int64_t *begin,
                    const int32_t *unique_token, const int32_t *place,
                    const struct padded_shape *shape)
{
    const int64_t local = shape->experts / shape->ranks;
    (void)device;
    for (int64_t to = 0; to < shape->ranks; to++) {
        const int64_t *bounds = offset + to * local;
        const int64_t rows = bounds[local] - bounds[0], tokens = begin[to + 1] - begin[to];
        assert(rows <= shape->pair_slots && tokens <= shape->pair_tokens);
        for (int64_t e = 0; e < local; e++) {
            *message++ = (int32_t)(bounds[e + 1] - bounds[e]);
        }
        for (int64_t i = 0; i < shape->pair_slots; i++) {
            *message++ = i < rows ? place[bounds[0] + i] : 0;
            *row++ = i < rows ? (int32_t)(bounds[0] + i) : -1;
        }
        for (int64_t i = 0; i < shape->pair_tokens; i++) {
            *token++ = i < tokens ? unique_token[begin[to] + i] : -1;
        }
        for (int64_t i = 0; i < rows; i++) {
            *back++ = (int32_t)(to * shape->pair_slots + i);
        }
    }
    for (int64_t i = offset[shape->experts]; i < shape->slots; i++) {
        *back++ = -1;
    }
}

void cpu_expert_unpad(struct device *device, int32_t *regroup, int32_t *ungroup, int32_t *fan,
                      int64_t *offset, const int32_t *message, const struct padded_shape *shape)
{
    const int64_t local = shape->experts / shape->ranks, most = shape->ranks * shape->pair_slots,
                  line = local + shape->pair_slots;
    int64_t *taken = cpu_scratch(device, CPU_SLOT_OTHER, (size_t)shape->ranks * sizeof *taken);
    int64_t i = 0;
    memset(taken, 0, (size_t)shape->ranks * sizeof *taken);
    memset(ungroup, -1, (size_t)most * sizeof *ungroup);
    for (int64_t e = 0; e < local; e++) {
        offset[e] = i;
        for (int64_t from = 0; from < shape->ranks; from++) {
            const int32_t *count = message + from * line, *place = count + local;
            for (int64_t j = 0; j < count[e]; j++, i++) {
                const int64_t at = taken[from]++;
                assert(at < shape->pair_slots && place[at] >= 0 && place[at] < shape->pair_tokens);
                regroup[i] = (int32_t)(from * shape->pair_slots + at);
                ungroup[regroup[i]] = (int32_t)i;
                fan[i] = (int32_t)(from * shape->pair_tokens + place[at]);
            }
        }
    }
    offset[local] = i;
    for (; i < most; i++) {
        regroup[i] = fan[i] = -1;
    }
}

struct ranked {
    bool number; /* not NaN, which is below all of them */
    float weight;
    int64_t slot;
};

static int by_falling_weight(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->number != y->number) {
        return x->number ? -1 : 1;
    }
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
                list[count++] = (struct ranked){.number = !isnan(weight[slot]),
                                                .weight = isnan(weight[slot]) ? 0 : weight[slot],
                                                .slot = slot};
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

void cpu_expert_spread(struct device *device, int32_t *spread, float *spread_weight,
                       const int32_t *expert, const float *weight, int64_t slots, int64_t slices,
                       int64_t local)
{
    (void)device;
    for (int64_t i = 0; i < slots * slices; i++) {
        const int64_t e = expert[i / slices];
        spread[i] = e < 0 ? -1 : (int32_t)((e / local * slices + i % slices) * local + e % local);
        spread_weight[i] = weight[i / slices];
    }
}

void cpu_expert_fold(struct device *device, float *weight, const float *spread_weight,
                     int64_t slots, int64_t slices)
{
    (void)device;
    for (int64_t s = 0; s < slots; s++) {
        float sum = 0;
        for (int64_t f = 0; f < slices; f++) {
            sum += spread_weight[s * slices + f];
        }
        weight[s] = sum;
    }
}
