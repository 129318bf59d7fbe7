#include "trainer/model/capacity.h"

#include <math.h>

static bool alone(const struct capacity *capacity)
{
    return tp_alone(capacity->tp) && cp_alone(capacity->cp);
}

void capacity_layout(struct capacity *capacity, struct arena *arena)
{
    const size_t slots = (size_t)(capacity->tokens * capacity->top_k) * sizeof(int32_t);
    if (capacity->factor <= 0 || alone(capacity)) {
        return;
    }
    capacity->expert = arena_alloc(arena, slots);
    capacity->kept = arena_alloc(arena, slots);
    capacity->weight = arena_alloc(arena, slots);
    if (!cp_alone(capacity->cp)) {
        const int64_t row = capacity->top_k,
                      sequence = capacity->cp->comm->size * CP_PIECES * capacity->cp->chunk;
        capacity->gathered =
            arena_alloc(arena, (size_t)(capacity->part * row) * sizeof *capacity->gathered);
        capacity->parts = arena_alloc(arena, (size_t)(sequence * row) * sizeof *capacity->parts);
    }
}

/* Tokens as rows. */
static struct tensor rows_of(const struct capacity *capacity, const void *data, int64_t tokens)
{
    return tensor_2d((void *)(uintptr_t)data, DTYPE_I32, tokens, capacity->top_k);
}

/* all <- this rank's, both of four bytes a slot. */
static void gather(const struct capacity *capacity, void *all, const void *own, int64_t count,
                   int64_t sequence, int64_t length)
{
    const struct cp *cp = capacity->cp;
    const int64_t part = cp_tokens(cp, length), row = capacity->top_k;
    const void *from = own;
    if (!tp_alone(capacity->tp)) {
        void *to = cp_alone(cp) ? all : capacity->gathered;
        tp_gather(capacity->tp, rows_of(capacity, to, count * part),
                  rows_of(capacity, own, count * sequence), count);
        from = to;
    }
    for (int64_t s = 0; !cp_alone(cp) && s < count; s++) {
        cp_gather(cp, (int32_t *)all + s * length * row, capacity->parts,
                  (const int32_t *)from + s * part * row, length, (size_t)row * sizeof(int32_t));
    }
}

/* kept <- this rank's of all: of each sequence the pieces that this rank of cp has, and of these
 * what this rank of tp has. */
static void take_own(const struct capacity *capacity, int32_t *kept, int64_t count,
                     int64_t sequence, int64_t length)
{
    const struct cp_pieces pieces = cp_pieces(capacity->cp, length);
    const int64_t begin = tp_first(capacity->tp), row = capacity->top_k;
    for (int64_t s = 0; s < count; s++) {
        for (int p = 0; p < CP_PIECES; p++) {
            const struct cp_piece *piece = &pieces.piece[p];
            const int64_t end = piece->at + piece->count,
                          from = piece->at > begin ? piece->at : begin,
                          to = end < begin + sequence ? end : begin + sequence;
            if (from < to) {
                const int64_t first = s * length + piece->first + from - piece->at;
                capacity->ops->copy(capacity->device, kept + (s * sequence + from - begin) * row,
                                    capacity->kept + first * row,
                                    (size_t)((to - from) * row) * sizeof *kept);
            }
        }
    }
}

void capacity_drop(const struct capacity *capacity, int32_t *kept, const int32_t *expert,
                   const float *weight, int64_t count, int64_t sequence, int64_t length)
{
    const int64_t slots = count * length * capacity->top_k, groups = capacity->groups;
    const int64_t most = (int64_t)ceil(capacity->factor * (double)slots / (double)groups);
    if (alone(capacity)) {
        capacity->ops->expert_drop(capacity->device, kept, expert, weight, slots, capacity->experts,
                                   groups, most);
        return;
    }
    gather(capacity, capacity->expert, expert, count, sequence, length);
    gather(capacity, capacity->weight, weight, count, sequence, length);
    capacity->ops->expert_drop(capacity->device, capacity->kept, capacity->expert, capacity->weight,
                               slots, capacity->experts, groups, most);
    take_own(capacity, kept, count, sequence, length);
}
