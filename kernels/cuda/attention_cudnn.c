#include "kernels/cuda/attention_cudnn.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cuda_runtime_api.h>

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/cudnn_plan.h"

struct cudnn_attention {
    struct cudnn_api api;     /* owned */
    cudnnHandle_t handle;     /* owned */
    struct cudnn_plans plans; /* owned */
};

enum { LIMIT_MIB = 1024 };

/* ---- open, close, sizes ---- */

enum status cudnn_attention_open(struct cudnn_attention **out, bool deterministic)
{
    struct cudnn_attention *attention = calloc(1, sizeof *attention);
    *out = NULL;
    if (attention == NULL) {
        return status_fail(STATUS_RESOURCE, "no memory for cuDNN's handle");
    }
    const enum status status = cudnn_api_open(&attention->api);
    if (status != STATUS_OK) {
        free(attention);
        return status;
    }
    const cudnnStatus_t opened = attention->api.open(&attention->handle);
    if (opened != CUDNN_STATUS_SUCCESS) {
        const enum status failed = status_fail(STATUS_RESOURCE, "cuDNN does not open the GPU: %s",
                                               attention->api.error(opened));
        attention->handle = NULL;
        cudnn_attention_close(attention);
        return failed;
    }
    attention->plans = (struct cudnn_plans){
        .target = {.api = &attention->api, .handle = attention->handle},
        .deterministic = deterministic,
        .limit = (size_t)LIMIT_MIB << 20,
    };
    *out = attention;
    return STATUS_OK;
}

void cudnn_attention_close(struct cudnn_attention *attention)
{
    if (attention == NULL) {
        return;
    }
    cudnn_plans_free(&attention->plans);
    if (attention->handle != NULL) {
        attention->api.close(attention->handle);
    }
    cudnn_api_close(&attention->api);
    free(attention);
}

void cudnn_attention_limit(struct cudnn_attention *attention, size_t bytes)
{
    assert(attention->plans.count == 0);
    attention->plans.limit = bytes;
}

bool cudnn_attention_supports(struct cudnn_attention *attention,
                              const struct attention_shape *shape, bool backward)
{
    return cudnn_plans_find(&attention->plans, shape, backward) != NULL;
}

size_t cudnn_attention_scratch(struct cudnn_attention *attention,
                               const struct attention_shape *shape, bool backward)
{
    const struct cudnn_entry *entry = cudnn_plans_find(&attention->plans, shape, backward);
    return entry != NULL ? entry->scratch.bytes : 0;
}

/* ---- running ---- */

/* What a run binds, by operand; NULL where it has none. */
struct binding {
    const void *at[OPERAND_COUNT];
};

static bool aligned(const void *const *pointers, size_t count)
{
    uintptr_t all = 0;
    for (size_t i = 0; i < count; i++) {
        all |= (uintptr_t)pointers[i];
    }
    return all % 16 == 0;
}

static bool execute(struct cudnn_attention *attention, const struct cudnn_plan *plan,
                    const struct binding *binding, void *workspace)
{
    const struct cudnn_api *api = &attention->api;
    int64_t ids[OPERAND_COUNT], count = 0;
    const void *pointers[OPERAND_COUNT];
    for (int id = 0; id < OPERAND_COUNT; id++) {
        if (plan->operand[id]) {
            assert(binding->at[id] != NULL);
            ids[count] = id;
            pointers[count++] = binding->at[id];
        }
    }
    cudnnBackendDescriptor_t pack = NULL;
    if (api->create(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, &pack) != CUDNN_STATUS_SUCCESS) {
        return false;
    }
    const bool done = api->set(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count,
                               ids) == CUDNN_STATUS_SUCCESS &&
                      api->set(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
                               count, (const void *)pointers) == CUDNN_STATUS_SUCCESS &&
                      api->set(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                               (const void *)&workspace) == CUDNN_STATUS_SUCCESS &&
                      api->finalize(pack) == CUDNN_STATUS_SUCCESS &&
                      api->execute(attention->handle, plan->plan, pack) == CUDNN_STATUS_SUCCESS;
    api->destroy(pack);
    return done;
}

/* bf16 elements, f32 or int32 further on. */
static const void *halves(const void *p, int64_t elements)
{
    return p != NULL ? (const char *)p + elements * 2 : NULL;
}

static const void *words(const void *p, int64_t elements)
{
    return p != NULL ? (const char *)p + elements * 4 : NULL;
}

/* The operands of the slice that begins at a sample and a kv head. */
static struct binding slice_of(const struct cudnn_entry *entry, const struct binding *whole,
                               int64_t sample, int64_t kv_head)
{
    const struct attention_shape *s = &entry->shape, *slice = &entry->slice.shape;
    const int64_t row = sample * s->sequence, head = kv_head * (s->heads / s->kv_heads);
    const int64_t q = row * s->q_stride + head * s->qk_dim;
    const int64_t k = row * slice->k_stride + kv_head * slice->k_head_stride;
    const int64_t v = row * s->v_stride + kv_head * s->v_head_stride;
    const int64_t o = row * s->o_stride + head * s->v_dim;
    struct binding binding = *whole;
    const void **at = binding.at;
    at[OPERAND_Q] = halves(at[OPERAND_Q], q);
    at[OPERAND_DQ] = halves(at[OPERAND_DQ], q);
    at[OPERAND_K] = halves(at[OPERAND_K], k);
    at[OPERAND_DK] = halves(at[OPERAND_DK], k);
    at[OPERAND_V] = halves(at[OPERAND_V], v);
    at[OPERAND_DV] = halves(at[OPERAND_DV], v);
    at[OPERAND_O] = halves(at[OPERAND_O], o);
    at[OPERAND_D_O] = halves(at[OPERAND_D_O], o);
    at[OPERAND_LSE] = words(at[OPERAND_LSE], (sample * s->heads + head) * s->sequence);
    at[OPERAND_FIRST] = words(at[OPERAND_FIRST], row);
    return binding;
}

/* Every slice in turn: they share the buffers of scratch, in the order of the stream. */
static bool run(struct cudnn_attention *attention, void *stream, const struct cudnn_entry *entry,
                const struct binding *whole, void *scratch)
{
    const struct attention_shape *s = &entry->shape, *slice = &entry->slice.shape;
    const size_t accumulator =
        (size_t)(slice->batch * slice->heads * slice->sequence * slice->qk_dim) * sizeof(float);
    char *const at = scratch;
    for (int64_t sample = 0; sample < s->batch; sample += entry->samples) {
        for (int64_t head = 0; head < s->kv_heads; head += entry->kv_heads) {
            const struct binding binding = slice_of(entry, whole, sample, head);
            if (entry->plan.operand[OPERAND_ACCUMULATOR] &&
                cudaMemsetAsync(at + entry->scratch.accumulator, 0, accumulator,
                                (cudaStream_t)stream) != cudaSuccess) {
                return false;
            }
            if (!execute(attention, &entry->plan, &binding, at + entry->scratch.workspace)) {
                return false;
            }
        }
    }
    return true;
}

static const struct cudnn_entry *begin(struct cudnn_attention *attention, void *stream,
                                       const struct attention_shape *shape, bool backward,
                                       const void *scratch)
{
    const struct cudnn_entry *entry = cudnn_plans_find(&attention->plans, shape, backward);
    if (entry == NULL || attention->api.set_stream(attention->handle, (cudaStream_t)stream) !=
                             CUDNN_STATUS_SUCCESS) {
        return NULL;
    }
    assert(scratch != NULL && (uintptr_t)scratch % 256 == 0);
    return entry;
}

/* Host memory that cuDNN reads while it executes. */
struct scalars {
    float scale, one, window, hidden;
};

static struct scalars scalars_of(const struct attention_shape *shape)
{
    return (struct scalars){shape->scale, 1.0F, (float)shape->window, -INFINITY};
}

static void bind_scalars(struct binding *binding, const struct scalars *scalars)
{
    binding->at[OPERAND_SCALE] = &scalars->scale;
    binding->at[OPERAND_ONE] = &scalars->one;
    binding->at[OPERAND_WINDOW] = &scalars->window;
    binding->at[OPERAND_HIDDEN_DOCUMENT] = &scalars->hidden;
    binding->at[OPERAND_HIDDEN_FUTURE] = &scalars->hidden;
    binding->at[OPERAND_HIDDEN_WINDOW] = &scalars->hidden;
}

bool cudnn_attention_forward(struct cudnn_attention *attention, void *stream, void *o, float *lse,
                             const void *q, const void *k, const void *k_rope, const void *v,
                             const struct attention_shape *shape, void *scratch)
{
    const void *const pointers[] = {o, lse, q, k, k_rope, v, shape->first};
    if (!aligned(pointers, sizeof pointers / sizeof *pointers)) {
        return false;
    }
    const struct cudnn_entry *entry = begin(attention, stream, shape, false, scratch);
    if (entry == NULL) {
        return false;
    }
    if (shape->rope_dim > 0) {
        void *keys = (char *)scratch + entry->scratch.keys;
        cuda_attention_join_keys(stream, keys, k, k_rope, shape);
        k = keys;
    }
    const struct scalars scalars = scalars_of(shape);
    struct binding binding = {.at = {[OPERAND_Q] = q,
                                     [OPERAND_K] = k,
                                     [OPERAND_V] = v,
                                     [OPERAND_O] = o,
                                     [OPERAND_LSE] = lse,
                                     [OPERAND_FIRST] = shape->first}};
    bind_scalars(&binding, &scalars);
    return run(attention, stream, entry, &binding, scratch);
}

bool cudnn_attention_backward(struct cudnn_attention *attention, void *stream, void *dq, void *dk,
                              void *dk_rope, void *dv, const void *d_o, const void *o,
                              const float *lse, const void *q, const void *k, const void *k_rope,
                              const void *v, const struct attention_shape *shape, void *scratch)
{
    const void *const pointers[] = {dq,  dk, dk_rope, dv,     d_o, o,
                                    lse, q,  k,       k_rope, v,   shape->first};
    if (!aligned(pointers, sizeof pointers / sizeof *pointers)) {
        return false;
    }
    const struct cudnn_entry *entry = begin(attention, stream, shape, true, scratch);
    if (entry == NULL) {
        return false;
    }
    char *const at = scratch;
    void *dkeys = dk;
    if (shape->rope_dim > 0) {
        cuda_attention_join_keys(stream, at + entry->scratch.keys, k, k_rope, shape);
        k = at + entry->scratch.keys;
        dkeys = at + entry->scratch.dkeys;
    }
    const struct scalars scalars = scalars_of(shape);
    struct binding binding = {.at = {[OPERAND_Q] = q,
                                     [OPERAND_K] = k,
                                     [OPERAND_V] = v,
                                     [OPERAND_O] = o,
                                     [OPERAND_LSE] = lse,
                                     [OPERAND_FIRST] = shape->first,
                                     [OPERAND_D_O] = d_o,
                                     [OPERAND_DQ] = dq,
                                     [OPERAND_DK] = dkeys,
                                     [OPERAND_DV] = dv,
                                     [OPERAND_SUMS] = at + entry->scratch.sums,
                                     [OPERAND_ACCUMULATOR] = at + entry->scratch.accumulator}};
    bind_scalars(&binding, &scalars);
    const bool done = run(attention, stream, entry, &binding, scratch);
    if (done && shape->rope_dim > 0) {
        cuda_attention_split_keys(stream, dk, dk_rope, dkeys, shape);
    }
    return done;
}
