#include <math.h>

#include "kernels/cuda/random.cuh"

/* Folded constants of one call: torch's order of operations, as on the CPU. */
struct adamw_factors {
    float lr, beta1, beta2, step, inverse_root2, eps, grad_scale, quantum;
};

template <int W>
DEVICE void store_moments(float *p, const float (&x)[W], const uint32_t (&)[W], int)
{
    store(p, x);
}

/* One random word serves two moments of an element: its low and its high half. */
template <int W>
DEVICE void store_moments(bf16 *p, const float (&x)[W], const uint32_t (&words)[W], int shift)
{
    uint32_t noise[W];
#pragma unroll
    for (int j = 0; j < W; j++) {
        noise[j] = words[j] >> shift;
    }
    store_noise(p, x, noise);
}

enum { ADAMW_PART = 4096 };

/* g = W elements of the gradient; of integers the bits of fixed_decode_kernel. */
template <int W>
DEVICE void load_gradient(float (&g)[W], const struct adamw_piece &piece, int64_t i, float quantum)
{
    if (piece.sum == nullptr) {
        load(g, piece.grad + i);
        return;
    }
#pragma unroll
    for (int j = 0; j < W; j++) {
        g[j] = (float)piece.sum[i + j] * quantum;
    }
}

/* W neighbouring elements. */
template <class M, int W>
DEVICE void adamw_elements(const struct adamw_piece &piece, int64_t i, float decay,
                           const struct adamw_factors &f)
{
    float *param = piece.param + i;
    M *m = (M *)piece.m + i, *v = (M *)piece.v + i;
    float p[W], g[W], new_m[W], new_v[W];
    uint32_t words[W] = {};
    load(p, param);
    load_gradient(g, piece, i, f.quantum);
    load(new_m, m);
    load(new_v, v);
#pragma unroll
    for (int j = 0; j < W; j++) {
        const float own = g[j] * f.grad_scale;
        new_m[j] = f.beta1 * new_m[j] + (1.0F - f.beta1) * own;
        new_v[j] = f.beta2 * new_v[j] + (1.0F - f.beta2) * own * own;
        p[j] = p[j] * decay - f.step * new_m[j] / (sqrtf(new_v[j]) * f.inverse_root2 + f.eps);
    }
    store(param, p);
    if (piece.out != nullptr) {
        store((bf16 *)piece.out + i, p);
    }
    if constexpr (sizeof(M) == 2) {
        noise_words(words, piece.key, piece.first + (uint64_t)i);
    }
    store_moments(m, new_m, words, 0);
    store_moments(v, new_v, words, 16);
}

DEVICE bool adamw_aligned(const struct adamw_piece &piece)
{
    const uintptr_t all = (uintptr_t)piece.param | (uintptr_t)piece.m | (uintptr_t)piece.v |
                          (uintptr_t)piece.out | (uintptr_t)piece.grad;
    return all % 16 == 0;
}

/* The last piece that begins at or before part `at`. */
DEVICE int64_t piece_of_part(const int64_t *__restrict__ part, int64_t pieces, int64_t at)
{
    int64_t low = 0, high = pieces - 1;
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (part[middle] <= at) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

/* One block per part of ADAMW_PART elements of a piece. M: dtype of the moments. Bytes per element:
 * grad in, param and the moments in and out, 2 of the copy out: 30 with f32 moments, 22 with bf16;
 * 4 more where grad is integers.
 * FLOPs: about 15 (bf16: and 25 integer operations of noise). Bound by memory. */
template <class M>
__global__ void __launch_bounds__(FLAT_THREADS)
    adamw_kernel(const struct adamw_piece *__restrict__ pieces, const int64_t *__restrict__ part,
                 int64_t count, struct adamw_factors f)
{
    const int64_t number = piece_of_part(part, count, blockIdx.x);
    const struct adamw_piece piece = pieces[number];
    const int64_t first = ((int64_t)blockIdx.x - part[number]) * ADAMW_PART;
    const int64_t end = min(first + ADAMW_PART, piece.count);
    const float decay = 1.0F - f.lr * piece.weight_decay;
    const int width = adamw_aligned(piece) ? 4 : 1;
    for (int64_t i = first + (int64_t)threadIdx.x * width; i < end; i += FLAT_THREADS * width) {
        if (width == 4 && i + 4 <= end) {
            adamw_elements<M, 4>(piece, i, decay, f);
            continue;
        }
        for (int64_t j = i; j < min(i + width, end); j++) {
            adamw_elements<M, 1>(piece, j, decay, f);
        }
    }
}

int64_t cuda_adamw_parts(int64_t count)
{
    return (count + ADAMW_PART - 1) / ADAMW_PART;
}

void cuda_adamw(void *stream, const struct adamw_piece *piece, const int64_t *part, int64_t pieces,
                int64_t parts, struct adamw args)
{
    const double correction1 = 1.0 - pow((double)args.beta1, (double)args.step);
    const double correction2 = 1.0 - pow((double)args.beta2, (double)args.step);
    const struct adamw_factors f = {args.lr,
                                    args.beta1,
                                    args.beta2,
                                    (float)((double)args.lr / correction1),
                                    (float)(1.0 / sqrt(correction2)),
                                    args.eps,
                                    args.grad_scale,
                                    args.quantum};
    assert(args.moments == DTYPE_F32 || args.moments == DTYPE_BF16);
    if (parts == 0) {
        return;
    }
    if (args.moments == DTYPE_F32) {
        LAUNCH(adamw_kernel<float>, (unsigned)parts, FLAT_THREADS, 0, (cudaStream_t)stream, piece,
               part, pieces, f);
    } else {
        LAUNCH(adamw_kernel<bf16>, (unsigned)parts, FLAT_THREADS, 0, (cudaStream_t)stream, piece,
               part, pieces, f);
    }
}

/* Calls run(storage<M, V>) for the moments' dtype: 4 elements per thread, or one. */
template <class F> static void dispatch_moments(enum dtype dtype, bool wide, F run)
{
    assert(dtype == DTYPE_F32 || dtype == DTYPE_BF16);
    if (dtype == DTYPE_F32) {
        wide ? run(storage<float, 4>()) : run(storage<float, 1>());
    } else {
        wide ? run(storage<bf16, 4>()) : run(storage<bf16, 1>());
    }
}

/* g = grad_scale * grad; m += (1 - momentum) (g - m); grad = g + momentum (m - g). Bytes: grad and
 * m in and out. FLOPs: 7. Bound by memory. */
template <class M, int V>
__global__ void __launch_bounds__(FLAT_THREADS)
    muon_momentum_kernel(float *grad, M *m, int64_t count, struct muon args)
{
    flat<V>(count, [&](auto width, int64_t i) {
        constexpr int W = decltype(width)::value;
        float g[W], moment[W];
        uint32_t words[W] = {};
        load(g, grad + i);
        load(moment, m + i);
#pragma unroll
        for (int j = 0; j < W; j++) {
            const float own = args.grad_scale * g[j];
            moment[j] += (1.0F - args.momentum) * (own - moment[j]);
            g[j] = own + args.momentum * (moment[j] - own);
        }
        store(grad + i, g);
        if constexpr (sizeof(M) == 2) {
            noise_words(words, args.moments.key, args.moments.first + (uint64_t)i);
        }
        store_moments(m + i, moment, words, 0);
    });
}

void cuda_muon_momentum(void *stream, float *grad, void *m, int64_t count, struct muon args)
{
    if (count == 0) {
        return;
    }
    dispatch_moments(args.moments.dtype, aligned(grad) && aligned(m), [&](auto kind) {
        using M = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack;
        LAUNCH((muon_momentum_kernel<M, V>), flat_blocks(count, V), FLAT_THREADS, 0,
               (cudaStream_t)stream, grad, (M *)m, count, args);
    });
}

/* param = param decay - step update. Bytes: param in and out, update in, 2 of the copy out. FLOPs:
 * 3. Bound by memory. */
template <int V>
__global__ void __launch_bounds__(FLAT_THREADS)
    muon_update_kernel(float *param, bf16 *out, const float *__restrict__ update, int64_t count,
                       float decay, float step)
{
    flat<V>(count, [&](auto width, int64_t i) {
        constexpr int W = decltype(width)::value;
        float p[W], u[W];
        load(p, param + i);
        load(u, update + i);
#pragma unroll
        for (int j = 0; j < W; j++) {
            p[j] = p[j] * decay - step * u[j];
        }
        store(param + i, p);
        if (out != nullptr) {
            store(out + i, p);
        }
    });
}

void cuda_muon_update(void *stream, float *param, void *out_bf16, const float *update,
                      int64_t count, struct muon args)
{
    const float decay = 1.0F - args.lr * args.weight_decay, step = args.lr * args.scale;
    if (count == 0) {
        return;
    }
    const bool wide = aligned(param) && aligned(out_bf16) && aligned(update);
    dispatch_moments(DTYPE_F32, wide, [&](auto kind) {
        constexpr int V = decltype(kind)::pack;
        LAUNCH(muon_update_kernel<V>, flat_blocks(count, V), FLAT_THREADS, 0, (cudaStream_t)stream,
               param, (bf16 *)out_bf16, update, count, decay, step);
    });
}

/* Bytes: ema in and out, x in. FLOPs: 3. Bound by memory. */
template <int V>
__global__ void __launch_bounds__(FLAT_THREADS)
    ema_kernel(float *ema, const float *__restrict__ x, int64_t count, float rest)
{
    flat<V>(count, [&](auto width, int64_t i) {
        constexpr int W = decltype(width)::value;
        float average[W], own[W];
        load(average, ema + i);
        load(own, x + i);
#pragma unroll
        for (int j = 0; j < W; j++) {
            average[j] += rest * (own[j] - average[j]); /* exact where both are the same */
        }
        store(ema + i, average);
    });
}

void cuda_ema(void *stream, float *ema, const float *x, int64_t count, double decay)
{
    if (count == 0) {
        return;
    }
    dispatch_moments(DTYPE_F32, aligned(ema) && aligned(x), [&](auto kind) {
        constexpr int V = decltype(kind)::pack;
        LAUNCH(ema_kernel<V>, flat_blocks(count, V), FLAT_THREADS, 0, (cudaStream_t)stream, ema, x,
               count, (float)(1 - decay));
    });
}
