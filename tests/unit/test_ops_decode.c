/* Attention of one new token over a cache, plain and MLA's absorbed form, and the rows that fill
 * the cache. */
#include "ops_check.h"

struct layout {
    int64_t batch, heads, kv_heads; /* kv_heads 0: MLA */
    int64_t qk, v, rope, rank;
    int64_t capacity, window, gap; /* gap: unused elements between rows of q, of o */
};

/* Around the vectors of 16 and the tasks of 8 heads; window of one token, inside and beyond the
 * cache. */
static const struct layout layouts[] = {
    {1, 1, 1, 4, 4, 0, 0, 1, 0, 0},       {3, 4, 2, 16, 8, 0, 0, 9, 0, 1},
    {2, 6, 1, 33, 17, 0, 0, 70, 5, 0},    {4, 8, 8, 24, 40, 0, 0, 130, 1000, 3},
    {2, 2, 2, 16, 16, 0, 0, 40, 1, 0},    {1, 1, 0, 6, 4, 2, 8, 1, 0, 0},
    {3, 4, 0, 24, 16, 8, 32, 9, 0, 1},    {2, 9, 0, 13, 20, 4, 7, 70, 0, 0},
    {4, 17, 0, 48, 33, 16, 65, 40, 0, 2},
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

struct decode {
    struct decode_shape shape;
    struct tensor q, o, k, v, w, lengths; /* k, v: caches of keys and values, or of c' and k_rope */
    double *in_q, *in_k, *in_v, *in_w;
};

/* Sequence b has 0, 1, ... cached tokens, up to the whole cache. */
static int32_t length_of(const struct layout *l, int64_t b)
{
    return (int32_t)(l->batch > 1 ? b * l->capacity / (l->batch - 1) : l->capacity);
}

static struct decode make_case(struct check *c, const struct layout *l)
{
    const bool mla = l->kv_heads == 0;
    const int64_t rows = l->batch * l->capacity, nope = l->qk - l->rope;
    struct decode d = {.shape = {.batch = l->batch,
                                 .heads = l->heads,
                                 .kv_heads = l->kv_heads,
                                 .qk_dim = l->qk,
                                 .v_dim = l->v,
                                 .rope_dim = l->rope,
                                 .rank = l->rank,
                                 .q_stride = l->heads * l->qk + l->gap,
                                 .o_stride = l->heads * l->v + 2 * l->gap,
                                 .capacity = l->capacity,
                                 .window = l->window,
                                 .scale = (float)(1 / sqrt((double)l->qk)),
                                 .dtype = c->dtype}};
    d.q = check_random(c, "q", c->dtype, l->batch, d.shape.q_stride, 1);
    d.k = check_random(c, "k", c->dtype, rows, mla ? l->rank : l->kv_heads * l->qk, 1);
    d.v = check_random(c, "v", c->dtype, rows, mla ? l->rope : l->kv_heads * l->v, 1);
    d.w = check_random(c, "w", c->dtype, l->heads * (nope + l->v), l->rank,
                       1 / sqrt((double)l->rank + 1));
    d.o = check_tensor(c, "o", c->dtype, l->batch, d.shape.o_stride);
    d.lengths = check_tensor(c, "lengths", DTYPE_I32, l->batch, 1);
    for (int64_t b = 0; b < l->batch; b++) {
        ((int32_t *)d.lengths.data)[b] = length_of(l, b);
    }
    d.in_q = check_values(c, d.q);
    d.in_k = check_values(c, d.k);
    d.in_v = check_values(c, d.v);
    d.in_w = check_values(c, d.w);
    check_name(c,
               "decode B=%lld H=%lld G=%lld qk=%lld v=%lld rope=%lld r=%lld capacity=%lld "
               "window=%lld gap=%lld",
               (long long)l->batch, (long long)l->heads, (long long)l->kv_heads, (long long)l->qk,
               (long long)l->v, (long long)l->rope, (long long)l->rank, (long long)l->capacity,
               (long long)l->window, (long long)l->gap);
    return d;
}

/* Element i of the key (value: i >= qk) of head h at cached token j, made whole: MLA's by its
 * up-projection, the form without absorption. */
static double cached(const struct decode *d, int64_t h, int64_t b, int64_t j, int64_t i)
{
    const struct decode_shape *s = &d->shape;
    const int64_t row = b * s->capacity + j, nope = s->qk_dim - s->rope_dim;
    if (s->rank == 0) {
        const int64_t g = h / (s->heads / s->kv_heads), at = row * s->kv_heads + g;
        return i < s->qk_dim ? d->in_k[at * s->qk_dim + i] : d->in_v[at * s->v_dim + i - s->qk_dim];
    }
    if (i >= nope && i < s->qk_dim) {
        return d->in_v[row * s->rope_dim + i - nope];
    }
    const double *w =
        d->in_w + (h * (nope + s->v_dim) + (i < nope ? i : i - s->rope_dim)) * s->rank;
    double sum = 0;
    for (int64_t r = 0; r < s->rank; r++) {
        sum += w[r] * d->in_k[row * s->rank + r];
    }
    return sum;
}

static void reference_head(const struct decode *d, double *o, int64_t b, int64_t h, int64_t length)
{
    const struct decode_shape *s = &d->shape;
    const int64_t low = s->window > 0 && length > s->window ? length - s->window : 0;
    double score[256], most = -INFINITY, sum = 0;
    assert_true(length <= 256);
    for (int64_t j = low; j < length; j++) {
        score[j] = 0;
        for (int64_t i = 0; i < s->qk_dim; i++) {
            score[j] += (double)s->scale * d->in_q[b * s->q_stride + h * s->qk_dim + i] *
                        cached(d, h, b, j, i);
        }
        most = fmax(most, score[j]);
    }
    for (int64_t j = low; j < length; j++) {
        score[j] = exp(score[j] - most);
        sum += score[j];
    }
    for (int64_t i = 0; i < s->v_dim; i++) {
        double out = 0;
        for (int64_t j = low; j < length; j++) {
            out += score[j] / sum * cached(d, h, b, j, s->qk_dim + i);
        }
        o[b * s->o_stride + h * s->v_dim + i] = out;
    }
}

static void run_op(struct check *c, const struct decode *d, struct tensor o, int64_t first,
                   int64_t count)
{
    struct decode_shape shape = d->shape;
    const struct tensor q = tensor_rows(&d->q, first, count),
                        k = tensor_rows(&d->k, first * shape.capacity, count * shape.capacity),
                        v = tensor_rows(&d->v, first * shape.capacity, count * shape.capacity);
    const int32_t *lengths = (const int32_t *)d->lengths.data + first;
    shape.batch = count;
    if (shape.rank > 0) {
        c->ops->mla_decode(c->device, o.data, q.data, d->w.data, k.data, v.data, lengths, &shape);
    } else {
        c->ops->attention_decode(c->device, o.data, q.data, k.data, v.data, lengths, &shape);
    }
}

/* The score's error (its sums over qk or r and nope products) is a probability's relative error;
 * fast_exp's is 3e-7; then sums over the cached tokens and, in MLA, over r. */
static double decode_error(const struct layout *l)
{
    return 3e-7 + CHECK_U * (6 + 2 * sqrt((double)(l->qk + l->v)) + 3 * sqrt((double)l->rank) +
                             sqrt((double)l->capacity));
}

static void run_decode(struct check *c, const void *args)
{
    const struct layout *l = args;
    const struct decode d = make_case(c, l);
    double *expected = check_values(c, d.o);
    run_op(c, &d, d.o, 0, l->batch);
    for (int64_t b = 0; b < l->batch; b++) {
        for (int64_t h = 0; h < l->heads; h++) {
            reference_head(&d, expected, b, h, length_of(l, b));
        }
    }
    check_close(c, "o", d.o, expected, decode_error(l));
    for (int64_t b = 0; b < l->batch; b++) { /* alone, and with other tokens behind its length */
        const struct tensor alone = check_tensor(c, "alone", c->dtype, 1, d.shape.o_stride);
        const int64_t used = length_of(l, b), left = l->capacity - used;
        const struct tensor *const caches[] = {&d.k, &d.v};
        for (int i = 0; i < 2 && left > 0; i++) {
            const struct tensor rest = tensor_rows(caches[i], b * l->capacity + used, left);
            memset(rest.data, CHECK_POISON_BYTE, tensor_bytes(&rest));
        }
        run_op(c, &d, alone, b, 1);
        check_exact(c, "o", alone, tensor_rows(&d.o, b, 1), "depends on other sequences");
    }
}

static void test_decode(void **state)
{
    for (int i = 0; i < LAYOUTS; i++) {
        check_run(*state, run_decode, &layouts[i], CHECK_BF16);
    }
}

/* The last row of attention over a whole sequence, on the cache as k and v: twice the error. */
static void run_full(struct check *c, const void *args)
{
    const struct layout *l = args;
    const struct decode d = make_case(c, l);
    const int64_t b = l->batch - 1, t = length_of(l, b), row = b * l->capacity;
    const struct attention_shape shape = {.batch = 1,
                                          .sequence = t,
                                          .heads = l->heads,
                                          .kv_heads = l->kv_heads,
                                          .qk_dim = l->qk,
                                          .v_dim = l->v,
                                          .q_stride = d.shape.q_stride,
                                          .k_stride = l->kv_heads * l->qk,
                                          .v_stride = l->kv_heads * l->v,
                                          .o_stride = d.shape.o_stride,
                                          .k_head_stride = l->qk,
                                          .v_head_stride = l->v,
                                          .window = l->window,
                                          .scale = d.shape.scale,
                                          .dtype = c->dtype};
    const struct tensor q = check_random(c, "all q", c->dtype, t, d.shape.q_stride, 1),
                        o = check_tensor(c, "all o", c->dtype, t, d.shape.o_stride),
                        lse = check_tensor(c, "lse", DTYPE_F32, l->heads, t),
                        last = tensor_rows(&q, t - 1, 1), mine = tensor_rows(&d.q, b, 1);
    memcpy(last.data, mine.data, tensor_bytes(&mine));
    c->ops->attention_forward(c->device, o.data, lse.data, q.data, tensor_rows(&d.k, row, t).data,
                              NULL, tensor_rows(&d.v, row, t).data, &shape);
    run_op(c, &d, d.o, 0, l->batch);
    double *expected = check_values(c, tensor_rows(&o, t - 1, 1));
    check_close(c, "o", tensor_rows(&d.o, b, 1), expected,
                2 * decode_error(l) + (c->dtype == DTYPE_BF16 ? 0x1p-8 : 0));
}

static void test_full(void **state)
{
    for (int i = 0; i < LAYOUTS; i++) {
        if (layouts[i].kv_heads > 0) {
            check_run(*state, run_full, &layouts[i], CHECK_BF16);
        }
    }
}

static void run_scatter(struct check *c, const void *args)
{
    enum { ROWS = 9, WIDTH = 5, STRIDE = 7, PLACES = 12 };
    (void)args;
    const struct tensor x = check_random(c, "x", c->dtype, ROWS, STRIDE, 1),
                        y = check_tensor(c, "y", c->dtype, PLACES, WIDTH);
    const int32_t row[ROWS] = {3, -1, 0, 11, 7, -1, 8, 1, 10};
    double *from = check_values(c, x), *expected = check_values(c, y);
    check_name(c, "scatter_rows");
    for (int64_t i = 0; i < ROWS * WIDTH; i++) {
        const int64_t n = i / WIDTH, col = i % WIDTH;
        if (row[n] >= 0) {
            expected[row[n] * WIDTH + col] = from[n * STRIDE + col];
        }
    }
    c->ops->scatter_rows(c->device, y, x.data, STRIDE, row, ROWS);
    check_close(c, "y", y, expected, 0);
}

static void test_scatter(void **state)
{
    check_run(*state, run_scatter, NULL, CHECK_BF16);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_full),
        cmocka_unit_test(test_scatter),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
