/* attention_decode and mla_decode kernels against the CPU device.
 *
 * Tolerances. f32 inside on both devices, whatever the storage: a score is a sum of up to `dims`
 * products of standard normals, scaled to order 1 (error U dims^1/2 on each device), is rounded a
 * few times on its way into exp; weights are summed over up to `rows` rows. MLA has two more sums,
 * over qk_dim - rope_dim and rank. Behind a sequence's length the caches hold NaN.
 */
#include "ops_case.h"

struct decode_case {
    int64_t heads, kv_heads, qk, v, rope, rank, capacity, window, gap;
    std::vector<int> lengths;
};

/* Parts of a cache have 256 rows at least, tiles 64; a block has 8 heads, 16 of MLA. */
static const std::vector<struct decode_case> grouped = {
    {1, 1, 8, 8, 0, 0, 1, 0, 0, {1}},
    {4, 2, 24, 16, 0, 0, 70, 0, 8, {70, 0, 13, 64, 65}},
    {9, 1, 16, 40, 0, 0, 40, 0, 0, {33, 1}},
    {6, 3, 32, 16, 0, 0, 600, 0, 0, {600, 256, 257, 3}},
    {2, 2, 16, 16, 0, 0, 600, 100, 0, {600, 310, 99, 100, 101, 0}},
    {4, 2, 7, 5, 0, 0, 80, 9, 1, {80, 5, 66}},
    {2, 1, 128, 128, 0, 0, 300, 0, 0, {290, 140}},
    {1, 1, 8, 8, 0, 0, 9000, 0, 0, {9000}}, /* longer parts */
};
static const std::vector<struct decode_case> latent = {
    {1, 1, 16, 8, 8, 16, 1, 0, 0, {1}},
    {4, 4, 24, 16, 8, 32, 70, 0, 8, {70, 0, 13, 64, 65}},
    {18, 18, 24, 16, 8, 40, 90, 0, 0, {33, 90}},
    {2, 2, 24, 16, 8, 16, 600, 0, 0, {600, 256, 257, 3, 511}},
    {3, 3, 13, 9, 4, 21, 80, 0, 1, {80, 66}},
    {2, 2, 192, 128, 64, 512, 70, 0, 0, {68}},
    {1, 1, 16, 8, 8, 600, 30, 0, 0, {30}}, /* more columns than a block's threads take */
};

static struct decode_shape shape_of(const struct decode_case &k, enum dtype dtype)
{
    struct decode_shape shape = {};
    shape.batch = (int64_t)k.lengths.size();
    shape.heads = k.heads;
    shape.kv_heads = k.kv_heads;
    shape.qk_dim = k.qk;
    shape.v_dim = k.v;
    shape.rope_dim = k.rope;
    shape.rank = k.rank;
    shape.q_stride = k.heads * k.qk + k.gap;
    shape.o_stride = k.heads * k.v + k.gap;
    shape.capacity = k.capacity;
    shape.window = k.window;
    shape.scale = 1 / sqrtf((float)k.qk);
    shape.dtype = dtype;
    return shape;
}

/* Rows of a cache: normal below a sequence's length, NaN from there on. */
static operand &cache(ops_case &c, const char *name, const struct decode_case &k, int64_t width)
{
    const uint64_t key = rng_key(7, name);
    return c.fill(name, c.dtype, (int64_t)k.lengths.size() * k.capacity, width, [&](int64_t i) {
        const int64_t row = i / width;
        return row % k.capacity < k.lengths[(size_t)(row / k.capacity)]
                   ? rng_normal(key, (uint64_t)i)
                   : (double)NAN;
    });
}

struct decode_run {
    struct decode_shape shape;
    operand *q, *w, *k, *v, *lengths, *o; /* MLA: k, v are the latents and the rope keys */
};

static struct decode_run make(ops_case &c, const struct decode_case &k)
{
    struct decode_run r = {};
    r.shape = shape_of(k, c.dtype);
    r.q = &c.random("q", c.dtype, r.shape.batch, r.shape.q_stride);
    r.w = k.rank > 0 ? &c.random("w_kv_b", c.dtype, k.heads * (k.qk - k.rope + k.v), k.rank,
                                 1 / sqrt((double)k.rank))
                     : &c.none("w_kv_b");
    r.k = &cache(c, "k", k, k.rank > 0 ? k.rank : k.kv_heads * k.qk);
    r.v = &cache(c, "v", k, k.rank > 0 ? k.rope : k.kv_heads * k.v);
    r.lengths = &c.fill("lengths", DTYPE_I32, r.shape.batch, 1,
                        [&](int64_t b) { return k.lengths[(size_t)b]; });
    r.o = &c.poison("o", c.dtype, r.shape.batch, r.shape.o_stride);
    return r;
}

static size_t scratch_bytes(const struct decode_shape &s)
{
    return s.rank > 0 ? cuda_mla_decode_scratch(&s) : cuda_attention_decode_scratch(&s);
}

/* Sequences [first, first + s.batch) of the operands, o at `o`. */
static void run(const struct decode_run &r, const struct decode_shape &s, void *o, int64_t first,
                void *work)
{
    const int64_t rows = first * s.capacity, count = s.batch * s.capacity;
    const void *q = tensor_rows(&r.q->cuda, first, s.batch).data,
               *k = tensor_rows(&r.k->cuda, rows, count).data,
               *v = tensor_rows(&r.v->cuda, rows, count).data;
    const int32_t *lengths = r.lengths->on_cuda<int32_t>() + first;
    if (s.rank > 0) {
        cuda_mla_decode(nullptr, o, q, r.w->cuda.data, k, v, lengths, &s, work);
    } else {
        cuda_attention_decode(nullptr, o, q, k, v, lengths, &s, work);
    }
}

static bool against_cpu(struct device *device, enum dtype dtype, int shift,
                        const struct decode_case &k)
{
    ops_case c(device, dtype, shift, "%s B=%d H=%d/%d dims %d+%d/%d rank %d capacity %d window %d",
               k.rank > 0 ? "mla_decode" : "attention_decode", (int)k.lengths.size(), (int)k.heads,
               (int)k.kv_heads, (int)(k.qk - k.rope), (int)k.rope, (int)k.v, (int)k.rank,
               (int)k.capacity, (int)k.window);
    const struct decode_run r = make(c, k);
    const struct decode_shape &s = r.shape;
    scratch work(scratch_bytes(s));
    c.upload();
    if (k.rank > 0) {
        c.ops->mla_decode(device, r.o->cpu.data, r.q->cpu.data, r.w->cpu.data, r.k->cpu.data,
                          r.v->cpu.data, r.lengths->on_cpu<int32_t>(), &s);
    } else {
        c.ops->attention_decode(device, r.o->cpu.data, r.q->cpu.data, r.k->cpu.data, r.v->cpu.data,
                                r.lengths->on_cpu<int32_t>(), &s);
    }
    run(r, s, r.o->cuda.data, 0, work.data);
    c.download();
    const double dims = sqrt((double)(k.rank > 0 ? k.qk + k.rank : k.qk)),
                 rows = sqrt((double)k.capacity);
    c.close(*r.o, EXP_ERROR + U * (16 + 2 * dims + rows));
    return c.finish();
}

/* A sequence's result has the bits it has without the others. */
static bool sequence_alone(struct device *device, enum dtype dtype, const struct decode_case &k)
{
    ops_case c(device, dtype, SHIFT_NONE, "%s, sequence alone",
               k.rank > 0 ? "mla_decode" : "attention_decode");
    const struct decode_run r = make(c, k);
    struct decode_shape s = r.shape;
    operand &alone = c.poison("o alone", dtype, s.batch, s.o_stride);
    scratch work(scratch_bytes(s));
    c.upload();
    run(r, s, r.o->cuda.data, 0, work.data);
    s.batch = 1;
    for (int64_t b = 0; b < r.shape.batch; b++) {
        run(r, s, tensor_rows(&alone.cuda, b, 1).data, b, work.data);
    }
    c.download();
    if (memcmp(c.got_data(alone), c.got_data(*r.o), tensor_bytes(&alone.cpu)) != 0) {
        c.wrong(alone, 0, "a sequence depends on the others");
    }
    return c.right;
}

static bool test()
{
    bool right = true;
    for (const auto &cases : {grouped, latent}) {
        for (const struct decode_case &k : cases) {
            const bool large = k.capacity > 1000 || k.rank > 100;
            for (const enum dtype dtype : {DTYPE_F32, DTYPE_BF16}) {
                for (int shift = SHIFT_ALL; shift <= (SLOW || large ? SHIFT_ALL : 5); shift++) {
                    const bool both = shift < 0;
                    if (both || (shift % 2 == 0) == (dtype == DTYPE_F32)) {
                        right = against_cpu(cpu_device(), dtype, large ? SHIFT_NONE : shift, k) &&
                                right;
                    }
                }
            }
        }
        right = sequence_alone(cpu_device(), DTYPE_F32, cases[3]) && right;
        right = sequence_alone(cpu_device(), DTYPE_BF16, cases[3]) && right;
    }
    return right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
