/* gemm: the linear, grouped and router products of struct ops, told to the kernels. */
#include "kernels/cuda/gemm.cuh"

/* y[m,n] = x[m,k] w[n,k]^T */
static struct gemm forward(struct tensor y, struct tensor x, const void *w, enum dtype w_dtype,
                           bool add)
{
    struct gemm g = {};
    assert(x.dim[0] == y.dim[0]);
    g.a = x.data, g.b = w, g.c = y.data;
    g.m = y.dim[0], g.n = y.dim[1], g.k = x.dim[1];
    g.lda = g.k, g.ldb = g.k, g.ldc = g.n;
    g.a_dtype = x.dtype, g.b_dtype = w_dtype, g.c_dtype = y.dtype;
    g.experts = 1;
    g.add = add;
    return g;
}

/* dx[m,n] = dy[m,k] w[k,n] */
static struct gemm backward_input(struct tensor dx, struct tensor dy, const void *w,
                                  enum dtype w_dtype, bool add)
{
    struct gemm g = forward(dx, dy, w, w_dtype, add);
    g.ldb = g.n;
    return g;
}

/* dw[m,n] += dy[k,m]^T x[k,n] */
static struct gemm backward_weight(float *dw, struct tensor dy, struct tensor x)
{
    struct gemm g = {};
    assert(x.dim[0] == dy.dim[0]);
    g.a = dy.data, g.b = x.data, g.c = dw;
    g.m = dy.dim[1], g.n = x.dim[1], g.k = dy.dim[0];
    g.lda = g.m, g.ldb = g.n, g.ldc = g.n;
    g.a_dtype = dy.dtype, g.b_dtype = x.dtype, g.c_dtype = DTYPE_F32;
    g.experts = 1;
    g.add = true;
    return g;
}

/* A sum over nothing is written as 0, or adds nothing. */
static void run(void *stream, enum gemm_pass pass, const struct gemm *g)
{
    assert(g->c_dtype == DTYPE_F32 || g->c_dtype == DTYPE_BF16);
    if (g->m == 0 || g->n == 0 || g->experts == 0 || (g->k == 0 && g->add)) {
        return;
    }
    const bool narrow = g->a_dtype == DTYPE_BF16 && g->b_dtype == DTYPE_BF16;
    if (!narrow) {
        gemm_f32_launch((cudaStream_t)stream, pass, g);
    } else if (!gemm_sm90_launch((cudaStream_t)stream, pass, g)) {
        gemm_mma_launch((cudaStream_t)stream, pass, g);
    }
}

static void run_grouped(void *stream, enum gemm_pass pass, struct gemm g, int64_t stride,
                        const int64_t *offset, int64_t experts)
{
    g.stride = stride;
    g.offset = offset;
    g.experts = (int)experts;
    run(stream, pass, &g);
}

void cuda_linear_forward(void *stream, struct tensor y, struct tensor x, struct tensor w, bool add)
{
    assert(tensor_is(&w, w.dtype, y.dim[1], x.dim[1]));
    const struct gemm g = forward(y, x, w.data, w.dtype, add);
    run(stream, GEMM_FORWARD, &g);
}

void cuda_linear_backward_input(void *stream, struct tensor dx, struct tensor dy, struct tensor w,
                                bool add)
{
    assert(tensor_is(&w, w.dtype, dy.dim[1], dx.dim[1]));
    const struct gemm g = backward_input(dx, dy, w.data, w.dtype, add);
    run(stream, GEMM_INPUT, &g);
}

void cuda_linear_backward_weight(void *stream, struct tensor dw, struct tensor dy, struct tensor x)
{
    assert(tensor_is(&dw, DTYPE_F32, dy.dim[1], x.dim[1]));
    const struct gemm g = backward_weight((float *)dw.data, dy, x);
    run(stream, GEMM_WEIGHT, &g);
}

void cuda_grouped_forward(void *stream, struct tensor y, struct tensor x, const void *w,
                          int64_t w_stride, const int64_t *offset, int64_t experts)
{
    run_grouped(stream, GEMM_FORWARD, forward(y, x, w, x.dtype, false), w_stride, offset, experts);
}

void cuda_grouped_backward_input(void *stream, struct tensor dx, struct tensor dy, const void *w,
                                 int64_t w_stride, const int64_t *offset, int64_t experts)
{
    run_grouped(stream, GEMM_INPUT, backward_input(dx, dy, w, dy.dtype, false), w_stride, offset,
                experts);
}

void cuda_grouped_backward_weight(void *stream, float *dw, int64_t w_stride, struct tensor dy,
                                  struct tensor x, const int64_t *offset, int64_t experts)
{
    run_grouped(stream, GEMM_WEIGHT, backward_weight(dw, dy, x), w_stride, offset, experts);
}

void cuda_router_logits(void *stream, struct tensor logits, struct tensor x, struct tensor w)
{
    assert(logits.dtype == DTYPE_F32);
    cuda_linear_forward(stream, logits, x, w, false);
}

void cuda_router_logits_backward(void *stream, struct tensor dx, struct tensor dw,
                                 struct tensor dlogits, struct tensor x, struct tensor w)
{
    cuda_linear_backward_input(stream, dx, dlogits, w, true);
    cuda_linear_backward_weight(stream, dw, dlogits, x);
}
