/* MLA decoding in its absorbed form (DeepSeek-V2, 2.1): decode.cuh's attention over the latents,
 * between two products with w_kv_b in which a block reads a head's weights once for several
 * sequences. */
#include "kernels/cuda/decode.cuh"

enum {
    SEQUENCES = 4, /* that share one read of a head's weights */
    ABSORB_COLUMNS = 64,
    ABSORB_ROWS = 4
}; /* threads */

/* latent[b, head] = scale W_uk^T q_nope. A block takes V * blockDim.x columns of one head for
 * SEQUENCES sequences; threads y share the rows of W_uk, whose sums are added in order. Bytes: half
 * of w_kv_b once per SEQUENCES sequences. FLOPs: 2 nope rank per head and sequence. Bound by memory
 * for few sequences. */
template <class T, int V>
__global__ void __launch_bounds__(THREADS)
    decode_absorb_kernel(float *latent, const T *q, const T *__restrict__ w,
                         struct decode_shape shape, float scale)
{
    SMEM(float, part, [SEQUENCES][ABSORB_ROWS][ABSORB_COLUMNS][V]);
    const int64_t nope = shape.qk_dim - shape.rope_dim, head = blockIdx.y,
                  c = ((int64_t)blockIdx.x * ABSORB_COLUMNS + threadIdx.x) * V,
                  first = (int64_t)blockIdx.z * SEQUENCES;
    const int count = (int)min((int64_t)SEQUENCES, shape.batch - first);
    const T *weights = w + head * (nope + shape.v_dim) * shape.rank + c;
    const T *query = q + first * shape.q_stride + head * shape.qk_dim;
    float sum[SEQUENCES][V] = {};
    for (int64_t i = threadIdx.y; i < nope && c < shape.rank; i += ABSORB_ROWS) {
        float row[V];
        load(row, weights + i * shape.rank);
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++) {
            const float factor = s < count ? to_float(query[s * shape.q_stride + i]) : 0;
#pragma unroll
            for (int j = 0; j < V; j++) {
                sum[s][j] += factor * row[j];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < SEQUENCES * V; i++) {
        part[i / V][threadIdx.y][threadIdx.x][i % V] = sum[i / V][i % V];
    }
    __syncthreads();
    const int s = threadIdx.y; /* of the sequences, from here on */
    static_assert(SEQUENCES == ABSORB_ROWS, "one for each threadIdx.y");
    for (int j = 0; j < V && c < shape.rank && s < count; j++) {
        float total = 0;
        for (int y = 0; y < ABSORB_ROWS; y++) {
            total += part[s][y][threadIdx.x][j];
        }
        latent[((first + s) * shape.heads + head) * shape.rank + c + j] = total * scale;
    }
}

/* o[b, head] = W_uv latent[b, head]. A warp takes one row of W_uv for SEQUENCES sequences. Bytes,
 * FLOPs and bound as above. */
template <class T, int V>
__global__ void __launch_bounds__(THREADS, 4)
    decode_expand_kernel(T *o, const float *__restrict__ latent, const T *__restrict__ w,
                         struct decode_shape shape)
{
    const int64_t nope = shape.qk_dim - shape.rope_dim, head = blockIdx.y,
                  i = (int64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32,
                  first = (int64_t)blockIdx.z * SEQUENCES;
    const int count = (int)min((int64_t)SEQUENCES, shape.batch - first);
    if (i >= shape.v_dim) {
        return;
    }
    const T *weights = w + (head * (nope + shape.v_dim) + nope + i) * shape.rank;
    float sum[SEQUENCES] = {};
    for (int64_t c = threadIdx.x % 32 * V; c < shape.rank; c += 32 * V) {
        float row[V];
        load(row, weights + c);
#pragma unroll
        for (int s = 0; s < SEQUENCES; s++) {
            const int64_t b = first + min(s, count - 1);
            float in[V];
            load(in, latent + (b * shape.heads + head) * shape.rank + c);
#pragma unroll
            for (int j = 0; j < V; j++) {
                sum[s] += row[j] * in[j];
            }
        }
    }
#pragma unroll
    for (int s = 0; s < SEQUENCES; s++) {
        const float total = warp_sum(sum[s]);
        if (threadIdx.x % 32 == 0 && s < count) {
            store_one(o + (first + s) * shape.o_stride + head * shape.v_dim + i, total);
        }
    }
}

size_t cuda_mla_decode_scratch(const struct decode_shape *shape)
{
    return sizeof(float) * (size_t)((shape->batch * shape->heads * shape->rank + 3) / 4 * 4 +
                                    part_floats(shape, shape->rank));
}

void cuda_mla_decode(void *stream, void *o, const void *q, const void *w_kv_b, const void *c_cache,
                     const void *rope_cache, const int32_t *lengths,
                     const struct decode_shape *shape, void *scratch)
{
    if (shape->batch == 0) {
        return;
    }
    const int64_t rank = shape->rank, rope = shape->rope_dim, pack = pack_of(shape->dtype),
                  latents = (shape->batch * shape->heads * rank + 3) / 4 * 4,
                  turns = (shape->batch + SEQUENCES - 1) / SEQUENCES;
    const bool wide = rank % pack == 0 && rope % pack == 0 && aligned(w_kv_b) && aligned(c_cache) &&
                      aligned(rope_cache);
    dispatch(shape->dtype, wide, [&](auto kind) {
        using T = typename decltype(kind)::type;
        constexpr int V = decltype(kind)::pack, HEADS = 16;
        float *latent = (float *)scratch;
        struct decode_call<T> call =
            decode_call_of((const T *)q, lengths, rank, shape, latent + latents);
        call.latent = latent;
        call.k = call.v = (const T *)c_cache;
        call.rope = (const T *)rope_cache;
        call.k_row = call.v_row = call.k_dim = rank;
        call.rope_dim = rope;
        call.per_group = shape->heads;
        const dim3 columns((unsigned)((rank + ABSORB_COLUMNS * V - 1) / (ABSORB_COLUMNS * V)),
                           (unsigned)shape->heads, (unsigned)turns),
            rows((unsigned)((shape->v_dim + THREADS / 32 - 1) / (THREADS / 32)),
                 (unsigned)shape->heads, (unsigned)turns);
        LAUNCH((decode_absorb_kernel<T, V>), columns, dim3(ABSORB_COLUMNS, ABSORB_ROWS), 0,
               (cudaStream_t)stream, latent, (const T *)q, (const T *)w_kv_b, *shape, call.scale);
        attend<T, V, HEADS>(stream, latent, shape->heads * rank, call, shape->batch);
        LAUNCH((decode_expand_kernel<T, V>), rows, THREADS, 0, (cudaStream_t)stream, (T *)o, latent,
               (const T *)w_kv_b, *shape);
    });
}
