#include "kernels/cuda/rows.cuh"

/* Places of rows by scans: no atomics decide them, so the same input gives the same order. */

enum { SORT_CHUNKS = 128, SORT_LEAST = 256, SCAN_THREADS = 512, DROP_THREADS = 512 };

/* Exclusive sum over the block's threads, threadIdx.x only; *total: of all. `part`: 32 shared
 * elements, free again on return. */
DEVICE int64_t block_scan(int64_t own, int64_t *part, int64_t *total)
{
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int64_t before = own;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int64_t other = __shfl_up_sync(0xffffffffu, before, step);
        before += lane >= step ? other : 0;
    }
    if (lane == 31) {
        part[warp] = before;
    }
    __syncthreads();
    int64_t first = 0, all = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++) {
        first += (int)w < warp ? part[w] : 0;
        all += part[w];
    }
    __syncthreads();
    *total = all;
    return first + before - own;
}

/* ---- sort: one warp per chunk of slots, chunks in order ---- */

static int64_t chunk_of(int64_t slots)
{
    const int64_t even = (slots + SORT_CHUNKS - 1) / SORT_CHUNKS;
    return even < SORT_LEAST ? (int64_t)SORT_LEAST : (even + 31) / 32 * 32;
}

/* Lanes of the warp with the same expert as this one; 0 where the slot has none. */
DEVICE unsigned lanes_with(int32_t expert)
{
    const unsigned same = __match_any_sync(0xffffffffu, expert);
    return expert < 0 ? 0 : same;
}

DEVICE int32_t expert_at(const int32_t *__restrict__ expert, int64_t slot, int64_t end,
                         int64_t experts)
{
    const int32_t own = slot < end ? expert[slot] : -1;
    if (own >= experts) {
        __trap();
    }
    return own;
}

/* count[chunk, E]; token = -1. Bytes: 4 in, 4 out per slot. Bound by latency. */
__global__ void __launch_bounds__(32)
    sort_count_kernel(int32_t *count, int32_t *token, const int32_t *__restrict__ expert,
                      int64_t slots, int64_t chunk, int64_t experts)
{
    SMEM_DYN(memory);
    int32_t *own = (int32_t *)memory;
    const int lane = threadIdx.x;
    const int64_t first = blockIdx.x * chunk, end = min(first + chunk, slots);
    for (int64_t e = lane; e < experts; e += 32) {
        own[e] = 0;
    }
    __syncwarp();
    for (int64_t at = first; at < end; at += 32) {
        const int32_t e = expert_at(expert, at + lane, end, experts);
        const unsigned same = lanes_with(e);
        if (same != 0 && lane == __ffs((int)same) - 1) {
            own[e] += __popc(same);
        }
        if (at + lane < end) {
            token[at + lane] = -1;
        }
        __syncwarp();
    }
    for (int64_t e = lane; e < experts; e += 32) {
        count[blockIdx.x * experts + e] = own[e];
    }
}

/* offset[E+1], and counts become first rows. One block; neighbouring threads read neighbouring
 * experts. Bytes: counts in twice, out once, out of L2. Bound by latency. */
__global__ void __launch_bounds__(SCAN_THREADS)
    sort_scan_kernel(int64_t *offset, int32_t *count, int64_t chunks, int64_t experts)
{
    SMEM(int64_t, part, [32]);
    int64_t first = 0;
    for (int64_t from = 0; from < experts; from += SCAN_THREADS) {
        const int64_t e = from + threadIdx.x;
        int64_t own = 0, total;
        for (int64_t c = 0; e < experts && c < chunks; c++) {
            own += count[c * experts + e];
        }
        int64_t row = first + block_scan(own, part, &total);
        first += total;
        if (e < experts) {
            offset[e] = row;
            for (int64_t c = 0; c < chunks; c++) {
                const int32_t rows = count[c * experts + e];
                count[c * experts + e] = (int32_t)row;
                row += rows;
            }
        }
    }
    if (threadIdx.x == 0) {
        offset[experts] = first;
    }
}

/* Bytes per slot: 4 in, 8 out, the tokens' scattered. Bound by latency. */
__global__ void __launch_bounds__(32)
    sort_place_kernel(int32_t *token, int32_t *slot_row, const int32_t *__restrict__ expert,
                      const int32_t *__restrict__ first_row, int64_t slots, int64_t chunk,
                      int top_k, int64_t experts)
{
    SMEM_DYN(memory);
    int32_t *next = (int32_t *)memory;
    const int lane = threadIdx.x;
    const int64_t first = blockIdx.x * chunk, end = min(first + chunk, slots);
    for (int64_t e = lane; e < experts; e += 32) {
        next[e] = first_row[blockIdx.x * experts + e];
    }
    __syncwarp();
    for (int64_t at = first; at < end; at += 32) {
        const int64_t slot = at + lane;
        const int32_t e = expert_at(expert, slot, end, experts);
        const unsigned same = lanes_with(e);
        const int32_t row = same == 0 ? -1 : next[e] + __popc(same & ((1u << lane) - 1));
        __syncwarp();
        if (same != 0 && lane == __ffs((int)same) - 1) {
            next[e] += __popc(same);
        }
        __syncwarp();
        if (slot < end) {
            slot_row[slot] = row;
            if (row >= 0) {
                token[row] = (int32_t)(slot / top_k);
            }
        }
    }
}

size_t cuda_expert_sort_scratch(int64_t slots, int64_t experts)
{
    const int64_t chunk = chunk_of(slots);
    return (size_t)((slots + chunk - 1) / chunk * experts + 1) * sizeof(int32_t);
}

void cuda_expert_sort(void *stream, int64_t *offset, int32_t *token, int32_t *slot_row,
                      const int32_t *expert, int64_t slots, int64_t top_k, int64_t experts,
                      void *scratch)
{
    const cudaStream_t queue = (cudaStream_t)stream;
    const int64_t chunk = chunk_of(slots), chunks = (slots + chunk - 1) / chunk;
    const size_t shared = (size_t)experts * sizeof(int32_t);
    int32_t *count = (int32_t *)scratch;
    assert(experts > 0 && shared <= 48 << 10);
    if (chunks > 0) {
        LAUNCH(sort_count_kernel, (unsigned)chunks, 32, shared, queue, count, token, expert, slots,
               chunk, experts);
    }
    LAUNCH(sort_scan_kernel, 1, SCAN_THREADS, 0, queue, offset, count, chunks, experts);
    if (chunks > 0) {
        LAUNCH(sort_place_kernel, (unsigned)chunks, 32, shared, queue, token, slot_row, expert,
               count, slots, chunk, (int)top_k, experts);
    }
}

/* ---- regroup: blocks of rows, from (source, expert) to (expert, source) order ---- */

/* first[i], i = expert * ranks + source: where the block begins in expert order; then, from
 * local * ranks on, where it begins on arrival. One block. Bound by latency. */
__global__ void __launch_bounds__(SCAN_THREADS)
    regroup_scan_kernel(int64_t *first, int64_t *offset, const int64_t *__restrict__ taken,
                        int64_t local, int64_t ranks)
{
    SMEM(int64_t, part, [32]);
    const int64_t count = local * ranks;
    for (int arrival = 0; arrival < 2; arrival++) {
        int64_t row = 0, total;
        for (int64_t from = 0; from < count; from += SCAN_THREADS) {
            const int64_t i = from + threadIdx.x;
            const int64_t block = arrival ? i % local * ranks + i / local : i;
            const int64_t before = block_scan(i < count ? taken[block] : 0, part, &total);
            if (i < count) {
                first[arrival * count + block] = row + before;
                if (!arrival && i % ranks == 0) {
                    offset[i / ranks] = row + before;
                }
            }
            row += total;
        }
        if (threadIdx.x == 0) {
            offset[local] = row;
        }
    }
}

/* One block of threads per block of rows. Bytes: 8 out per row. Bound by latency. */
__global__ void __launch_bounds__(FLAT_THREADS)
    regroup_kernel(int32_t *regroup, int32_t *ungroup, const int64_t *__restrict__ first,
                   const int64_t *__restrict__ taken)
{
    const int64_t row = first[blockIdx.x], from = first[gridDim.x + blockIdx.x];
    const int64_t rows = taken[blockIdx.x];
    for (int64_t j = threadIdx.x; j < rows; j += FLAT_THREADS) {
        regroup[row + j] = (int32_t)(from + j);
        ungroup[from + j] = (int32_t)(row + j);
    }
}

size_t cuda_expert_regroup_scratch(int64_t local, int64_t ranks)
{
    return (size_t)(2 * local * ranks) * sizeof(int64_t);
}

void cuda_expert_regroup(void *stream, int32_t *regroup, int32_t *ungroup, int64_t *offset,
                         const int64_t *taken, int64_t local, int64_t ranks, void *scratch)
{
    const cudaStream_t queue = (cudaStream_t)stream;
    int64_t *first = (int64_t *)scratch;
    LAUNCH(regroup_scan_kernel, 1, SCAN_THREADS, 0, queue, first, offset, taken, local, ranks);
    LAUNCH(regroup_kernel, (unsigned)(local * ranks), FLAT_THREADS, 0, queue, regroup, ungroup,
           first, taken);
}

/* ---- unique: the first slot of a token that goes to a destination stands for the others ---- */

DEVICE int64_t first_there(const int32_t *__restrict__ expert, int64_t slot, int top_k,
                           int64_t local)
{
    const int64_t to = expert[slot] / local;
    int64_t first = slot - slot % top_k;
    while (expert[first] < 0 || expert[first] / local != to) {
        first++;
    }
    return first;
}

/* to[slot]: the destination where the slot stands for its token, else -1. Bytes per slot: 4 in, up
 * to K - 1 more out of L1, 4 out. Bound by latency. */
__global__ void __launch_bounds__(FLAT_THREADS)
    unique_mark_kernel(int32_t *to, const int32_t *__restrict__ expert, int64_t slots, int top_k,
                       int64_t local)
{
    const int64_t slot = (int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x;
    if (slot < slots) {
        const bool first = expert[slot] >= 0 && first_there(expert, slot, top_k, local) == slot;
        to[slot] = first ? (int32_t)(expert[slot] / local) : -1;
    }
}

/* row[slot]: of slots that stand for their tokens. Bytes per slot: 12 in, 4 out, scattered. Bound
 * by latency. */
__global__ void __launch_bounds__(FLAT_THREADS)
    unique_place_kernel(int32_t *place, const int32_t *__restrict__ expert,
                        const int32_t *__restrict__ slot_row, const int32_t *__restrict__ row,
                        const int64_t *__restrict__ begin, int64_t slots, int top_k, int64_t local)
{
    const int64_t slot = (int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x;
    if (slot < slots && expert[slot] >= 0) {
        const int64_t first = first_there(expert, slot, top_k, local);
        place[slot_row[slot]] = (int32_t)(row[first] - begin[expert[slot] / local]);
    }
}

size_t cuda_expert_unique_scratch(struct dispatch_shape shape)
{
    return 2 * (size_t)shape.slots * sizeof(int32_t) +
           cuda_expert_sort_scratch(shape.slots, shape.ranks);
}

void cuda_expert_unique(void *stream, int64_t *begin, int32_t *token, int32_t *place,
                        const int32_t *expert, const int32_t *slot_row, struct dispatch_shape shape,
                        void *scratch)
{
    const cudaStream_t queue = (cudaStream_t)stream;
    const int64_t slots = shape.slots, local = shape.experts / shape.ranks;
    const unsigned blocks = flat_blocks(slots, 1);
    int32_t *to = (int32_t *)scratch, *row = to + slots;
    assert(shape.experts % shape.ranks == 0);
    if (slots > 0) {
        LAUNCH(unique_mark_kernel, blocks, FLAT_THREADS, 0, queue, to, expert, slots,
               (int)shape.top_k, local);
    }
    cuda_expert_sort(stream, begin, token, row, to, slots, shape.top_k, shape.ranks, row + slots);
    if (slots > 0) {
        LAUNCH(unique_place_kernel, blocks, FLAT_THREADS, 0, queue, place, expert, slot_row, row,
               begin, slots, (int)shape.top_k, local);
    }
}

/* The destination of a row: the last whose rows begin at or before it, of `local` boundaries each.
 */
DEVICE int64_t destination_of(const int64_t *__restrict__ offset, int64_t row, int64_t local,
                              int64_t ranks)
{
    int64_t low = 0, high = ranks;
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (offset[middle * local] <= row) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* ---- fan out ---- */

/* Bytes per row: 8 in, 4 out, scattered. Bound by latency. */
__global__ void __launch_bounds__(FLAT_THREADS)
    fan_out_kernel(int32_t *fan, const int32_t *__restrict__ ungroup,
                   const int32_t *__restrict__ place, const int64_t *__restrict__ arrived,
                   const int64_t *__restrict__ unique, int64_t ranks, int64_t rows)
{
    const int64_t p = (int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x;
    if (p >= rows) {
        return;
    }
    const int64_t from = destination_of(arrived, p, 1, ranks);
    if (place[p] < 0 || unique[from] + place[p] >= unique[ranks]) {
        __trap();
    }
    fan[ungroup[p]] = (int32_t)(unique[from] + place[p]);
}

void cuda_expert_fan_out(void *stream, int32_t *fan, const int32_t *ungroup, const int32_t *place,
                         const int64_t *arrived, const int64_t *unique, int64_t ranks, int64_t rows)
{
    if (rows > 0) {
        LAUNCH(fan_out_kernel, flat_blocks(rows, 1), FLAT_THREADS, 0, (cudaStream_t)stream, fan,
               ungroup, place, arrived, unique, ranks, rows);
    }
}

/* ---- relay: rows by rank as rows of their machine's message ---- */

/* One thread for each row that there may be. Bytes per row: about 20 in, 4 out. Bound by latency.
 */
__global__ void __launch_bounds__(FLAT_THREADS)
    relay_kernel(int32_t *relay, const int64_t *__restrict__ begin,
                 const int32_t *__restrict__ token, const int32_t *__restrict__ place,
                 const int32_t *__restrict__ expert, const int32_t *__restrict__ slot_row,
                 struct dispatch_shape shape)
{
    const int64_t row = (int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x;
    const int64_t local = shape.experts / shape.ranks;
    if (row >= begin[shape.ranks]) {
        return;
    }
    const int64_t to = destination_of(begin, row, 1, shape.ranks);
    int64_t slot = token[row] * shape.top_k;
    while (expert[slot] < 0 || expert[slot] / local != to) {
        slot++;
    }
    relay[row] = place[slot_row[slot]];
}

void cuda_expert_relay(void *stream, int32_t *relay, const int64_t *begin, const int32_t *token,
                       const int32_t *place, const int32_t *expert, const int32_t *slot_row,
                       struct dispatch_shape shape)
{
    if (shape.slots > 0) {
        LAUNCH(relay_kernel, flat_blocks(shape.slots, 1), FLAT_THREADS, 0, (cudaStream_t)stream,
               relay, begin, token, place, expert, slot_row, shape);
    }
}

/* ---- padded messages: a capacity of rows for each pair of ranks ---- */

/* One thread for each row of slots, row of tokens, sorted row and expert. Bytes per row of slots:
 * 4 in, 16 out. Bound by latency. */
__global__ void __launch_bounds__(FLAT_THREADS)
    pad_kernel(int32_t *message, int32_t *token, int32_t *row, int32_t *back,
               const int64_t *__restrict__ offset, const int64_t *__restrict__ begin,
               const int32_t *__restrict__ unique_token, const int32_t *__restrict__ place,
               struct padded_shape shape)
{
    const int64_t i = (int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x;
    const int64_t local = shape.experts / shape.ranks, line = local + shape.pair_slots;
    if (i < shape.experts) {
        message[i / local * line + i % local] = (int32_t)(offset[i + 1] - offset[i]);
    }
    if (i < shape.ranks * shape.pair_slots) {
        const int64_t to = i / shape.pair_slots, at = i % shape.pair_slots;
        const int64_t first = offset[to * local], rows = offset[(to + 1) * local] - first;
        if (rows > shape.pair_slots) {
            __trap();
        }
        message[to * line + local + at] = at < rows ? place[first + at] : 0;
        row[i] = at < rows ? (int32_t)(first + at) : -1;
    }
    if (i < shape.ranks * shape.pair_tokens) {
        const int64_t to = i / shape.pair_tokens, at = i % shape.pair_tokens;
        const int64_t tokens = begin[to + 1] - begin[to];
        if (tokens > shape.pair_tokens) {
            __trap();
        }
        token[i] = at < tokens ? unique_token[begin[to] + at] : -1;
    }
    if (i < shape.slots) {
        const bool there = i < offset[shape.experts];
        const int64_t to = destination_of(offset, i, local, shape.ranks);
        back[i] = there ? (int32_t)(to * shape.pair_slots + i - offset[to * local]) : -1;
    }
}

void cuda_expert_pad(void *stream, int32_t *message, int32_t *token, int32_t *row, int32_t *back,
                     const int64_t *offset, const int64_t *begin, const int32_t *unique_token,
                     const int32_t *place, struct padded_shape shape)
{
    const int64_t rows = shape.ranks * shape.pair_slots;
    int64_t threads = rows > shape.slots ? rows : shape.slots;
    threads = threads > shape.experts ? threads : shape.experts;
    assert(shape.experts % shape.ranks == 0 && shape.pair_tokens <= shape.pair_slots);
    LAUNCH(pad_kernel, flat_blocks(threads, 1), FLAT_THREADS, 0, (cudaStream_t)stream, message,
           token, row, back, offset, begin, unique_token, place, shape);
}

/* -1 everywhere. Bytes per row: 12 out. Bound by latency. */
__global__ void __launch_bounds__(FLAT_THREADS)
    unpad_clear_kernel(int32_t *regroup, int32_t *ungroup, int32_t *fan, int64_t rows)
{
    const int64_t i = (int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x;
    if (i < rows) {
        regroup[i] = ungroup[i] = fan[i] = -1;
    }
}

/* first[i], i = expert * ranks + source: where the block begins in expert order; then, from
 * local * ranks on, where it begins in the source's message. One block. Bound by latency. */
__global__ void __launch_bounds__(SCAN_THREADS)
    unpad_scan_kernel(int64_t *first, int64_t *offset, const int32_t *__restrict__ message,
                      struct padded_shape shape)
{
    SMEM(int64_t, part, [32]);
    const int64_t ranks = shape.ranks, count = shape.experts, local = count / ranks;
    const int64_t line = local + shape.pair_slots;
    int64_t row = 0, total;
    for (int64_t from = 0; from < count; from += SCAN_THREADS) {
        const int64_t i = from + threadIdx.x;
        const int64_t own = i < count ? message[i % ranks * line + i / ranks] : 0;
        const int64_t before = block_scan(own, part, &total);
        if (i < count) {
            first[i] = row + before;
            if (i % ranks == 0) {
                offset[i / ranks] = row + before;
            }
        }
        row += total;
    }
    for (int64_t source = threadIdx.x; source < ranks; source += SCAN_THREADS) {
        int64_t at = 0;
        for (int64_t e = 0; e < local; e++) {
            first[count + e * ranks + source] = at;
            at += message[source * line + e];
        }
        if (at > shape.pair_slots) {
            __trap();
        }
    }
    if (threadIdx.x == 0) {
        offset[local] = row;
    }
}

/* One block of threads per block of rows. Bytes per row: 4 in, 12 out. Bound by latency. */
__global__ void __launch_bounds__(FLAT_THREADS)
    unpad_kernel(int32_t *regroup, int32_t *ungroup, int32_t *fan,
                 const int64_t *__restrict__ first, const int32_t *__restrict__ message,
                 struct padded_shape shape)
{
    const int64_t e = blockIdx.x / shape.ranks, source = blockIdx.x % shape.ranks;
    const int64_t local = shape.experts / shape.ranks;
    const int32_t *line = message + source * (local + shape.pair_slots);
    const int64_t row = first[blockIdx.x], at = first[gridDim.x + blockIdx.x];
    for (int64_t j = threadIdx.x; j < line[e]; j += FLAT_THREADS) {
        const int32_t place = line[local + at + j];
        if (place < 0 || place >= shape.pair_tokens) {
            __trap();
        }
        regroup[row + j] = (int32_t)(source * shape.pair_slots + at + j);
        ungroup[source * shape.pair_slots + at + j] = (int32_t)(row + j);
        fan[row + j] = (int32_t)(source * shape.pair_tokens + place);
    }
}

size_t cuda_expert_unpad_scratch(struct padded_shape shape)
{
    return 2 * (size_t)shape.experts * sizeof(int64_t);
}

void cuda_expert_unpad(void *stream, int32_t *regroup, int32_t *ungroup, int32_t *fan,
                       int64_t *offset, const int32_t *message, struct padded_shape shape,
                       void *scratch)
{
    const cudaStream_t queue = (cudaStream_t)stream;
    const int64_t rows = shape.ranks * shape.pair_slots;
    int64_t *first = (int64_t *)scratch;
    LAUNCH(unpad_clear_kernel, flat_blocks(rows, 1), FLAT_THREADS, 0, queue, regroup, ungroup, fan,
           rows);
    LAUNCH(unpad_scan_kernel, 1, SCAN_THREADS, 0, queue, first, offset, message, shape);
    LAUNCH(unpad_kernel, (unsigned)shape.experts, FLAT_THREADS, 0, queue, regroup, ungroup, fan,
           first, message, shape);
}

/* ---- drop: one block per group ---- */

/* Larger weights have larger keys; -0 and 0 the same; NaN, whatever its sign, the smallest. */
DEVICE uint32_t weight_key(float weight)
{
    const uint32_t bits = __float_as_uint(weight + 0.0F);
    if (weight != weight) {
        return 0;
    }
    return bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

/* Narrows `prefix`, the upper bits of the key of the `rank`-th largest of the group, by 8 bits more
 * (`shift`: those below them); *rank becomes its rank among those with these bits. */
DEVICE void drop_narrow(uint32_t *prefix, int64_t *rank, int shift, const int32_t *expert,
                        const float *weight, int64_t slots, int size)
{
    SMEM(int, bin, [256]);
    for (int i = threadIdx.x; i < 256; i += DROP_THREADS) {
        bin[i] = 0;
    }
    __syncthreads();
    for (int64_t slot = threadIdx.x; slot < slots; slot += DROP_THREADS) {
        if (expert[slot] >= 0 && expert[slot] / size == (int)blockIdx.x) {
            const uint32_t key = weight_key(weight[slot]);
            if (shift == 24 || key >> (shift + 8) == *prefix) {
                atomicAdd(&bin[key >> shift & 255u], 1);
            }
        }
    }
    __syncthreads();
    int at = 255;
    while (at > 0 && *rank > bin[at]) {
        *rank -= bin[at--];
    }
    *prefix = *prefix << 8 | (uint32_t)at;
    __syncthreads();
}

/* Finds the weight of the last slot that stays by its key, 8 bits at a time; of the slots with that
 * weight the first ones stay. Counting by atomics is exact in any order. Bytes: experts in 6 times,
 * weights 5 times, 4 out, out of L2 after the first. Bound by latency. */
__global__ void __launch_bounds__(DROP_THREADS)
    drop_kernel(int32_t *kept, const int32_t *__restrict__ expert, const float *__restrict__ weight,
                int64_t slots, int size, int64_t capacity)
{
    SMEM(int64_t, part, [32]);
    int64_t own = 0, total;
    for (int64_t slot = threadIdx.x; slot < slots; slot += DROP_THREADS) {
        own += expert[slot] >= 0 && expert[slot] / size == (int)blockIdx.x;
    }
    (void)block_scan(own, part, &total);
    const bool all = total <= capacity;
    uint32_t last = 0;
    int64_t ties = capacity;
    for (int shift = 24; !all && capacity > 0 && shift >= 0; shift -= 8) {
        drop_narrow(&last, &ties, shift, expert, weight, slots, size);
    }
    for (int64_t from = 0; from < slots; from += DROP_THREADS) {
        const int64_t slot = from + threadIdx.x;
        const int32_t e = slot < slots ? expert[slot] : -1;
        const bool mine = e >= 0 && e / size == (int)blockIdx.x;
        const uint32_t key = mine ? weight_key(weight[slot]) : 0;
        const bool tied = mine && !all && capacity > 0 && key == last;
        const int64_t before = block_scan(tied, part, &total);
        if (mine) {
            const bool stays = all || (capacity > 0 && (key > last || (tied && before < ties)));
            kept[slot] = stays ? e : -1;
        } else if (e < 0 && slot < slots && blockIdx.x == 0) {
            kept[slot] = e;
        }
        ties -= total;
    }
}

void cuda_expert_drop(void *stream, int32_t *kept, const int32_t *expert, const float *weight,
                      int64_t slots, int64_t experts, int64_t groups, int64_t capacity)
{
    assert(groups > 0 && experts % groups == 0 && capacity >= 0);
    if (slots > 0) {
        LAUNCH(drop_kernel, (unsigned)groups, DROP_THREADS, 0, (cudaStream_t)stream, kept, expert,
               weight, slots, (int)(experts / groups), capacity);
    }
}
