#include "kernels/cuda/gemm_cublaslt.h"

#include <assert.h>
#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/library.h"

#define WORKSPACE_BYTES ((size_t)32 << 20)
enum { PLANS = 512 }; /* a model has some dozens of shapes */

/* A product as cuBLASLt sees it, column-major: D[m,n] = op(A) op(B) + (add ? D : 0). A row-major
 * matrix is its own transpose in column-major order, so C = A B is asked for as C^T = B^T A^T: the
 * operands change places. Compared as bytes: no padding, unused bytes are 0. */
struct key {
    int64_t m, n, k, lda, ldb, ldd;
    int32_t in, out;                            /* cudaDataType of A and B, of D */
    uint8_t transpose_a, transpose_b, add;      /* flags */
    uint8_t align_a, align_b, align_d, used, _; /* bytes, log2; 256 at most */
};

static_assert(sizeof(struct key) == 64, "keys are compared as bytes");

struct product {
    struct key key;
    const void *a, *b;
    void *d;
};

/* The library's description of a product and its choice. */
struct plan {
    struct key key; /* used 0: a free entry */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algo;
    bool found; /* an algorithm */
};

struct functions {
    cublasStatus_t (*create)(cublasLtHandle_t *);
    cublasStatus_t (*destroy)(cublasLtHandle_t);
    cublasStatus_t (*matmul)(cublasLtHandle_t, cublasLtMatmulDesc_t, const void *, const void *,
                             cublasLtMatrixLayout_t, const void *, cublasLtMatrixLayout_t,
                             const void *, const void *, cublasLtMatrixLayout_t, void *,
                             cublasLtMatrixLayout_t, const cublasLtMatmulAlgo_t *, void *, size_t,
                             cudaStream_t);
    cublasStatus_t (*heuristic)(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, int,
                                cublasLtMatmulHeuristicResult_t *, int *);
    cublasStatus_t (*desc_create)(cublasLtMatmulDesc_t *, cublasComputeType_t, cudaDataType_t);
    cublasStatus_t (*desc_destroy)(cublasLtMatmulDesc_t);
    cublasStatus_t (*desc_set)(cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t, const void *,
                               size_t);
    cublasStatus_t (*layout_create)(cublasLtMatrixLayout_t *, cudaDataType, uint64_t, uint64_t,
                                    int64_t);
    cublasStatus_t (*layout_destroy)(cublasLtMatrixLayout_t);
    cublasStatus_t (*preference_create)(cublasLtMatmulPreference_t *);
    cublasStatus_t (*preference_destroy)(cublasLtMatmulPreference_t);
    cublasStatus_t (*preference_set)(cublasLtMatmulPreference_t,
                                     cublasLtMatmulPreferenceAttributes_t, const void *, size_t);
};

struct cublaslt {
    void *library; /* owned */
    struct functions call;
    cublasLtHandle_t handle;               /* owned */
    cublasLtMatmulPreference_t preference; /* owned */
    void *workspace;                       /* owned, device memory */
    struct plan plans[PLANS];              /* a hash table with linear probing */
};

/* ---- open and close ---- */

static enum status load(struct cublaslt *blas)
{
    struct functions *f = &blas->call;
    const struct library_symbol symbols[] = {
        {"cublasLtCreate", (void (**)(void))(void *)&f->create},
        {"cublasLtDestroy", (void (**)(void))(void *)&f->destroy},
        {"cublasLtMatmul", (void (**)(void))(void *)&f->matmul},
        {"cublasLtMatmulAlgoGetHeuristic", (void (**)(void))(void *)&f->heuristic},
        {"cublasLtMatmulDescCreate", (void (**)(void))(void *)&f->desc_create},
        {"cublasLtMatmulDescDestroy", (void (**)(void))(void *)&f->desc_destroy},
        {"cublasLtMatmulDescSetAttribute", (void (**)(void))(void *)&f->desc_set},
        {"cublasLtMatrixLayoutCreate", (void (**)(void))(void *)&f->layout_create},
        {"cublasLtMatrixLayoutDestroy", (void (**)(void))(void *)&f->layout_destroy},
        {"cublasLtMatmulPreferenceCreate", (void (**)(void))(void *)&f->preference_create},
        {"cublasLtMatmulPreferenceDestroy", (void (**)(void))(void *)&f->preference_destroy},
        {"cublasLtMatmulPreferenceSetAttribute", (void (**)(void))(void *)&f->preference_set}};
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so.12", NULL};
    return library_open(&blas->library, names, symbols, sizeof symbols / sizeof *symbols);
}

static enum status start(struct cublaslt *blas)
{
    const size_t bytes = WORKSPACE_BYTES;
    cublasStatus_t failed = blas->call.create(&blas->handle);
    if (failed == CUBLAS_STATUS_SUCCESS) {
        failed = blas->call.preference_create(&blas->preference);
    }
    if (failed == CUBLAS_STATUS_SUCCESS) {
        failed = blas->call.preference_set(
            blas->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
    }
    if (failed != CUBLAS_STATUS_SUCCESS) {
        return status_fail(STATUS_RESOURCE,
                           "cuBLASLt is not usable: it does not start on this GPU (its status %d)",
                           (int)failed);
    }
    const cudaError_t error = cudaMalloc(&blas->workspace, bytes);
    if (error != cudaSuccess) {
        blas->workspace = NULL;
        return status_fail(STATUS_RESOURCE,
                           "cuBLASLt: no %zu bytes of GPU memory for its workspace: %s", bytes,
                           cudaGetErrorString(error));
    }
    return STATUS_OK;
}

enum status cublaslt_open(struct cublaslt **blas, bool invariant)
{
    *blas = NULL;
    if (invariant) {
        return STATUS_OK;
    }
    struct cublaslt *new = calloc(1, sizeof *new);
    if (new == NULL) {
        return status_fail(STATUS_RESOURCE, "cuBLASLt: no %zu bytes of memory", sizeof *new);
    }
    enum status status = load(new);
    if (status == STATUS_OK) {
        status = start(new);
    }
    if (status != STATUS_OK) {
        cublaslt_close(new);
        return status;
    }
    *blas = new;
    return STATUS_OK;
}

static void plan_free(struct cublaslt *blas, struct plan *plan)
{
    if (plan->desc != NULL) {
        blas->call.desc_destroy(plan->desc);
    }
    cublasLtMatrixLayout_t layouts[] = {plan->a, plan->b, plan->d};
    for (int i = 0; i < 3; i++) {
        if (layouts[i] != NULL) {
            blas->call.layout_destroy(layouts[i]);
        }
    }
    memset(plan, 0, sizeof *plan);
}

void cublaslt_close(struct cublaslt *blas)
{
    if (blas == NULL) {
        return;
    }
    for (int i = 0; i < PLANS; i++) {
        plan_free(blas, &blas->plans[i]);
    }
    if (blas->preference != NULL) {
        blas->call.preference_destroy(blas->preference);
    }
    if (blas->handle != NULL) {
        blas->call.destroy(blas->handle);
    }
    cudaFree(blas->workspace);
    library_close(blas->library);
    free(blas);
}

/* ---- choices ---- */

static bool describe(struct cublaslt *blas, struct plan *plan)
{
    const struct key *key = &plan->key;
    const struct functions *f = &blas->call;
    const int32_t a = key->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    const int32_t b = key->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const uint64_t m = (uint64_t)key->m, n = (uint64_t)key->n, k = (uint64_t)key->k;
    const cudaDataType in = (cudaDataType)key->in, out = (cudaDataType)key->out;
    return f->desc_create(&plan->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
           f->desc_set(plan->desc, CUBLASLT_MATMUL_DESC_TRANSA, &a, sizeof a) ==
               CUBLAS_STATUS_SUCCESS &&
           f->desc_set(plan->desc, CUBLASLT_MATMUL_DESC_TRANSB, &b, sizeof b) ==
               CUBLAS_STATUS_SUCCESS &&
           f->layout_create(&plan->a, in, key->transpose_a ? k : m, key->transpose_a ? m : k,
                            key->lda) == CUBLAS_STATUS_SUCCESS &&
           f->layout_create(&plan->b, in, key->transpose_b ? n : k, key->transpose_b ? k : n,
                            key->ldb) == CUBLAS_STATUS_SUCCESS &&
           f->layout_create(&plan->d, out, m, n, key->ldd) == CUBLAS_STATUS_SUCCESS;
}

static bool choose(struct cublaslt *blas, struct plan *plan)
{
    const struct key *key = &plan->key;
    const uint8_t align[] = {key->align_a, key->align_b, key->align_d, key->align_d};
    static const cublasLtMatmulPreferenceAttributes_t attributes[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasLtMatmulHeuristicResult_t result = {0};
    int count = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t bytes = UINT32_C(1) << align[i];
        if (blas->call.preference_set(blas->preference, attributes[i], &bytes, sizeof bytes) !=
            CUBLAS_STATUS_SUCCESS) {
            return false;
        }
    }
    if (blas->call.heuristic(blas->handle, plan->desc, plan->a, plan->b, plan->d, plan->d,
                             blas->preference, 1, &result, &count) != CUBLAS_STATUS_SUCCESS ||
        count < 1 || result.state != CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > WORKSPACE_BYTES) {
        return false;
    }
    plan->algo = result.algo;
    return true;
}

/* FNV-1a of the key's words. */
static size_t slot_of(const struct key *key)
{
    uint64_t words[sizeof *key / sizeof(uint64_t)], hash = UINT64_C(0xcbf29ce484222325);
    memcpy(words, key, sizeof words);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        hash = (hash ^ words[i]) * UINT64_C(0x100000001b3);
        hash ^= hash >> 29;
    }
    return (size_t)(hash % PLANS);
}

/* The plan of the key, made on first use. A table without a free entry within reach of the key's
 * own gives that one up: shapes that never come back must not stay for ever. */
static struct plan *plan_of(struct cublaslt *blas, const struct key *key)
{
    enum { REACH = 8 };
    const size_t home = slot_of(key);
    struct plan *plan = NULL;
    for (size_t i = 0; i < REACH && plan == NULL; i++) {
        struct plan *at = &blas->plans[(home + i) % PLANS];
        if (memcmp(&at->key, key, sizeof *key) == 0) {
            return at;
        }
        plan = at->key.used ? NULL : at;
    }
    if (plan == NULL) {
        plan = &blas->plans[home];
        plan_free(blas, plan);
    }
    plan->key = *key;
    plan->found = describe(blas, plan) && choose(blas, plan);
    return plan;
}

/* ---- products ---- */

/* log2 of the bytes a pointer is a multiple of, 8 at most. */
static uint8_t alignment(const void *p)
{
    uint8_t log = 0;
    while (log < 8 && ((uintptr_t)p >> log & 1) == 0) {
        log++;
    }
    return log;
}

static bool run(struct cublaslt *blas, void *stream, struct product *p)
{
    static const float one = 1.0F, zero = 0.0F;
    struct key *key = &p->key;
    if (key->m == 0 || key->n == 0 || key->k == 0) {
        return false;
    }
    key->align_a = alignment(p->a);
    key->align_b = alignment(p->b);
    key->align_d = alignment(p->d);
    key->used = 1;
    struct plan *plan = plan_of(blas, key);
    if (plan->found) {
        plan->found = blas->call.matmul(blas->handle, plan->desc, &one, p->a, plan->a, p->b,
                                        plan->b, key->add ? &one : &zero, p->d, plan->d, p->d,
                                        plan->d, &plan->algo, blas->workspace, WORKSPACE_BYTES,
                                        (cudaStream_t)stream) == CUBLAS_STATUS_SUCCESS;
    }
    return plan->found;
}

static int32_t type_of(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* Two operands of one dtype that the library and we know, a result as wide at least. */
static bool supported(enum dtype a, enum dtype b, enum dtype d)
{
    return a == b && ((a == DTYPE_BF16 && d == DTYPE_BF16) ||
                      ((a == DTYPE_BF16 || a == DTYPE_F32) && d == DTYPE_F32));
}

/* y^T[O,M] = (w^T)^T x^T: column-major, w^T is [I,O], x^T [I,M]. */
bool cublaslt_linear_forward(struct cublaslt *blas, void *stream, struct tensor y, struct tensor x,
                             struct tensor w, bool add)
{
    const int64_t rows = x.dim[0], in = x.dim[1], out = y.dim[1];
    if (blas == NULL || !supported(w.dtype, x.dtype, y.dtype)) {
        return false;
    }
    struct product p = {.key = {.m = out,
                                .n = rows,
                                .k = in,
                                .lda = in,
                                .ldb = in,
                                .ldd = out,
                                .in = type_of(x.dtype),
                                .out = type_of(y.dtype),
                                .transpose_a = 1,
                                .add = add},
                        .a = w.data,
                        .b = x.data,
                        .d = y.data};
    return run(blas, stream, &p);
}

/* dx^T[I,M] = w^T dy^T: column-major, w^T is [I,O], dy^T [O,M]. */
bool cublaslt_linear_backward_input(struct cublaslt *blas, void *stream, struct tensor dx,
                                    struct tensor dy, struct tensor w, bool add)
{
    const int64_t rows = dx.dim[0], in = dx.dim[1], out = dy.dim[1];
    if (blas == NULL || !supported(w.dtype, dy.dtype, dx.dtype)) {
        return false;
    }
    struct product p = {.key = {.m = in,
                                .n = rows,
                                .k = out,
                                .lda = in,
                                .ldb = out,
                                .ldd = in,
                                .in = type_of(dy.dtype),
                                .out = type_of(dx.dtype),
                                .add = add},
                        .a = w.data,
                        .b = dy.data,
                        .d = dx.data};
    return run(blas, stream, &p);
}

/* dw^T[I,O] += x^T (dy^T)^T: column-major, x^T is [I,M], dy^T [O,M]. */
bool cublaslt_linear_backward_weight(struct cublaslt *blas, void *stream, struct tensor dw,
                                     struct tensor dy, struct tensor x)
{
    const int64_t rows = x.dim[0], in = x.dim[1], out = dy.dim[1];
    if (blas == NULL || !supported(x.dtype, dy.dtype, dw.dtype)) {
        return false;
    }
    struct product p = {.key = {.m = in,
                                .n = out,
                                .k = rows,
                                .lda = in,
                                .ldb = out,
                                .ldd = in,
                                .in = type_of(x.dtype),
                                .out = type_of(dw.dtype),
                                .transpose_b = 1,
                                .add = 1},
                        .a = x.data,
                        .b = dy.data,
                        .d = dw.data};
    return run(blas, stream, &p);
}
