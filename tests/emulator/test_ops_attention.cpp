/* attention kernels against the CPU device.
 *
 * Tolerances. Inputs are standard normal and scores are scaled by qk_dim^-1/2, so scores are of
 * order 1. f32: a score is a sum of qk_dim products (error U qk_dim^1/2 on each device), is rounded
 * a few times on its way into exp, and weights are summed over up to T keys: acc below. Gradients
 * go through that twice, and through sums over v_dim. bf16: tensor cores, and CPUs that multiply
 * bf16, take weights and their gradients rounded, not equal ones: four roundings, rms at most
 * 2^-8 / 3^1/2 each, stand between the two results, those of the weight and of the store on either
 * side: together 1.16 * 2^-8 of the typical element. lse is f32 in both.
 */
#include "ops_case.h"

struct attention_case {
    int64_t batch, sequence, heads, kv_heads, qk, v, rope, window;
    bool documents;
    int64_t gap;                 /* columns behind each row */
    int64_t keys, ahead, before; /* of a part of an attention; else 0 */
    bool merges;
};

/* Tiles are 64 (32 of f32 keys): T below and off them, and six tiles of what has two buffers. */
static const struct attention_case cases[] = {
    {1, 1, 1, 1, 8, 8, 0, 0, false, 0},      {1, 65, 1, 1, 16, 16, 0, 0, false, 8},
    {3, 37, 4, 2, 24, 8, 0, 0, false, 0},    {2, 130, 2, 1, 32, 16, 0, 0, false, 8},
    {2, 70, 2, 2, 24, 16, 8, 0, false, 0},   {1, 150, 1, 1, 16, 16, 0, 40, false, 0},
    {1, 140, 1, 1, 8, 8, 0, 124, false, 0},  {2, 140, 4, 2, 16, 24, 0, 0, true, 0},
    {1, 135, 3, 3, 24, 16, 8, 20, true, 3},  {1, 33, 2, 1, 7, 5, 0, 0, false, 1},
    {1, 330, 1, 1, 8, 8, 0, 0, false, 0},    {1, 34, 2, 2, 13, 9, 4, 5, true, 0},
    {1, 40, 1, 1, 80, 96, 0, 0, false, 0},   {1, 70, 2, 2, 192, 128, 64, 0, false, 0},
    {1, 33, 1, 1, 256, 256, 0, 0, false, 0},
};

/* Queries in the middle of tiles of keys and at their beginning, the first ones, some with keys
 * behind them that none sees, or whole tiles before them that a window or a document hides; behind
 * all keys, of which then a window or a document hides some or all. */
static const struct attention_case parts[] = {
    {1, 50, 2, 1, 13, 9, 4, 0, false, 1, 50, 0, 0, false},
    {1, 64, 2, 2, 24, 16, 8, 0, false, 0, 128, 64, 0, true},
    {2, 70, 4, 2, 24, 16, 0, 0, true, 8, 170, 100, 30, true},
    {1, 40, 3, 3, 24, 16, 8, 20, true, 3, 150, 90, 0, false},
    {1, 100, 1, 1, 16, 8, 0, 50, false, 0, 250, 150, 7, false},
    {1, 1, 2, 1, 16, 16, 0, 0, false, 0, 66, 65, 0, true},
    {1, 30, 2, 2, 192, 128, 64, 0, false, 0, 100, 70, 0, false},
    {1, 64, 2, 1, 24, 16, 8, 0, false, 0, 64, 64, 0, true},
    {2, 50, 2, 2, 16, 8, 0, 0, false, 3, 33, 90, 17, true},
    {1, 33, 4, 2, 13, 9, 0, 0, false, 0, 100, 250, 0, false},
    {1, 100, 2, 1, 16, 16, 0, 70, false, 0, 100, 100, 20, true},
    {2, 70, 2, 1, 16, 8, 0, 0, true, 0, 70, 70, 140, true},
};

static int64_t keys_of(const struct attention_case &k)
{
    return k.keys > 0 ? k.keys : k.sequence;
}

struct attention_run {
    struct attention_shape shape;
    operand *q, *k, *v, *k_rope, *first; /* with rope: v is in k, too */
    operand *o, *lse, *o_in, *lse_in, *d_o, *dq, *dk, *dv, *dk_rope;
    operand *o_cpu; /* what the CPU makes lse_in with */
};

static struct attention_shape shape_of(const struct attention_case &k, enum dtype dtype)
{
    const int64_t nope = k.qk - k.rope, both = k.heads * (nope + k.v) + k.gap;
    struct attention_shape shape = {};
    shape.batch = k.batch;
    shape.sequence = k.sequence;
    shape.heads = k.heads;
    shape.kv_heads = k.kv_heads;
    shape.qk_dim = k.qk;
    shape.v_dim = k.v;
    shape.q_stride = k.heads * k.qk + k.gap;
    shape.o_stride = k.heads * k.v + k.gap;
    shape.k_stride = k.rope > 0 ? both : k.kv_heads * k.qk + k.gap;
    shape.v_stride = k.rope > 0 ? both : k.kv_heads * k.v + k.gap;
    shape.k_head_stride = k.rope > 0 ? nope + k.v : k.qk;
    shape.v_head_stride = k.rope > 0 ? nope + k.v : k.v;
    shape.rope_dim = k.rope;
    shape.k_rope_stride = k.rope > 0 ? k.rope + k.gap : 0;
    shape.window = k.window;
    shape.scale = 1 / sqrtf((float)k.qk);
    shape.dtype = dtype;
    shape.keys = k.keys;
    shape.ahead = k.ahead;
    shape.before = k.before;
    shape.merges = k.merges;
    return shape;
}

/* Documents of 1 to 50 tokens. */
static operand &documents(ops_case &c, const struct attention_case &k)
{
    const uint64_t key = rng_key(7, "documents");
    const int64_t begin = k.before + k.ahead,
                  all = std::max(k.before + keys_of(k), begin + k.sequence);
    std::vector<int64_t> first;
    for (int64_t n = 0, start = 0, end = 0; n < k.batch * all; n++) {
        const int64_t t = n % all;
        if (t == 0 || t == end) {
            start = t;
            end = t + 1 + (int64_t)(rng_uniform(key, (uint64_t)n) * 50);
        }
        if (t >= begin && t < begin + k.sequence) {
            first.push_back(start);
        }
    }
    return c.fill("first", DTYPE_I32, (int64_t)first.size(), 1,
                  [&](int64_t i) { return (double)first[(size_t)i]; });
}

/* Gradients of keys overwrite; of a part they add, in f32. */
static operand &gradient_of_keys(ops_case &c, const struct attention_case &k, const char *name,
                                 int64_t stride)
{
    const int64_t rows = k.batch * keys_of(k);
    return k.keys > 0 ? c.random(name, DTYPE_F32, rows, stride)
                      : c.poison(name, c.dtype, rows, stride);
}

/* o or lse: of a part f32, what other keys have made where it merges, the same for both. */
static operand &output(ops_case &c, const struct attention_case &k, const char *name,
                       enum dtype dtype, int64_t rows, int64_t columns)
{
    return k.merges ? c.random(name, dtype, rows, columns) : c.poison(name, dtype, rows, columns);
}

static struct attention_run make(ops_case &c, const struct attention_case &k)
{
    const struct attention_shape s = shape_of(k, c.dtype);
    const int64_t rows = k.batch * k.sequence, lses = k.batch * k.heads,
                  keys = k.batch * keys_of(k);
    struct attention_run r = {};
    r.shape = s;
    r.q = &c.random("q", c.dtype, rows, s.q_stride);
    r.k = &c.random("k", c.dtype, keys, s.k_stride); /* with rope: k and v side by side */
    r.v = k.rope > 0 ? r.k : &c.random("v", c.dtype, keys, s.v_stride);
    r.k_rope = k.rope > 0 ? &c.random("k_rope", c.dtype, keys, s.k_rope_stride) : &c.none("k_rope");
    r.d_o = &c.random("d_o", c.dtype, rows, s.o_stride);
    const bool part = k.keys > 0;
    const enum dtype sums = part ? DTYPE_F32 : c.dtype;
    const int64_t row = part ? k.heads * k.v : s.o_stride;
    r.o = &output(c, k, "o", sums, rows, row);
    r.lse = &output(c, k, "lse", DTYPE_F32, lses, k.sequence);
    r.lse_in = &output(c, k, "lse of the CPU", DTYPE_F32, lses, k.sequence);
    r.o_cpu = &output(c, k, "o of the CPU", sums, rows, row);
    r.o_in = part ? &c.random("o of all keys", c.dtype, rows, s.o_stride) : r.o_cpu;
    r.dq = part ? &c.random("dq", DTYPE_F32, rows, k.heads * k.qk)
                : &c.poison("dq", c.dtype, rows, s.q_stride);
    r.dk = &gradient_of_keys(c, k, "dk", s.k_stride);
    r.dv = k.rope > 0 ? r.dk : &gradient_of_keys(c, k, "dv", s.v_stride);
    r.dk_rope =
        k.rope > 0 ? &gradient_of_keys(c, k, "dk_rope", s.k_rope_stride) : &c.none("dk_rope");
    r.first = k.documents ? &documents(c, k) : &c.none("first");
    return r;
}

/* Where v begins in its operand. */
static char *values(const struct tensor &t, const struct attention_shape &s)
{
    return (char *)t.data +
           (s.rope_dim > 0 ? (size_t)(s.qk_dim - s.rope_dim) * dtype_bytes(t.dtype) : 0);
}

static void on_cpu(ops_case &c, const struct attention_run &r, operand &o, operand &lse)
{
    struct attention_shape s = r.shape;
    s.first = r.first->on_cpu<int32_t>();
    c.ops->attention_forward(c.device, o.cpu.data, lse.on_cpu<float>(), r.q->cpu.data,
                             r.k->cpu.data, r.k_rope->cpu.data, values(r.v->cpu, s), &s);
}

/* Relative to the operand: no element far off (close), nor all of them a little. */
static void close_all(ops_case &c, operand &o, double acc)
{
    double squares = 0, error = 0;
    c.close(o, acc);
    for (int64_t i = 0; i < tensor_count(&o.cpu); i++) {
        const double want = value_at(o.cpu, o.cpu.data, i),
                     have = value_at(o.cpu, c.got_data(o), i);
        squares += isnan(want) ? 0 : want * want;
        error += isnan(want) ? 0 : (have - want) * (have - want);
    }
    if (error > acc * acc * squares) {
        char why[100];
        snprintf(why, sizeof why, "NMSE %.3g", error / squares);
        c.wrong(o, 0, why);
    }
}

/* Gradients of scores that softmax makes 1 whatever they are: what cancels is of order 1. */
static void close_to_zero(ops_case &c, operand &o)
{
    o.compared = true;
    for (int64_t i = 0; i < tensor_count(&o.cpu); i++) {
        if (!(fabs(value_at(o.cpu, c.got_data(o), i)) < 64 * U)) {
            c.wrong(o, i, "not zero");
        }
    }
}

static bool against_cpu(struct device *device, enum dtype dtype, int shift,
                        const struct attention_case &k)
{
    ops_case c(device, dtype, shift,
               "attention B=%d T=%d H=%d/%d dims %d+%d/%d window %d%s keys %d ahead %d%s",
               (int)k.batch, (int)k.sequence, (int)k.heads, (int)k.kv_heads, (int)(k.qk - k.rope),
               (int)k.rope, (int)k.v, (int)k.window, k.documents ? " documents" : "",
               (int)keys_of(k), (int)k.ahead, k.merges ? ", merges" : "");
    const struct attention_run r = make(c, k);
    struct attention_shape s = r.shape;
    scratch work(cuda_attention_backward_scratch(&s));
    on_cpu(c, r, *r.o_cpu, *r.lse_in);
    c.upload();
    on_cpu(c, r, *r.o, *r.lse);
    s.first = r.first->on_cpu<int32_t>();
    c.ops->attention_backward(device, r.dq->cpu.data, r.dk->cpu.data, r.dk_rope->cpu.data,
                              values(r.dv->cpu, s), r.d_o->cpu.data, r.o_in->cpu.data,
                              r.lse_in->on_cpu<float>(), r.q->cpu.data, r.k->cpu.data,
                              r.k_rope->cpu.data, values(r.v->cpu, s), &s);
    s.first = r.first->on_cuda<int32_t>();
    cuda_attention_forward(nullptr, r.o->cuda.data, r.lse->on_cuda<float>(), r.q->cuda.data,
                           r.k->cuda.data, r.k_rope->cuda.data, values(r.v->cuda, s), &s);
    cuda_attention_backward(nullptr, r.dq->cuda.data, r.dk->cuda.data, r.dk_rope->cuda.data,
                            values(r.dv->cuda, s), r.d_o->cuda.data, r.o_in->cuda.data,
                            r.lse_in->on_cuda<float>(), r.q->cuda.data, r.k->cuda.data,
                            r.k_rope->cuda.data, values(r.v->cuda, s), &s, work.data);
    c.download();
    const double acc = EXP_ERROR + U * (16 + sqrt((double)k.qk) + sqrt((double)keys_of(k))),
                 grad = 2 * acc + U * (8 + sqrt((double)k.v));
    const bool narrow = dtype == DTYPE_BF16;
    c.close(*r.lse, acc);
    for (operand *o : {r.o, r.dq, r.dk, r.dv, r.dk_rope}) {
        if (keys_of(k) == 1 && (o == r.dq || o == r.dk)) {
            close_to_zero(c, *o);
        } else if (o->there()) {
            close_all(c, *o, narrow ? 1.16 * 0x1p-8 : o == r.o ? acc : grad);
        }
    }
    return c.finish();
}

static bool kinds(struct device *device)
{
    bool right = true;
    for (const struct attention_case &k : cases) {
        const bool large = k.qk > 100;
        for (const enum dtype dtype : {DTYPE_F32, DTYPE_BF16}) {
            right = against_cpu(device, dtype, SHIFT_NONE, k) && right;
            if (!SLOW && !large) {
                right = against_cpu(device, dtype, SHIFT_ALL, k) && right;
            }
        }
    }
    for (const struct attention_case &k : parts) {
        for (const enum dtype dtype : {DTYPE_F32, DTYPE_BF16}) {
            right = against_cpu(device, dtype, SHIFT_NONE, k) && right;
        }
        right = (SLOW || against_cpu(device, DTYPE_BF16, SHIFT_ALL, k)) && right;
    }
    /* One operand alone off its 16 bytes. */
    for (int shift = 0; shift < (SLOW ? 0 : 14); shift++) {
        right = against_cpu(device, shift % 2 ? DTYPE_F32 : DTYPE_BF16, shift, cases[4]) && right;
    }
    return right;
}

/* A sample's results have the bits they have without the others. */
static bool sample_alone(struct device *device, enum dtype dtype)
{
    const struct attention_case k = {3, 70, 2, 2, 24, 16, 8, 30, true, 0};
    ops_case c(device, dtype, SHIFT_NONE, "sample alone");
    const struct attention_run r = make(c, k);
    struct attention_shape s = r.shape;
    scratch work(cuda_attention_backward_scratch(&s));
    operand *const all[] = {r.o, r.lse, r.dq, r.dk, r.dk_rope};
    operand *some[5];
    for (int i = 0; i < 5; i++) {
        some[i] = &c.poison(all[i]->name, all[i]->cpu.dtype, all[i]->cpu.dim[0] / k.batch,
                            all[i]->cpu.dim[1]);
    }
    c.upload();
    for (int alone = 0; alone < 2; alone++) {
        const auto at = [&](const operand &o) {
            const int64_t rows = o.cuda.dim[0] / k.batch;
            return alone ? tensor_rows(&o.cuda, rows, rows) : o.cuda; /* sample 1 */
        };
        const auto to = [&](int i) { return (alone ? some : all)[i]->cuda; };
        const struct tensor keys = at(*r.k), lse = to(1), dk = to(3);
        s.batch = alone ? 1 : k.batch;
        s.first = (const int32_t *)at(*r.first).data;
        cuda_attention_forward(nullptr, to(0).data, (float *)lse.data, at(*r.q).data, keys.data,
                               at(*r.k_rope).data, values(keys, s), &s);
        cuda_attention_backward(nullptr, to(2).data, dk.data, to(4).data, values(dk, s),
                                at(*r.d_o).data, to(0).data, (float *)lse.data, at(*r.q).data,
                                keys.data, at(*r.k_rope).data, values(keys, s), &s, work.data);
    }
    c.download();
    for (int i = 0; i < 5; i++) {
        const size_t bytes = tensor_bytes(&some[i]->cpu);
        if (memcmp((const char *)c.got_data(*all[i]) + bytes, c.got_data(*some[i]), bytes) != 0) {
            c.wrong(*some[i], 0, "a sample depends on the others");
        }
    }
    return c.right;
}

/* Of sm_86 and sm_89 a block has 99 KiB. */
static bool little_shared(struct device *device)
{
    const struct attention_case k = {1, 70, 2, 1, 128, 128, 0, 0, false, 0};
    side_set_shared_most(99 << 10);
    const bool right = against_cpu(device, DTYPE_BF16, SHIFT_NONE, k);
    side_set_shared_most(227 << 10);
    return right;
}

static bool test()
{
    bool right = kinds(cpu_device());
    right = little_shared(cpu_device()) && right;
    right = sample_alone(cpu_device(), DTYPE_F32) && right;
    return sample_alone(cpu_device(), DTYPE_BF16) && right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
