/* What gemm_cublaslt.c asks of cuBLASLt. The library itself is a stand-in, this program's own
 * symbols: column-major products as its manual defines them, in double. So a wrong leading
 * dimension, transpose, type or order of operands gives a wrong result here; that the real library
 * takes the calls is not shown. */
#include "check.h"

#include <cublasLt.h>

extern "C" {
#include "kernels/cuda/gemm_cublaslt.h"
}

/* ---- the stand-in ---- */

struct desc {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    int32_t transpose[2];
};
struct layout {
    cudaDataType type;
    uint64_t rows, cols;
    int64_t ld;
};
struct preference {
    uint64_t workspace;
    uint32_t align[4];
};
static struct {
    int alive, choices;
    bool no_algorithm, no_start, only_choices;
    uint32_t align[4]; /* of the last choice */
} library;

template <class Opaque, class T> static cublasStatus_t make(Opaque *to, const T &value)
{
    library.alive++;
    *to = (Opaque) new T(value);
    return CUBLAS_STATUS_SUCCESS;
}
template <class T, class Opaque> static cublasStatus_t drop(Opaque p)
{
    library.alive--;
    delete (T *)p;
    return CUBLAS_STATUS_SUCCESS;
}

extern "C" {
cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    return library.no_start ? CUBLAS_STATUS_NOT_INITIALIZED : make(handle, 1);
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    return drop<int>(handle);
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *to, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    return make(to, desc{compute, scale, {CUBLAS_OP_N, CUBLAS_OP_N}});
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t p)
{
    return drop<desc>(p);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t p,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes)
{
    if (bytes != sizeof(int32_t)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    ((desc *)p)->transpose[attribute == CUBLASLT_MATMUL_DESC_TRANSB] = *(const int32_t *)value;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *to, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    return ld < (int64_t)rows ? CUBLAS_STATUS_INVALID_VALUE
                              : make(to, layout{type, rows, cols, ld});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t p)
{
    return drop<layout>(p);
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *to)
{
    return make(to, preference{0, {256, 256, 256, 256}});
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    return drop<preference>(p);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes)
{
    preference *own = (preference *)p;
    if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && bytes == sizeof own->workspace) {
        own->workspace = *(const uint64_t *)value;
    } else if (bytes == sizeof(uint32_t)) {
        own->align[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES] =
            *(const uint32_t *)value;
    } else {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t p, int,
                                              cublasLtMatmulHeuristicResult_t *result, int *count)
{
    const preference *own = (const preference *)p;
    library.choices++;
    memcpy(library.align, own->align, sizeof library.align);
    *count = library.no_algorithm ? 0 : 1;
    result->state = CUBLAS_STATUS_SUCCESS;
    result->workspaceSize = own->workspace;
    return CUBLAS_STATUS_SUCCESS;
}
}

static std::vector<double> fetch(const layout *l, const void *device)
{
    const size_t count = (size_t)l->ld * (l->cols - 1) + l->rows;
    std::vector<double> out(count);
    if (l->type == CUDA_R_32F) {
        std::vector<float> raw(count);
        must(cudaMemcpy(raw.data(), device, count * 4, cudaMemcpyDeviceToHost), "cudaMemcpy");
        out.assign(raw.begin(), raw.end());
    } else {
        std::vector<uint16_t> raw(count);
        must(cudaMemcpy(raw.data(), device, count * 2, cudaMemcpyDeviceToHost), "cudaMemcpy");
        for (size_t i = 0; i < count; i++) {
            out[i] = (double)bf16_value(raw[i]);
        }
    }
    return out;
}

static void give(const layout *l, void *device, const std::vector<double> &x)
{
    std::vector<float> wide(x.begin(), x.end());
    std::vector<uint16_t> narrow(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        narrow[i] = bf16_from_float(wide[i]);
    }
    const bool f32 = l->type == CUDA_R_32F;
    must(cudaMemcpy(device, f32 ? (const void *)wide.data() : narrow.data(),
                    x.size() * (f32 ? 4 : 2), cudaMemcpyHostToDevice),
         "cudaMemcpy");
}

extern "C" cublasStatus_t
cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t p_desc, const void *alpha, const void *a_data,
               cublasLtMatrixLayout_t p_a, const void *b_data, cublasLtMatrixLayout_t p_b,
               const void *beta, const void *c_data, cublasLtMatrixLayout_t p_c, void *d_data,
               cublasLtMatrixLayout_t p_d, const cublasLtMatmulAlgo_t *, void *workspace,
               size_t bytes, cudaStream_t)
{
    const desc *op = (const desc *)p_desc;
    const layout *la = (const layout *)p_a, *lb = (const layout *)p_b, *ld = (const layout *)p_d;
    const bool ta = op->transpose[0] == CUBLAS_OP_T, tb = op->transpose[1] == CUBLAS_OP_T;
    const uint64_t m = ld->rows, n = ld->cols, k = ta ? la->rows : la->cols;
    if (op->compute != CUBLAS_COMPUTE_32F || op->scale != CUDA_R_32F || la->type != lb->type ||
        p_c != p_d || c_data != d_data || workspace == nullptr || bytes != (size_t)32 << 20 ||
        (ta ? la->cols : la->rows) != m || (tb ? lb->cols : lb->rows) != k ||
        (tb ? lb->rows : lb->cols) != n) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (library.only_choices) {
        return CUBLAS_STATUS_SUCCESS;
    }
    const std::vector<double> a = fetch(la, a_data), b = fetch(lb, b_data);
    std::vector<double> d = fetch(ld, d_data);
    for (uint64_t j = 0; j < n; j++) {
        for (uint64_t i = 0; i < m; i++) {
            double sum = 0;
            for (uint64_t l = 0; l < k; l++) {
                sum += a[ta ? l + i * (uint64_t)la->ld : i + l * (uint64_t)la->ld] *
                       b[tb ? j + l * (uint64_t)lb->ld : l + j * (uint64_t)lb->ld];
            }
            double *at = &d[i + j * (uint64_t)ld->ld];
            *at = *(const float *)alpha * sum +
                  (*(const float *)beta != 0 ? *(const float *)beta * *at : 0);
        }
    }
    give(ld, d_data, d);
    return CUBLAS_STATUS_SUCCESS;
}

/* ---- the test ---- */

struct matrix {
    struct tensor tensor; /* device memory */
    std::vector<double> value;
    matrix(enum dtype dtype, int64_t rows, int64_t cols, int salt) : value((size_t)(rows * cols))
    {
        void *data = nullptr;
        must(cudaMalloc(&data, value.size() * 4), "cudaMalloc");
        tensor = tensor_2d(data, dtype, rows, cols);
        for (size_t i = 0; i < value.size(); i++) {
            value[i] = (double)pattern(i + (size_t)salt, 7);
        }
        const layout l = own_layout();
        give(&l, data, value);
    }
    matrix(const matrix &) = delete;
    ~matrix()
    {
        cudaFree(tensor.data);
    }
    layout own_layout() const
    {
        return {tensor.dtype == DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF, value.size(), 1,
                (int64_t)value.size()};
    }
    double at(int64_t row, int64_t col) const
    {
        return value[(size_t)(row * tensor.dim[1] + col)];
    }
    bool is(const char *name, const std::vector<double> &want) const
    {
        const layout l = own_layout();
        const std::vector<double> got = fetch(&l, tensor.data);
        for (size_t i = 0; i < want.size(); i++) { /* small multiples of 1/64: exact in both */
            if (got[i] != want[i]) {
                printf("%s: WRONG at %zu: %g, want %g\n", name, i, got[i], want[i]);
                return false;
            }
        }
        return true;
    }
};

/* c + a b over `depth` terms; element(i, j, l): the product. */
template <class F>
static std::vector<double> product(const matrix &c, bool add, int64_t depth, F element)
{
    std::vector<double> want = c.value;
    const int64_t cols = c.tensor.dim[1];
    for (int64_t i = 0; i < c.tensor.dim[0]; i++) {
        for (int64_t j = 0; j < cols; j++) {
            double sum = add ? c.at(i, j) : 0;
            for (int64_t l = 0; l < depth; l++) {
                sum += element(i, j, l);
            }
            want[(size_t)(i * cols + j)] =
                c.tensor.dtype == DTYPE_F32 ? sum : (double)bf16_value(bf16_from_float((float)sum));
        }
    }
    return want;
}

static bool products(struct cublaslt *blas, enum dtype dtype, enum dtype y_dtype, bool add)
{
    const int64_t rows = 5, in = 3, out = 4;
    matrix x(dtype, rows, in, 1), w(dtype, out, in, 2), dy(dtype, rows, out, 3);
    matrix y(y_dtype, rows, out, 4), dx(dtype, rows, in, 5), dw(DTYPE_F32, out, in, 6);
    if (!cublaslt_linear_forward(blas, nullptr, y.tensor, x.tensor, w.tensor, add) ||
        !cublaslt_linear_backward_input(blas, nullptr, dx.tensor, dy.tensor, w.tensor, add) ||
        !cublaslt_linear_backward_weight(blas, nullptr, dw.tensor, dy.tensor, x.tensor)) {
        printf("products: WRONG, refused\n");
        return false;
    }
    return y.is("y", product(y, add, in,
                             [&](int64_t i, int64_t j, int64_t l) {
                                 return x.at(i, l) * w.at(j, l);
                             })) &&
           dx.is("dx", product(dx, add, out,
                               [&](int64_t i, int64_t j, int64_t l) {
                                   return dy.at(i, l) * w.at(l, j);
                               })) &&
           dw.is("dw", product(dw, true, rows, [&](int64_t i, int64_t j, int64_t l) {
                     return dy.at(l, i) * x.at(l, j);
                 }));
}

static bool expect(bool right, const char *what)
{
    if (!right) {
        printf("WRONG: %s\n", what);
    }
    return right;
}

/* A product of `rows` rows, from row `first` of longer matrices on; the result is not looked at. */
static bool forward(struct cublaslt *blas, int64_t rows, int64_t first)
{
    static const matrix x(DTYPE_BF16, 1001, 8, 1), w(DTYPE_BF16, 2, 8, 2),
        y(DTYPE_BF16, 1001, 2, 3);
    return cublaslt_linear_forward(blas, nullptr, tensor_rows(&y.tensor, first, rows),
                                   tensor_rows(&x.tensor, first, rows), w.tensor, false);
}

/* A shape is asked for once, other shapes and alignments on their own; the table never ends. */
static bool choices(struct cublaslt *blas)
{
    bool right = true;
    library.choices = 0;
    library.only_choices = true;
    right = forward(blas, 3, 0) && forward(blas, 3, 0) && right;
    right = expect(library.choices == 1 && library.align[1] == 256, "one choice, aligned") && right;
    right = forward(blas, 3, 1) && right;
    right = expect(library.choices == 2 && library.align[0] == 256 && library.align[1] == 16 &&
                       library.align[2] == 4 && library.align[3] == 4,
                   "alignment of x and y to 16 and 4 bytes") &&
            right;
    for (int64_t rows = 4; rows < 700 && right; rows++) {
        right = forward(blas, rows, 0);
    }
    const int alive = library.alive;
    for (int64_t rows = 4; rows < 700 && right; rows++) {
        right = forward(blas, rows, 0);
    }
    library.only_choices = false;
    return expect(alive <= 2 + 4 * 512 && library.alive <= 2 + 4 * 512, "the table is bounded") &&
           right;
}

static bool refusals(struct cublaslt *blas)
{
    const int asked = library.choices;
    matrix x(DTYPE_BF16, 2, 8, 1), w(DTYPE_F32, 2, 8, 2), y(DTYPE_F32, 2, 2, 3);
    struct tensor none = x.tensor;
    none.dim[0] = 0;
    bool right =
        expect(!cublaslt_linear_forward(blas, nullptr, y.tensor, x.tensor, w.tensor, false),
               "mixed dtypes are refused");
    right = expect(!cublaslt_linear_forward(nullptr, nullptr, y.tensor, x.tensor, x.tensor, false),
                   "no library refuses") &&
            right;
    right = expect(!cublaslt_linear_backward_weight(blas, nullptr, y.tensor, none, none),
                   "an empty sum is refused") &&
            right;
    right = expect(library.choices == asked, "refused without asking") && right;
    library.no_algorithm = true;
    right = expect(!forward(blas, 1000, 0) && !forward(blas, 1000, 0), "no algorithm") && right;
    library.no_algorithm = false;
    return expect(library.choices == asked + 1, "the library is asked once") && right;
}

static bool opening()
{
    struct cublaslt *blas = nullptr;
    bool right = expect(cublaslt_open(&blas, true) == STATUS_OK && blas == nullptr, "invariant");
    library.no_start = true;
    right = expect(cublaslt_open(&blas, false) == STATUS_RESOURCE && blas == nullptr &&
                       strstr(status_message(), "does not start") != nullptr,
                   "a library that does not start") &&
            right;
    library.no_start = false;
    cublaslt_close(nullptr);
    return right;
}

static bool test()
{
    struct cublaslt *blas = nullptr;
    bool right = opening();
    if (cublaslt_open(&blas, false) != STATUS_OK) {
        printf("WRONG: %s\n", status_message());
        return false;
    }
    for (bool add : {false, true}) {
        right = products(blas, DTYPE_BF16, DTYPE_BF16, add) && right;
        right = products(blas, DTYPE_BF16, DTYPE_F32, add) && right;
        right = products(blas, DTYPE_F32, DTYPE_F32, add) && right;
    }
    right = choices(blas) && right;
    right = refusals(blas) && right;
    cublaslt_close(blas);
    return expect(library.alive == 0, "everything is given back") && right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, test);
}
