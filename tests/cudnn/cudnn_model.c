/* A model of the part of cuDNN that kernels/cuda uses: keeps descriptors, evaluates the operations
 * of a graph one by one, every intermediate result whole, in memory of the host. Slow, and right by
 * its shortness: it says what a graph means, where cuDNN says only whether it has a kernel for it.
 *
 * Found by library_open in the program itself. Two properties of the real kernels are modelled:
 * a product into f32 memory is added to what is there, and the workspace is overwritten.
 */
#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "tests/cudnn/cudnn_model.h"

int64_t cudnn_model_engines = 1;
int64_t cudnn_model_alive;
int64_t cudnn_model_runs;
int64_t cudnn_model_workspace = 1000;

/* ---- descriptors: a bag of attributes ---- */

struct attribute {
    cudnnBackendAttributeName_t name;
    int64_t count;
    unsigned char *values; /* owned */
};

struct descriptor {
    cudnnBackendDescriptorType_t type;
    bool finished;
    int attributes;
    struct attribute attribute[8];
};

static size_t width_of(cudnnBackendAttributeType_t type)
{
    switch (type) {
    case CUDNN_TYPE_BOOLEAN:
        return sizeof(bool);
    case CUDNN_TYPE_INT64:
        return sizeof(int64_t);
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR:
        return sizeof(void *);
    default:
        return sizeof(int); /* the enumerations */
    }
}

static const void *values_of(const struct descriptor *d, cudnnBackendAttributeName_t name,
                             int64_t *count)
{
    for (int i = 0; i < d->attributes; i++) {
        if (d->attribute[i].name == name) {
            *count = d->attribute[i].count;
            return d->attribute[i].values;
        }
    }
    *count = 0;
    return NULL;
}

static struct descriptor *part(const struct descriptor *d, cudnnBackendAttributeName_t name)
{
    int64_t count;
    struct descriptor *const *value = values_of(d, name, &count);
    return value != NULL ? *value : NULL;
}

static int64_t integer(const struct descriptor *d, cudnnBackendAttributeName_t name)
{
    int64_t count;
    const int64_t *value = values_of(d, name, &count);
    return value != NULL ? *value : 0;
}

static int choice(const struct descriptor *d, cudnnBackendAttributeName_t name)
{
    int64_t count;
    const int *value = values_of(d, name, &count);
    assert(value != NULL);
    return *value;
}

/* ---- tensors ---- */

struct values {
    int64_t id, dim[4], stride[4];
    cudnnDataType_t type;
    float *virtual_data; /* owned, [dim]; NULL: memory */
    void *memory;        /* borrowed */
};

enum { TENSORS = 128 };

struct evaluation {
    struct values tensor[TENSORS];
    int count;
    const int64_t *ids; /* of the variant pack */
    void *const *pointers;
    int64_t bound;
};

static struct values *values_at(struct evaluation *e, const struct descriptor *d)
{
    int64_t count;
    const int64_t id = integer(d, CUDNN_ATTR_TENSOR_UNIQUE_ID);
    for (int i = 0; i < e->count; i++) {
        if (e->tensor[i].id == id) {
            return &e->tensor[i];
        }
    }
    assert(e->count < TENSORS && d->type == CUDNN_BACKEND_TENSOR_DESCRIPTOR && d->finished);
    struct values *v = &e->tensor[e->count++];
    memset(v, 0, sizeof *v);
    v->id = id;
    v->type = (cudnnDataType_t)choice(d, CUDNN_ATTR_TENSOR_DATA_TYPE);
    memcpy(v->dim, values_of(d, CUDNN_ATTR_TENSOR_DIMENSIONS, &count), sizeof v->dim);
    memcpy(v->stride, values_of(d, CUDNN_ATTR_TENSOR_STRIDES, &count), sizeof v->stride);
    if (*(const bool *)values_of(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, &count)) {
        const int64_t elements = v->dim[0] * v->dim[1] * v->dim[2] * v->dim[3];
        v->virtual_data = calloc((size_t)elements, sizeof(float));
        assert(v->virtual_data != NULL);
        return v;
    }
    for (int64_t i = 0; i < e->bound; i++) {
        if (e->ids[i] == id) {
            v->memory = e->pointers[i];
        }
    }
    assert(v->memory != NULL); /* every tensor of the graph is bound */
    assert((uintptr_t)v->memory % (uintptr_t)integer(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT) == 0);
    return v;
}

/* The element that stands for element `at` of `whole`: sizes that are smaller divide it (one of all
 * columns, one kv head of its query heads). */
static int64_t element(const struct values *v, const int64_t at[4], const int64_t whole[4])
{
    int64_t offset = 0;
    for (int i = 0; i < 4; i++) {
        assert(whole[i] >= v->dim[i] && v->dim[i] > 0 && whole[i] % v->dim[i] == 0);
        const int64_t index = at[i] / (whole[i] / v->dim[i]);
        offset =
            v->virtual_data != NULL ? offset * v->dim[i] + index : offset + index * v->stride[i];
    }
    return offset;
}

static float load(const struct values *v, int64_t offset)
{
    if (v->virtual_data != NULL) {
        return v->virtual_data[offset];
    }
    switch (v->type) {
    case CUDNN_DATA_BFLOAT16:
        return bf16_to_float(((const uint16_t *)v->memory)[offset]);
    case CUDNN_DATA_INT32:
        return (float)((const int32_t *)v->memory)[offset];
    default:
        assert(v->type == CUDNN_DATA_FLOAT);
        return ((const float *)v->memory)[offset];
    }
}

static void store(struct values *v, int64_t offset, float x)
{
    if (v->virtual_data != NULL) {
        v->virtual_data[offset] =
            v->type == CUDNN_DATA_BFLOAT16 ? bf16_to_float(bf16_from_float(x)) : x;
    } else if (v->type == CUDNN_DATA_BFLOAT16) {
        ((uint16_t *)v->memory)[offset] = bf16_from_float(x);
    } else {
        assert(v->type == CUDNN_DATA_FLOAT);
        ((float *)v->memory)[offset] = x;
    }
}

/* Steps `at` through `dim`, false past the end. */
static bool next(int64_t at[4], const int64_t dim[4])
{
    for (int i = 3; i >= 0; i--) {
        if (++at[i] < dim[i]) {
            return true;
        }
        at[i] = 0;
    }
    return false;
}

/* ---- operations ---- */

static float pointwise(cudnnPointwiseMode_t mode, float x, float b, float t)
{
    switch (mode) {
    case CUDNN_POINTWISE_ADD:
        return x + b;
    case CUDNN_POINTWISE_SUB:
        return x - b;
    case CUDNN_POINTWISE_MUL:
        return x * b;
    case CUDNN_POINTWISE_DIV:
        return x / b;
    case CUDNN_POINTWISE_EXP:
        return expf(x);
    case CUDNN_POINTWISE_LOG:
        return logf(x);
    case CUDNN_POINTWISE_CMP_GE:
        return x >= b;
    case CUDNN_POINTWISE_CMP_GT:
        return x > b;
    case CUDNN_POINTWISE_BINARY_SELECT:
        return t != 0 ? x : b;
    default:
        assert(mode == CUDNN_POINTWISE_IDENTITY);
        return x;
    }
}

static void evaluate_pointwise(struct evaluation *e, const struct descriptor *op)
{
    const struct descriptor *how = part(op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    const struct descriptor *db = part(op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
    const struct descriptor *dt = part(op, CUDNN_ATTR_OPERATION_POINTWISE_TDESC);
    const cudnnPointwiseMode_t mode = (cudnnPointwiseMode_t)choice(how, CUDNN_ATTR_POINTWISE_MODE);
    const int64_t axis = integer(how, CUDNN_ATTR_POINTWISE_AXIS);
    struct values *x = values_at(e, part(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC));
    struct values *y = values_at(e, part(op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
    struct values *b = db != NULL ? values_at(e, db) : NULL;
    struct values *t = dt != NULL ? values_at(e, dt) : NULL;
    int64_t at[4] = {0};
    do {
        const float result = mode == CUDNN_POINTWISE_GEN_INDEX
                                 ? (float)at[axis]
                                 : pointwise(mode, load(x, element(x, at, y->dim)),
                                             b != NULL ? load(b, element(b, at, y->dim)) : 0,
                                             t != NULL ? load(t, element(t, at, y->dim)) : 0);
        store(y, element(y, at, y->dim), result);
    } while (next(at, y->dim));
}

static void evaluate_reduction(struct evaluation *e, const struct descriptor *op)
{
    const struct descriptor *how = part(op, CUDNN_ATTR_OPERATION_REDUCTION_DESC);
    const bool most = choice(how, CUDNN_ATTR_REDUCTION_OPERATOR) == CUDNN_REDUCE_TENSOR_MAX;
    struct values *x = values_at(e, part(op, CUDNN_ATTR_OPERATION_REDUCTION_XDESC));
    struct values *y = values_at(e, part(op, CUDNN_ATTR_OPERATION_REDUCTION_YDESC));
    struct values sum = *y; /* in f32, whatever y is */
    sum.type = CUDNN_DATA_FLOAT;
    const size_t elements = (size_t)(y->dim[0] * y->dim[1] * y->dim[2] * y->dim[3]);
    sum.virtual_data = calloc(elements, sizeof(float));
    assert(sum.virtual_data != NULL);
    for (size_t i = 0; i < elements; i++) {
        sum.virtual_data[i] = most ? -INFINITY : 0;
    }
    int64_t at[4] = {0};
    do {
        float *into = &sum.virtual_data[element(&sum, at, x->dim)];
        const float value = load(x, element(x, at, x->dim));
        *into = most ? fmaxf(*into, value) : *into + value;
    } while (next(at, x->dim));
    do {
        store(y, element(y, at, y->dim), sum.virtual_data[element(&sum, at, y->dim)]);
    } while (next(at, y->dim));
    free(sum.virtual_data);
}

static void evaluate_product(struct evaluation *e, const struct descriptor *op)
{
    struct values *a = values_at(e, part(op, CUDNN_ATTR_OPERATION_MATMUL_ADESC));
    struct values *b = values_at(e, part(op, CUDNN_ATTR_OPERATION_MATMUL_BDESC));
    struct values *c = values_at(e, part(op, CUDNN_ATTR_OPERATION_MATMUL_CDESC));
    const bool adds = c->virtual_data == NULL && c->type == CUDNN_DATA_FLOAT;
    assert(a->dim[3] == b->dim[2] && a->dim[2] == c->dim[2] && b->dim[3] == c->dim[3]);
    int64_t at[4] = {0};
    do {
        const int64_t to = element(c, at, c->dim);
        float sum = adds ? load(c, to) : 0;
        for (int64_t k = 0; k < a->dim[3]; k++) {
            const int64_t in_a[4] = {at[0], at[1], at[2], k}, in_b[4] = {at[0], at[1], k, at[3]};
            const int64_t of_a[4] = {c->dim[0], c->dim[1], c->dim[2], a->dim[3]};
            const int64_t of_b[4] = {c->dim[0], c->dim[1], b->dim[2], c->dim[3]};
            sum += load(a, element(a, in_a, of_a)) * load(b, element(b, in_b, of_b));
        }
        store(c, to, sum);
    } while (next(at, c->dim));
}

/* Rows and columns exchanged: the same elements by other names. */
static void evaluate_reshape(struct evaluation *e, const struct descriptor *op)
{
    struct values *x = values_at(e, part(op, CUDNN_ATTR_OPERATION_RESHAPE_XDESC));
    struct values *y = values_at(e, part(op, CUDNN_ATTR_OPERATION_RESHAPE_YDESC));
    const int from[4] = {0, 1, 3, 2};
    for (int i = 0; i < 4; i++) {
        assert(y->dim[i] == x->dim[from[i]] && y->stride[i] == x->stride[from[i]]);
    }
    int64_t at[4] = {0};
    do {
        const int64_t in_x[4] = {at[0], at[1], at[3], at[2]};
        store(y, element(y, at, y->dim), load(x, element(x, in_x, x->dim)));
    } while (next(at, y->dim));
}

static void evaluate(struct evaluation *e, const struct descriptor *op)
{
    assert(op->finished);
    switch (op->type) {
    case CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR:
        evaluate_pointwise(e, op);
        break;
    case CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR:
        evaluate_reduction(e, op);
        break;
    case CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR:
        evaluate_product(e, op);
        break;
    default:
        assert(op->type == CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
        evaluate_reshape(e, op);
    }
}

/* ---- the library's functions ---- */

size_t cudnnGetVersion(void)
{
    return 91900;
}

const char *cudnnGetErrorString(cudnnStatus_t status)
{
    return status == CUDNN_STATUS_SUCCESS ? "success" : "failure";
}

cudnnStatus_t cudnnCreate(cudnnHandle_t *handle)
{
    *handle = (cudnnHandle_t)(void *)&cudnn_model_alive;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t handle)
{
    (void)handle;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream)
{
    (void)handle, (void)stream;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t *out)
{
    struct descriptor *d = calloc(1, sizeof *d);
    assert(d != NULL);
    d->type = type;
    *out = d;
    cudnn_model_alive++;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t descriptor)
{
    struct descriptor *d = descriptor;
    for (int i = 0; i < d->attributes; i++) {
        free(d->attribute[i].values);
    }
    free(d);
    cudnn_model_alive--;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count,
                                       const void *values)
{
    struct descriptor *d = descriptor;
    const size_t bytes = width_of(type) * (size_t)count;
    assert(!d->finished && d->attributes < 8 && count > 0);
    struct attribute *attribute = &d->attribute[d->attributes++];
    *attribute = (struct attribute){name, count, malloc(bytes)};
    assert(attribute->values != NULL);
    memcpy(attribute->values, values, bytes);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t const descriptor,
                                       cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t most,
                                       int64_t *count, void *values)
{
    const struct descriptor *d = descriptor;
    assert(d->finished && most >= 1);
    if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) {
        assert(type == CUDNN_TYPE_INT64);
        *(int64_t *)values = cudnn_model_workspace;
        *count = 1;
        return CUDNN_STATUS_SUCCESS;
    }
    assert(name == CUDNN_ATTR_ENGINEHEUR_RESULTS && type == CUDNN_TYPE_BACKEND_DESCRIPTOR);
    *count = cudnn_model_engines;
    if (*count > 0) { /* a configuration is its graph */
        struct descriptor *config = *(struct descriptor **)values;
        const struct descriptor *graph = part(d, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
        cudnnBackendSetAttribute(config, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
                                 CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, (const void *)&graph);
        config->finished = true;
    }
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t descriptor)
{
    struct descriptor *d = descriptor;
    assert(!d->finished);
    d->finished = true;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack)
{
    struct evaluation *e = calloc(1, sizeof *e);
    int64_t count, pointers;
    assert(e != NULL && handle != NULL);
    cudnn_model_runs++;
    const struct descriptor *config = part(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG);
    const struct descriptor *graph = part(config, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
    e->ids = values_of(pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &e->bound);
    e->pointers = values_of(pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &pointers);
    assert(pointers == e->bound);
    memset(*(void *const *)values_of(pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &count), 0xFF,
           (size_t)cudnn_model_workspace);
    struct descriptor *const *operations = values_of(graph, CUDNN_ATTR_OPERATIONGRAPH_OPS, &count);
    for (int64_t i = 0; i < count; i++) {
        evaluate(e, operations[i]);
    }
    for (int i = 0; i < e->count; i++) {
        free(e->tensor[i].virtual_data);
    }
    free(e);
    return CUDNN_STATUS_SUCCESS;
}
