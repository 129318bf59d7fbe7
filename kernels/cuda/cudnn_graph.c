#include "kernels/cuda/cudnn_graph.h"

#include <assert.h>
#include <string.h>

typedef cudnnBackendDescriptor_t desc; /* NULL once something failed */

struct layout {
    int64_t dim[4], stride[4]; /* batch, head, row, column; elements */
};

enum { OPERATIONS = 48, ENGINES = 8, FIRST_VIRTUAL_ID = 100 };

struct graph {
    struct cudnn_plan *plan;
    const struct cudnn_target *target;
    desc operations[OPERATIONS];
    int64_t count;
    int64_t next_id;            /* of virtual tensors */
    struct layout scores, rows; /* [B,H,T,T] and [B,H,T,1] */
};

/* ---- descriptors ---- */

/* Remembers the first failure; true while there is none. */
static bool check(struct graph *graph, cudnnStatus_t status, const char *what)
{
    if (status != CUDNN_STATUS_SUCCESS && graph->plan->failed == NULL) {
        graph->plan->failed = what;
        graph->plan->status = status;
    }
    return graph->plan->failed == NULL;
}

static desc create(struct graph *graph, cudnnBackendDescriptorType_t type)
{
    struct cudnn_plan *plan = graph->plan;
    desc made = NULL;
    if (plan->failed != NULL || !check(graph, plan->api->create(type, &made), "a descriptor")) {
        return NULL;
    }
    assert(plan->count < CUDNN_DESCRIPTORS);
    plan->descriptors[plan->count++] = made;
    return made;
}

static void set(struct graph *graph, desc d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, const void *values, int64_t count)
{
    if (graph->plan->failed == NULL) {
        check(graph, graph->plan->api->set(d, name, type, count, values), "an attribute");
    }
}

/* A NULL operand is one that the operation does without. */
static void set_desc(struct graph *graph, desc d, cudnnBackendAttributeName_t name, desc value)
{
    if (value != NULL) {
        set(graph, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, &value, 1);
    }
}

static desc finish(struct graph *graph, desc d, const char *what)
{
    if (graph->plan->failed == NULL) {
        check(graph, graph->plan->api->finalize(d), what);
    }
    return graph->plan->failed == NULL ? d : NULL;
}

static void add_operation(struct graph *graph, desc operation, const char *what)
{
    assert(graph->count < OPERATIONS);
    graph->operations[graph->count++] = finish(graph, operation, what);
}

/* ---- tensors ---- */

static desc tensor(struct graph *graph, int64_t id, cudnnDataType_t type, struct layout layout,
                   bool by_value)
{
    const int64_t alignment = by_value ? 4 : 16;
    const bool is_virtual = id >= FIRST_VIRTUAL_ID;
    desc d = create(graph, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    set(graph, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, &type, 1);
    set(graph, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, layout.dim, 4);
    set(graph, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, layout.stride, 4);
    set(graph, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, &id, 1);
    set(graph, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, &alignment, 1);
    set(graph, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, &is_virtual, 1);
    if (by_value) {
        set(graph, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, &by_value, 1);
    }
    return finish(graph, d, "a tensor");
}

static desc operand(struct graph *graph, enum cudnn_operand id, cudnnDataType_t type,
                    struct layout layout)
{
    graph->plan->operand[id] = true;
    return tensor(graph, id, type, layout, false);
}

static desc scalar(struct graph *graph, enum cudnn_operand id)
{
    graph->plan->operand[id] = true;
    return tensor(graph, id, CUDNN_DATA_FLOAT, (struct layout){{1, 1, 1, 1}, {1, 1, 1, 1}}, true);
}

static desc between(struct graph *graph, cudnnDataType_t type, struct layout layout)
{
    return tensor(graph, graph->next_id++, type, layout, false);
}

/* [B,H,T,D] out of rows of tokens. */
static struct layout of_rows(const struct attention_shape *s, int64_t heads, int64_t dim,
                             int64_t row_stride, int64_t head_stride)
{
    return (struct layout){{s->batch, heads, s->sequence, dim},
                           {s->sequence * row_stride, head_stride, row_stride, 1}};
}

/* [B,H,T,D], nothing between. */
static struct layout packed(const struct attention_shape *s, int64_t columns)
{
    return (struct layout){{s->batch, s->heads, s->sequence, columns},
                           {s->heads * s->sequence * columns, s->sequence * columns, columns, 1}};
}

/* Rows and columns exchanged: the same memory. */
static struct layout transposed(struct layout layout)
{
    return (struct layout){
        {layout.dim[0], layout.dim[1], layout.dim[3], layout.dim[2]},
        {layout.stride[0], layout.stride[1], layout.stride[3], layout.stride[2]}};
}

/* ---- operations ---- */

struct pointwise {
    cudnnPointwiseMode_t mode;
    cudnnDataType_t math;
    int64_t axis; /* of CUDNN_POINTWISE_GEN_INDEX, else 0 */
    desc x, b, t; /* b, t: NULL where the mode has none */
};

static desc pointwise_to(struct graph *graph, struct pointwise p, desc y)
{
    desc how = create(graph, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    set(graph, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, &p.mode, 1);
    set(graph, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, &p.math, 1);
    if (p.axis != 0) {
        set(graph, how, CUDNN_ATTR_POINTWISE_AXIS, CUDNN_TYPE_INT64, &p.axis, 1);
    }
    finish(graph, how, "a pointwise mode");
    desc d = create(graph, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, p.x);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, p.b);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_POINTWISE_TDESC, p.t);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    add_operation(graph, d, "a pointwise operation");
    return y;
}

/* Of f32 scores, to f32 scores. */
static desc on_scores(struct graph *graph, cudnnPointwiseMode_t mode, desc x, desc b)
{
    return pointwise_to(graph, (struct pointwise){mode, CUDNN_DATA_FLOAT, 0, x, b, NULL},
                        between(graph, CUDNN_DATA_FLOAT, graph->scores));
}

static desc on_rows(struct graph *graph, cudnnPointwiseMode_t mode, desc x, desc b, desc y)
{
    return pointwise_to(graph, (struct pointwise){mode, CUDNN_DATA_FLOAT, 0, x, b, NULL}, y);
}

static desc reduce_to(struct graph *graph, cudnnReduceTensorOp_t mode, desc x, desc y)
{
    const cudnnDataType_t math = CUDNN_DATA_FLOAT;
    desc how = create(graph, CUDNN_BACKEND_REDUCTION_DESCRIPTOR);
    set(graph, how, CUDNN_ATTR_REDUCTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, &math, 1);
    set(graph, how, CUDNN_ATTR_REDUCTION_OPERATOR, CUDNN_TYPE_REDUCTION_OPERATOR_TYPE, &mode, 1);
    finish(graph, how, "a reduction mode");
    desc d = create(graph, CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_REDUCTION_XDESC, x);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_REDUCTION_YDESC, y);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_REDUCTION_DESC, how);
    add_operation(graph, d, "a reduction");
    return y;
}

static desc multiply_to(struct graph *graph, desc a, desc b, desc c)
{
    const cudnnDataType_t math = CUDNN_DATA_FLOAT;
    desc how = create(graph, CUDNN_BACKEND_MATMUL_DESCRIPTOR);
    set(graph, how, CUDNN_ATTR_MATMUL_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, &math, 1);
    finish(graph, how, "a product mode");
    desc d = create(graph, CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_MATMUL_ADESC, a);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_MATMUL_BDESC, b);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_MATMUL_CDESC, c);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_MATMUL_DESC, how);
    add_operation(graph, d, "a product");
    return c;
}

static desc reshape_to(struct graph *graph, desc x, desc y)
{
    desc d = create(graph, CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_RESHAPE_XDESC, x);
    set_desc(graph, d, CUDNN_ATTR_OPERATION_RESHAPE_YDESC, y);
    add_operation(graph, d, "a reshape");
    return y;
}

/* ---- masks ---- */

enum { ROW = 2, COLUMN = 3 };

static desc index_of(struct graph *graph, desc scores, int64_t axis)
{
    return pointwise_to(
        graph,
        (struct pointwise){CUDNN_POINTWISE_GEN_INDEX, CUDNN_DATA_INT32, axis, scores, NULL, NULL},
        between(graph, CUDNN_DATA_INT32, graph->scores));
}

/* Scores where `a mode b`, else the hidden value. */
static desc keep(struct graph *graph, desc scores, cudnnPointwiseMode_t mode, desc a, desc b,
                 enum cudnn_operand hidden)
{
    const struct pointwise compare = {mode, CUDNN_DATA_BOOLEAN, 0, a, b, NULL};
    const desc kept =
        pointwise_to(graph, compare, between(graph, CUDNN_DATA_BOOLEAN, graph->scores));
    const struct pointwise select = {
        CUDNN_POINTWISE_BINARY_SELECT, CUDNN_DATA_FLOAT, 0, scores, scalar(graph, hidden), kept};
    return pointwise_to(graph, select, between(graph, CUDNN_DATA_FLOAT, graph->scores));
}

/* Columns from the row's first visible position on. int32: with f32 cuDNN has no engine. */
static desc mask_document(struct graph *graph, const struct attention_shape *s, desc scores)
{
    if (s->first == NULL) {
        return scores;
    }
    const desc first =
        operand(graph, OPERAND_FIRST, CUDNN_DATA_INT32,
                (struct layout){{s->batch, 1, s->sequence, 1}, {s->sequence, s->sequence, 1, 1}});
    return keep(graph, scores, CUDNN_POINTWISE_CMP_GE, index_of(graph, scores, COLUMN), first,
                OPERAND_HIDDEN_DOCUMENT);
}

/* row >= column, and column + window > row. */
static desc mask_band(struct graph *graph, const struct attention_shape *s, desc scores)
{
    desc row = index_of(graph, scores, ROW), column = index_of(graph, scores, COLUMN);
    scores = keep(graph, scores, CUDNN_POINTWISE_CMP_GE, row, column, OPERAND_HIDDEN_FUTURE);
    if (s->window > 0) {
        row = index_of(graph, scores, ROW), column = index_of(graph, scores, COLUMN);
        const desc end =
            on_scores(graph, CUDNN_POINTWISE_ADD, column, scalar(graph, OPERAND_WINDOW));
        scores = keep(graph, scores, CUDNN_POINTWISE_CMP_GT, end, row, OPERAND_HIDDEN_WINDOW);
    }
    return scores;
}

/* ---- the two graphs ---- */

static void forward(struct graph *graph, const struct attention_shape *s)
{
    const cudnnDataType_t bf16 = CUDNN_DATA_BFLOAT16, f32 = CUDNN_DATA_FLOAT;
    const desc q =
        operand(graph, OPERAND_Q, bf16, of_rows(s, s->heads, s->qk_dim, s->q_stride, s->qk_dim));
    const desc k =
        operand(graph, OPERAND_K, bf16,
                transposed(of_rows(s, s->kv_heads, s->qk_dim, s->k_stride, s->k_head_stride)));
    const desc v = operand(graph, OPERAND_V, bf16,
                           of_rows(s, s->kv_heads, s->v_dim, s->v_stride, s->v_head_stride));
    const desc o =
        operand(graph, OPERAND_O, bf16, of_rows(s, s->heads, s->v_dim, s->o_stride, s->v_dim));
    const desc lse = operand(graph, OPERAND_LSE, f32, graph->rows);

    desc x = multiply_to(graph, q, k, between(graph, f32, graph->scores));
    x = on_scores(graph, CUDNN_POINTWISE_MUL, x, scalar(graph, OPERAND_SCALE));
    x = mask_document(graph, s, x);
    x = mask_band(graph, s, x);
    const desc most =
        reduce_to(graph, CUDNN_REDUCE_TENSOR_MAX, x, between(graph, f32, graph->rows));
    x = on_scores(graph, CUDNN_POINTWISE_SUB, x, most);
    x = on_scores(graph, CUDNN_POINTWISE_EXP, x, NULL);
    const desc sum = reduce_to(graph, CUDNN_REDUCE_TENSOR_ADD, x, between(graph, f32, graph->rows));
    const desc log =
        on_rows(graph, CUDNN_POINTWISE_LOG, sum, NULL, between(graph, f32, graph->rows));
    on_rows(graph, CUDNN_POINTWISE_ADD, most, log, lse);
    const desc p = on_rows(graph, CUDNN_POINTWISE_DIV, x, sum, between(graph, bf16, graph->scores));
    multiply_to(graph, p, v, o);
}

/* dx[b,G,t,d] = x[b,H,s,t]^T y[b,H,s,d], summed over the query heads of a kv head. */
static void gradient_of_kv(struct graph *graph, const struct attention_shape *s, desc x, desc y,
                           desc dx, int64_t dim)
{
    const desc xt =
        reshape_to(graph, x, between(graph, CUDNN_DATA_BFLOAT16, transposed(graph->scores)));
    if (s->heads == s->kv_heads) {
        multiply_to(graph, xt, y, dx);
    } else {
        const desc all =
            multiply_to(graph, xt, y, between(graph, CUDNN_DATA_BFLOAT16, packed(s, dim)));
        reduce_to(graph, CUDNN_REDUCE_TENSOR_ADD, all, dx);
    }
}

/* dq = ds k. */
static void gradient_of_q(struct graph *graph, const struct cudnn_problem *problem, desc ds, desc k)
{
    const struct attention_shape *s = &problem->shape;
    const desc dq = operand(graph, OPERAND_DQ, CUDNN_DATA_BFLOAT16,
                            of_rows(s, s->heads, s->qk_dim, s->q_stride, s->qk_dim));
    const desc whole =
        reshape_to(graph, k,
                   between(graph, CUDNN_DATA_BFLOAT16,
                           of_rows(s, s->kv_heads, s->qk_dim, s->k_stride, s->k_head_stride)));
    if (problem->deterministic) {
        multiply_to(graph, ds, whole, dq);
    } else {
        const desc sum =
            operand(graph, OPERAND_ACCUMULATOR, CUDNN_DATA_FLOAT, packed(s, s->qk_dim));
        multiply_to(graph, ds, whole, sum);
        on_rows(graph, CUDNN_POINTWISE_IDENTITY, sum, NULL, dq);
    }
}

/* sums = rows of d_o * o. */
static desc row_sums(struct graph *graph, const struct attention_shape *s, desc d_o)
{
    const cudnnDataType_t f32 = CUDNN_DATA_FLOAT;
    const desc o = operand(graph, OPERAND_O, CUDNN_DATA_BFLOAT16,
                           of_rows(s, s->heads, s->v_dim, s->o_stride, s->v_dim));
    struct layout product = packed(s, s->v_dim);
    product.stride[2] = s->heads * s->v_dim; /* on paper only; the frontend's */
    desc x = on_rows(graph, CUDNN_POINTWISE_MUL, d_o, o, between(graph, f32, product));
    x = reduce_to(graph, CUDNN_REDUCE_TENSOR_ADD, x, between(graph, f32, graph->rows));
    return on_rows(graph, CUDNN_POINTWISE_MUL, x, scalar(graph, OPERAND_ONE),
                   operand(graph, OPERAND_SUMS, f32, graph->rows));
}

static void backward(struct graph *graph, const struct cudnn_problem *problem)
{
    const struct attention_shape *s = &problem->shape;
    const cudnnDataType_t bf16 = CUDNN_DATA_BFLOAT16, f32 = CUDNN_DATA_FLOAT;
    const struct layout keys = of_rows(s, s->kv_heads, s->qk_dim, s->k_stride, s->k_head_stride);
    const struct layout values = of_rows(s, s->kv_heads, s->v_dim, s->v_stride, s->v_head_stride);
    const desc q =
        operand(graph, OPERAND_Q, bf16, of_rows(s, s->heads, s->qk_dim, s->q_stride, s->qk_dim));
    const desc k = operand(graph, OPERAND_K, bf16, transposed(keys));
    const desc v = operand(graph, OPERAND_V, bf16, transposed(values));
    const desc d_o =
        operand(graph, OPERAND_D_O, bf16, of_rows(s, s->heads, s->v_dim, s->o_stride, s->v_dim));
    const desc lse = operand(graph, OPERAND_LSE, f32, graph->rows);
    const desc scale = scalar(graph, OPERAND_SCALE);
    const desc sums = row_sums(graph, s, d_o);

    /* p = exp(scale q k^T - lse), masked; dv = p^T d_o */
    desc x = multiply_to(graph, q, k, between(graph, f32, graph->scores));
    x = on_scores(graph, CUDNN_POINTWISE_MUL, x, scale);
    x = mask_document(graph, s, x);
    x = on_scores(graph, CUDNN_POINTWISE_SUB, x, lse);
    x = mask_band(graph, s, x);
    const desc p = on_scores(graph, CUDNN_POINTWISE_EXP, x, NULL);
    gradient_of_kv(graph, s, p, d_o, operand(graph, OPERAND_DV, bf16, values), s->v_dim);

    /* ds = scale p (d_o v^T - sums); dk = ds^T q; dq = ds k */
    x = multiply_to(graph, d_o, v, between(graph, f32, graph->scores));
    x = on_scores(graph, CUDNN_POINTWISE_SUB, x, sums);
    x = on_scores(graph, CUDNN_POINTWISE_MUL, x, p);
    const desc ds =
        on_rows(graph, CUDNN_POINTWISE_MUL, x, scale, between(graph, bf16, graph->scores));
    gradient_of_kv(graph, s, ds, q, operand(graph, OPERAND_DK, bf16, keys), s->qk_dim);
    gradient_of_q(graph, problem, ds, k);
}

/* ---- plans ---- */

/* Engines the heuristic proposes, best first. */
static int64_t propose(struct graph *graph, desc configs[ENGINES])
{
    const struct cudnn_target *target = graph->target;
    desc g = create(graph, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    if (target->handle != NULL) {
        set(graph, g, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, &target->handle, 1);
    }
    set(graph, g, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, graph->operations,
        graph->count);
    finish(graph, g, "the graph");
    const cudnnBackendHeurMode_t mode = CUDNN_HEUR_MODE_A;
    desc h = create(graph, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    set_desc(graph, h, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, g);
    set(graph, h, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, &mode, 1);
    set_desc(graph, h, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, target->properties);
    finish(graph, h, "the heuristic");
    for (int i = 0; i < ENGINES; i++) {
        configs[i] = create(graph, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR);
    }
    int64_t count = 0;
    if (graph->plan->failed == NULL) {
        check(graph,
              graph->plan->api->get(h, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                    ENGINES, &count, configs),
              "the heuristic's results");
    }
    if (graph->plan->failed == NULL && count == 0) {
        check(graph, CUDNN_STATUS_NOT_SUPPORTED, "no engine");
    }
    return graph->plan->failed == NULL ? count : 0;
}

/* True if the plan of this configuration can be had; a refusal is no failure of the graph. */
static bool take(struct graph *graph, desc config)
{
    struct cudnn_plan *plan = graph->plan;
    const struct cudnn_target *target = graph->target;
    desc made = create(graph, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    set_desc(graph, made, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    if (target->handle != NULL) {
        set(graph, made, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, &target->handle, 1);
    }
    set_desc(graph, made, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, target->properties);
    if (plan->failed != NULL) {
        return false;
    }
    plan->status = plan->api->finalize(made);
    int64_t count = 0;
    if (plan->status != CUDNN_STATUS_SUCCESS ||
        !check(graph,
               plan->api->get(made, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, CUDNN_TYPE_INT64, 1,
                              &count, &plan->workspace_bytes),
               "the workspace's size")) {
        return false;
    }
    plan->plan = made;
    return true;
}

bool cudnn_plan_build(struct cudnn_plan *plan, const struct cudnn_target *target,
                      const struct cudnn_problem *problem)
{
    const struct attention_shape *s = &problem->shape;
    assert(s->rope_dim == 0 && s->dtype == DTYPE_BF16 && s->heads % s->kv_heads == 0);
    assert((target->handle == NULL) != (target->properties == NULL));
    memset(plan, 0, sizeof *plan);
    plan->api = target->api;
    struct graph graph = {.plan = plan, .target = target, .next_id = FIRST_VIRTUAL_ID};
    graph.scores = packed(s, s->sequence);
    graph.rows = packed(s, 1);
    if (problem->backward) {
        backward(&graph, problem);
    } else {
        forward(&graph, s);
    }
    desc configs[ENGINES];
    plan->engines = propose(&graph, configs);
    for (int64_t i = 0; i < plan->engines && plan->plan == NULL && plan->failed == NULL; i++) {
        take(&graph, configs[i]);
    }
    if (plan->plan == NULL && plan->failed == NULL) {
        check(&graph,
              plan->status != CUDNN_STATUS_SUCCESS ? plan->status : CUDNN_STATUS_NOT_SUPPORTED,
              "every engine");
    }
    return plan->plan != NULL;
}

void cudnn_plan_free(struct cudnn_plan *plan)
{
    while (plan->count > 0) { /* the last made first: they refer to earlier ones */
        plan->api->destroy(plan->descriptors[--plan->count]);
    }
    memset(plan, 0, sizeof *plan);
}
