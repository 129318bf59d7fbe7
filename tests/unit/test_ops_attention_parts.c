/* Attention in parts: pieces of queries over pieces of keys, whose results are merged (struct
 * attention_shape).
 */
#include "attention_check.h"

/* What parts add up to, f32: rows of all heads without gaps; gradients of keys with their strides.
 */
struct part_sums {
    struct tensor o, dq, dk, dv, dk_rope;
    struct tensor lse; /* [H, piece] of one piece of queries */
};

static struct tensor zeros(struct check *c, const char *name, int64_t rows, int64_t cols)
{
    const struct tensor out = check_tensor(c, name, DTYPE_F32, rows, cols);
    memset(out.data, 0, tensor_bytes(&out));
    return out;
}

static struct part_sums new_sums(struct check *c, const struct attention *a, int64_t length)
{
    const struct attention_shape *s = &a->shape;
    const int64_t rows = a->q.dim[0];
    return (struct part_sums){
        .o = check_tensor(c, "o of parts", DTYPE_F32, rows, s->heads * s->v_dim),
        .dq = zeros(c, "dq of parts", rows, s->heads * s->qk_dim),
        .dk = zeros(c, "dk of parts", rows, s->k_stride),
        .dv = zeros(c, "dv of parts", rows, s->v_stride),
        .dk_rope = zeros(c, "dk_rope of parts", rows, s->k_rope_stride),
        .lse = check_tensor(c, "lse of a part", DTYPE_F32, s->heads, length)};
}

/* Pieces of sample b: queries [at, at + count), keys [from, end). */
struct pieces {
    int64_t b, at, count, from, end;
};

static struct attention_shape part_shape(const struct attention *a, const struct pieces *p)
{
    struct attention_shape shape = a->shape;
    shape.batch = 1;
    shape.sequence = p->count;
    shape.keys = p->end - p->from;
    shape.ahead = p->at - p->from;
    shape.before = p->from;
    shape.first = shape.first != NULL ? shape.first + p->b * a->shape.sequence + p->at : NULL;
    return shape;
}

static void forward_part(struct check *c, const struct attention *a, const struct part_sums *sums,
                         const struct pieces *p, bool merges)
{
    const int64_t at = p->b * a->shape.sequence, row = at + p->at, key = at + p->from;
    struct attention_shape shape = part_shape(a, p);
    shape.merges = merges;
    c->ops->attention_forward(c->device, row_at(sums->o, row), sums->lse.data, row_at(a->q, row),
                              row_at(a->k, key), row_at(a->k_rope, key), row_at(a->v, key), &shape);
}

static void backward_part(struct check *c, const struct attention *a, const struct part_sums *sums,
                          const struct pieces *p)
{
    const int64_t at = p->b * a->shape.sequence, row = at + p->at, key = at + p->from;
    const struct attention_shape shape = part_shape(a, p);
    c->ops->attention_backward(
        c->device, row_at(sums->dq, row), row_at(sums->dk, key), row_at(sums->dk_rope, key),
        row_at(sums->dv, key), row_at(a->d_o, row), row_at(a->o, row), sums->lse.data,
        row_at(a->q, row), row_at(a->k, key), row_at(a->k_rope, key), row_at(a->v, key), &shape);
}

/* How queries and keys are cut: pieces of so many, keys backwards. */
struct cut {
    int64_t queries, keys;
    bool reversed;
};

/* All keys of a piece of queries in turn, some of which it does not see, both ways; returns how
 * many pieces these are. */
static int64_t run_piece(struct check *c, const struct attention *a, const struct part_sums *sums,
                         int64_t b, int64_t at, const struct cut *cut)
{
    const int64_t all = a->shape.sequence, end = at + cut->queries < all ? at + cut->queries : all,
                  pieces = (end + cut->keys - 1) / cut->keys;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < pieces; i++) {
            const int64_t from = (cut->reversed ? pieces - 1 - i : i) * cut->keys;
            const struct pieces p = {b, at, end - at, from,
                                     from + cut->keys < all ? from + cut->keys : all};
            if (pass == 0) {
                forward_part(c, a, sums, &p, i > 0);
            } else {
                backward_part(c, a, sums, &p);
            }
        }
    }
    return pieces;
}

/* Rows of `cols`, of those that are further apart. */
static double *without_gaps(struct check *c, const double *from, int64_t rows, int64_t stride,
                            int64_t cols)
{
    double *out = check_doubles(c, rows * cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        out[i] = from[i / cols * stride + i % cols];
    }
    return out;
}

/* Outputs and gradients against those of the whole. A merge takes two weights, each an exp and a
 * quotient. */
static void check_parts(struct check *c, const struct layout *l, const struct cut *cut)
{
    static const char *const names[4] = {"dq of parts", "dk of parts", "dv of parts",
                                         "dk_rope of parts"};
    struct attention a = make_case(c, l);
    const struct attention_shape *s = &a.shape;
    const struct part_sums sums = new_sums(c, &a, cut->queries);
    const struct tensor like[4] = {a.dq, sums.dk, sums.dv, sums.dk_rope},
                        gradient[4] = {sums.dq, sums.dk, sums.dv, sums.dk_rope};
    const int64_t rows = a.q.dim[0], o_row = s->heads * s->v_dim, q_row = s->heads * s->qk_dim;
    int64_t merged = 0;
    c->ops->attention_forward(c->device, a.o.data, a.lse.data, a.q.data, a.k.data, a.k_rope.data,
                              a.v.data, s);
    for (int64_t b = 0; b < l->batch; b++) {
        for (int64_t at = 0; at < l->sequence; at += cut->queries) {
            const int64_t pieces = run_piece(c, &a, &sums, b, at, cut);
            merged = pieces > merged ? pieces : merged;
        }
    }
    const bool rounds = c->dtype == DTYPE_BF16; /* weights and gradients of scores, as factors */
    const double error =
        attention_error(l) + (double)merged * (2 * 3e-7 + 3 * CHECK_U) + (rounds ? 0x1p-8 : 0);
    const struct result want = new_result(c, a.o);
    struct result out[4];
    reference_forward(&a, want, check_doubles(c, tensor_count(&a.lse)));
    c->mass = rounds ? without_gaps(c, want.mass, rows, s->o_stride, o_row) : NULL;
    check_close(c, "o of parts", sums.o, without_gaps(c, want.sum, rows, s->o_stride, o_row),
                error);
    for (int i = 0; i < 4; i++) {
        out[i] = new_result(c, like[i]);
        for (int64_t j = 0; i > 0 && j < tensor_count(&like[i]); j++) {
            out[i].sum[j] = 0; /* as they were before */
        }
    }
    reference_backward(&a, check_values(c, a.o), check_values(c, a.lse), out);
    out[0].sum = without_gaps(c, out[0].sum, rows, s->q_stride, q_row);
    out[0].mass = without_gaps(c, out[0].mass, rows, s->q_stride, q_row);
    c->floor = l->sequence == 1 || l->window == 1 ? 1 : 0;
    for (int i = 0; i < 4; i++) {
        c->mass = rounds ? out[i].mass : NULL;
        check_close(c, names[i], gradient[i], out[i].sum, error);
    }
    c->mass = NULL;
}

/* Tiles that begin anywhere, and with the parts; keys in pieces of their own, the last first, too.
 */
static void run_parts(struct check *c, const void *args)
{
    static const struct cut cuts[] = {
        {50, 50, false}, {64, 64, true}, {33, 66, false}, {40, 80, true}};
    const struct layout *l = args;
    check_parts(c, l, &cuts[(l - layouts) % 4]);
}

static void test_parts(void **state)
{
    for (int i = 0; i < LAYOUTS; i++) {
        check_run(*state, run_parts, &layouts[i], CHECK_BF16 | CHECK_VECTORS);
    }
}

/* A layout of numbers with which every query takes one key: 128 and more above all other scores,
 * so that their weights are 0 and every result is an integer. */
enum { CODE = 8, SHARP = 64 };

static double code(int64_t key, int64_t i)
{
    return (key >> i) & 1 ? 1 : -1;
}

static int64_t chosen(const struct attention_shape *s, int64_t n)
{
    const struct query at =
        find_query(s, n % s->sequence + n / s->sequence * s->heads * s->sequence);
    return at.low + (at.t * 7) % (at.t - at.low + 1);
}

static void fill_choices(struct attention *a)
{
    const struct attention_shape *s = &a->shape;
    a->shape.scale = 1;
    for (int64_t n = 0; n < a->q.dim[0]; n++) {
        for (int64_t i = 0; i < s->heads * CODE; i++) {
            check_set(&a->q, n * s->q_stride + i, SHARP * code(chosen(s, n), i % CODE));
            check_set(&a->k, n * s->k_stride + i, code(n % s->sequence, i % CODE));
        }
        for (int64_t i = 0; i < s->heads * s->v_dim; i++) {
            check_set(&a->v, n * s->v_stride + i, (double)((n * 5 + i * 3) % 17 - 8));
            check_set(&a->d_o, n * s->o_stride + i, (double)((n * 7 + i) % 9 - 4));
        }
    }
}

/* All parts are exact: o and lse of the chosen keys, dv the sums over who chose, dq and dk 0. */
static void run_exact(struct check *c, const void *args)
{
    static const struct layout exact = {2, 130, 2, 2, CODE, 5, 0, 0, 0, true, 1};
    const struct cut *cut = args;
    struct attention a = make_case(c, &exact);
    fill_choices(&a);
    const struct attention_shape *s = &a.shape;
    const struct part_sums sums = new_sums(c, &a, cut->queries);
    const struct tensor none[2] = {sums.dq, sums.dk};
    const int64_t all = s->sequence, values = s->heads * s->v_dim;
    struct tensor o = zeros(c, "chosen values", a.q.dim[0], values),
                  dv = zeros(c, "gradients of chosen values", a.v.dim[0], s->v_stride);
    c->ops->attention_forward(c->device, a.o.data, a.lse.data, a.q.data, a.k.data, NULL, a.v.data,
                              s);
    for (int64_t n = 0; n < a.q.dim[0]; n++) {
        const int64_t key = n / all * all + chosen(s, n);
        for (int64_t i = 0; i < values; i++) {
            check_set(&o, n * values + i, check_get(&a.v, key * values + i));
            check_set(&dv, key * values + i,
                      check_get(&dv, key * values + i) + check_get(&a.d_o, n * values + i));
        }
    }
    for (int64_t b = 0; b < exact.batch; b++) {
        for (int64_t at = 0; at < all; at += cut->queries) {
            (void)run_piece(c, &a, &sums, b, at, cut);
            for (int64_t i = 0; i < s->heads * (at + cut->queries < all ? cut->queries : all - at);
                 i++) {
                assert_true(((const float *)sums.lse.data)[i] == (float)(CODE * SHARP));
            }
        }
    }
    check_exact(c, "o", sums.o, o, "not the chosen key's");
    check_exact(c, "dv", sums.dv, dv, "not the sum over who chose");
    for (int t = 0; t < 2; t++) {
        for (int64_t i = 0; i < tensor_count(&none[t]); i++) {
            assert_true(check_get(&none[t], i) == 0);
        }
    }
}

static void test_exact_parts(void **state)
{
    static const struct cut cuts[] = {{33, 33, false}, {32, 64, true}, {130, 130, false}};
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        check_run(*state, run_exact, &cuts[i], CHECK_BF16 | CHECK_VECTORS);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_exact_parts),
    };
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
