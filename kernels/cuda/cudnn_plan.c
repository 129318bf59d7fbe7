#include "kernels/cuda/cudnn_plan.h"

#include <stdlib.h>
#include <string.h>

bool cudnn_plans_may(const struct attention_shape *s)
{
    const int64_t eights = s->qk_dim | s->v_dim | s->q_stride | s->k_stride | s->v_stride |
                           s->o_stride | s->k_head_stride | s->v_head_stride | s->rope_dim |
                           (s->rope_dim > 0 ? s->k_rope_stride : 0);
    return s->dtype == DTYPE_BF16 && s->qk_dim <= 256 && s->v_dim <= 256 && eights % 8 == 0 &&
           s->batch > 0 && s->sequence > 0 && s->sequence % 128 == 0 && s->keys == 0;
}

/* Every field by itself: padding is nobody's. The scale is an operand of the run. */
static bool same(const struct attention_shape *a, const struct attention_shape *b)
{
    return a->batch == b->batch && a->sequence == b->sequence && a->heads == b->heads &&
           a->kv_heads == b->kv_heads && a->qk_dim == b->qk_dim && a->v_dim == b->v_dim &&
           a->q_stride == b->q_stride && a->k_stride == b->k_stride && a->v_stride == b->v_stride &&
           a->o_stride == b->o_stride && a->k_head_stride == b->k_head_stride &&
           a->v_head_stride == b->v_head_stride && a->rope_dim == b->rope_dim &&
           a->k_rope_stride == b->k_rope_stride && a->window == b->window &&
           (a->first == NULL) == (b->first == NULL) && a->dtype == b->dtype;
}

/* ---- slices ---- */

/* Bytes that grow with a slice: deterministic, cuDNN keeps ds; else dq is summed in f32. Gradients
 * of all query heads before their sum over a kv head come on top. */
static size_t slice_bytes(const struct cudnn_plans *plans, const struct cudnn_entry *entry,
                          int64_t samples, int64_t kv_heads)
{
    const struct attention_shape *s = &entry->shape;
    const size_t group = (size_t)(s->heads / s->kv_heads);
    const size_t rows = (size_t)(samples * kv_heads * s->sequence) * group;
    if (!entry->backward) {
        return 0;
    }
    const size_t square = plans->deterministic ? rows * (size_t)s->sequence * 2 : 0;
    const size_t accumulator = plans->deterministic ? 0 : rows * (size_t)s->qk_dim * 4;
    return square + accumulator + (group > 1 ? rows * (size_t)(s->qk_dim + s->v_dim) * 2 : 0);
}

static int64_t largest_divisor_up_to(int64_t n, int64_t most)
{
    int64_t divisor = most;
    while (n % divisor != 0) {
        divisor--;
    }
    return divisor;
}

/* False: not even one kv head of one sample fits. */
static bool choose_slice(const struct cudnn_plans *plans, struct cudnn_entry *entry)
{
    const struct attention_shape *s = &entry->shape;
    const size_t sample = slice_bytes(plans, entry, 1, s->kv_heads);
    const size_t head = slice_bytes(plans, entry, 1, 1);
    entry->samples = s->batch;
    entry->kv_heads = s->kv_heads;
    if (sample > plans->limit) {
        if (head > plans->limit) {
            return false;
        }
        entry->samples = 1;
        entry->kv_heads = largest_divisor_up_to(s->kv_heads, (int64_t)(plans->limit / head));
    } else if (sample > 0 && plans->limit / sample < (size_t)s->batch) {
        entry->samples = largest_divisor_up_to(s->batch, (int64_t)(plans->limit / sample));
    }
    return true;
}

/* The slice as cuDNN is to see it. */
static struct cudnn_problem problem_of(const struct cudnn_plans *plans,
                                       const struct cudnn_entry *entry)
{
    struct cudnn_problem problem = {entry->shape, entry->backward, plans->deterministic};
    struct attention_shape *s = &problem.shape;
    if (s->rope_dim > 0) { /* keys are put together in scratch */
        s->k_stride = s->kv_heads * s->qk_dim;
        s->k_head_stride = s->qk_dim;
        s->rope_dim = s->k_rope_stride = 0;
    }
    s->heads = s->heads / s->kv_heads * entry->kv_heads;
    s->kv_heads = entry->kv_heads;
    s->batch = entry->samples;
    if (s->window >= s->sequence) {
        s->window = 0;
    }
    return problem;
}

/* ---- scratch ---- */

static size_t place(struct cudnn_scratch *scratch, size_t bytes)
{
    const size_t at = scratch->bytes;
    scratch->bytes += (bytes + 255) / 256 * 256;
    return at;
}

static struct cudnn_scratch lay_out(const struct cudnn_entry *entry)
{
    const struct attention_shape *s = &entry->shape, *slice = &entry->slice.shape;
    const size_t rows = (size_t)(slice->batch * slice->heads * slice->sequence);
    const size_t keys = (size_t)(s->batch * s->sequence * s->kv_heads * s->qk_dim) * 2;
    const bool whole = s->rope_dim == 0;
    struct cudnn_scratch scratch = {0};
    scratch.keys = place(&scratch, whole ? 0 : keys);
    scratch.dkeys = place(&scratch, whole || !entry->backward ? 0 : keys);
    scratch.sums = place(&scratch, entry->plan.operand[OPERAND_SUMS] ? rows * 4 : 0);
    scratch.accumulator = place(
        &scratch, entry->plan.operand[OPERAND_ACCUMULATOR] ? rows * (size_t)s->qk_dim * 4 : 0);
    scratch.workspace = place(&scratch, (size_t)entry->plan.workspace_bytes);
    if (scratch.bytes == 0) { /* 0 is said of what is not supported */
        place(&scratch, 1);
    }
    return scratch;
}

/* ---- entries ---- */

static void build(struct cudnn_plans *plans, struct cudnn_entry *entry)
{
    entry->refused = true;
    if (!choose_slice(plans, entry)) {
        entry->plan.failed = "the limit of workspace";
        return;
    }
    entry->slice = problem_of(plans, entry);
    if (cudnn_plan_build(&entry->plan, &plans->target, &entry->slice)) {
        entry->scratch = lay_out(entry);
        entry->refused = false;
    }
}

static struct cudnn_entry *add(struct cudnn_plans *plans)
{
    if (plans->count == plans->capacity) {
        const int64_t capacity = plans->capacity > 0 ? 2 * plans->capacity : 8;
        struct cudnn_entry **entries = realloc(plans->entries, (size_t)capacity * sizeof(*entries));
        if (entries == NULL) {
            return NULL;
        }
        plans->entries = entries;
        plans->capacity = capacity;
    }
    struct cudnn_entry *entry = calloc(1, sizeof *entry);
    if (entry != NULL) {
        plans->entries[plans->count++] = entry;
    }
    return entry;
}

const struct cudnn_entry *cudnn_plans_find(struct cudnn_plans *plans,
                                           const struct attention_shape *shape, bool backward)
{
    static const int32_t some = 0; /* any address that is not NULL and outlives the entry */
    struct cudnn_entry *entry = NULL;
    if (!cudnn_plans_may(shape)) {
        return NULL;
    }
    for (int64_t i = 0; i < plans->count && entry == NULL; i++) {
        if (plans->entries[i]->backward == backward && same(&plans->entries[i]->shape, shape)) {
            entry = plans->entries[i];
        }
    }
    if (entry == NULL) {
        entry = add(plans);
        if (entry == NULL) {
            return NULL;
        }
        entry->shape = *shape;
        entry->shape.first = shape->first != NULL ? &some : NULL;
        entry->backward = backward;
        build(plans, entry);
    }
    return entry->refused ? NULL : entry;
}

void cudnn_plans_free(struct cudnn_plans *plans)
{
    for (int64_t i = 0; i < plans->count; i++) {
        cudnn_plan_free(&plans->entries[i]->plan);
        free(plans->entries[i]);
    }
    free(plans->entries);
    plans->entries = NULL;
    plans->count = plans->capacity = 0;
}
