/* What stands between router and experts: sorting slots, regrouping rows, capacity, counts, balance
 * losses. Integers are compared with ==. */
#include "ops_check.h"

static int32_t draw(uint64_t key, int64_t index, int64_t below)
{
    return (int32_t)(rng_uniform(key, (uint64_t)index) * (double)below);
}

/* --- sort --- */

struct sort {
    int64_t tokens, top_k, experts;
    int dropped; /* percent */
};
static const struct sort sorts[] = {{0, 2, 4, 0},     {1, 1, 1, 0},    {7, 2, 3, 30},
                                    {300, 6, 64, 10}, {40, 3, 5, 100}, {513, 8, 256, 0},
                                    {1000, 1, 2, 50}, {129, 2, 300, 5}};

static void run_sort(struct check *c, const void *args)
{
    const struct sort *s = args;
    const int64_t slots = s->tokens * s->top_k;
    check_name(c, "expert_sort N=%lld K=%lld E=%lld dropped=%d%%", (long long)s->tokens,
               (long long)s->top_k, (long long)s->experts, s->dropped);
    const struct tensor expert = check_tensor(c, "expert", DTYPE_I32, slots, 1),
                        token = check_tensor(c, "token", DTYPE_I32, slots, 1),
                        slot_row = check_tensor(c, "slot_row", DTYPE_I32, slots, 1),
                        offset = check_tensor(c, "offset", DTYPE_I64, s->experts + 1, 1);
    int32_t *of = expert.data;
    for (int64_t i = 0; i < slots; i++) {
        of[i] = draw(c->seed + 1, i, 100) < s->dropped ? -1 : draw(c->seed, i, s->experts);
    }
    c->ops->expert_sort(c->device, offset.data, token.data, slot_row.data, of, slots, s->top_k,
                        s->experts);
    const int32_t *row_of = slot_row.data, *token_of = token.data;
    const int64_t *begin = offset.data;
    int64_t row = 0;
    for (int64_t e = 0; e < s->experts; e++) {
        assert_int_equal(begin[e], row);
        for (int64_t slot = 0; slot < slots; slot++) {
            if (of[slot] == e) {
                assert_int_equal(row_of[slot], row);
                assert_int_equal(token_of[row], slot / s->top_k);
                row++;
            }
        }
    }
    assert_int_equal(begin[s->experts], row);
    for (; row < slots; row++) {
        assert_int_equal(token_of[row], -1);
    }
    for (int64_t slot = 0; slot < slots; slot++) {
        assert_int_equal(row_of[slot] < 0, of[slot] < 0);
    }
}

/* --- regroup --- */

static void run_regroup(struct check *c, const void *args)
{
    const int64_t *size = args, local = size[0], ranks = size[1], most = size[2];
    check_name(c, "expert_regroup local=%lld ranks=%lld", (long long)local, (long long)ranks);
    const struct tensor taken = check_tensor(c, "taken", DTYPE_I64, local, ranks),
                        offset = check_tensor(c, "offset", DTYPE_I64, local + 1, 1);
    int64_t *rows_of = taken.data, total = 0;
    for (int64_t i = 0; i < local * ranks; i++) {
        rows_of[i] = draw(c->seed, i, 3) == 0 ? 0 : draw(c->seed + 9, i, most);
        total += rows_of[i];
    }
    const struct tensor regroup = check_tensor(c, "regroup", DTYPE_I32, total, 1),
                        ungroup = check_tensor(c, "ungroup", DTYPE_I32, total, 1);
    const int32_t *to = regroup.data, *back = ungroup.data;
    const int64_t *begin = offset.data;
    c->ops->expert_regroup(c->device, regroup.data, ungroup.data, offset.data, rows_of, local,
                           ranks);
    int64_t place = 0, row = 0;
    for (int64_t from = 0; from < ranks; from++) { /* arrival order */
        for (int64_t e = 0; e < local; e++) {
            int64_t before = begin[e];
            for (int64_t r = 0; r < from; r++) {
                before += rows_of[e * ranks + r];
            }
            for (int64_t i = 0; i < rows_of[e * ranks + from]; i++, place++) {
                assert_int_equal(to[before + i], place);
                assert_int_equal(back[place], before + i);
            }
        }
    }
    for (int64_t e = 0; e < local; e++) {
        assert_int_equal(begin[e], row);
        for (int64_t from = 0; from < ranks; from++) {
            row += rows_of[e * ranks + from];
        }
    }
    assert_int_equal(begin[local], total);
}

/* --- a token once per destination --- */

struct unique {
    struct sort of;
    int64_t ranks;
};
static const struct unique uniques[] = {
    {{0, 2, 4, 0}, 2},   {{1, 1, 1, 0}, 1},      {{7, 2, 3, 30}, 3},    {{300, 6, 64, 10}, 8},
    {{50, 4, 8, 0}, 1},  {{40, 3, 6, 100}, 2},   {{513, 8, 256, 0}, 4}, {{100, 1, 8, 20}, 4},
    {{100, 8, 8, 0}, 2}, {{129, 3, 300, 5}, 300}};

static int64_t destination_of(int32_t expert, const struct unique *u)
{
    return expert < 0 ? -1 : expert / (u->of.experts / u->ranks);
}

/* Rows stand by (destination, token), no pair twice, and every slot's place is its token's row. */
static void check_unique(const struct unique *u, const int32_t *of, const int32_t *row_of,
                         const int64_t *begin, const int32_t *token, const int32_t *place)
{
    const int64_t top_k = u->of.top_k, slots = u->of.tokens * top_k;
    int64_t row = 0;
    for (int64_t to = 0; to < u->ranks; to++) {
        assert_int_equal(begin[to], row);
        for (int64_t n = 0; n < u->of.tokens; n++) {
            int64_t here = 0;
            for (int64_t slot = n * top_k; slot < (n + 1) * top_k; slot++) {
                if (destination_of(of[slot], u) == to) {
                    assert_int_equal(place[row_of[slot]], row - begin[to]);
                    here = 1;
                }
            }
            if (here == 1) {
                assert_int_equal(token[row], n);
            }
            row += here;
        }
    }
    assert_int_equal(begin[u->ranks], row);
    for (; row < slots; row++) {
        assert_int_equal(token[row], -1);
    }
}

static void run_unique(struct check *c, const void *args)
{
    const struct unique *u = args;
    const struct sort *s = &u->of;
    const int64_t slots = s->tokens * s->top_k;
    check_name(c, "expert_unique N=%lld K=%lld E=%lld ranks=%lld dropped=%d%%",
               (long long)s->tokens, (long long)s->top_k, (long long)s->experts,
               (long long)u->ranks, s->dropped);
    const struct tensor expert = check_tensor(c, "expert", DTYPE_I32, slots, 1),
                        sorted_token = check_tensor(c, "sorted token", DTYPE_I32, slots, 1),
                        slot_row = check_tensor(c, "slot_row", DTYPE_I32, slots, 1),
                        offset = check_tensor(c, "offset", DTYPE_I64, s->experts + 1, 1),
                        token = check_tensor(c, "token", DTYPE_I32, slots, 1),
                        place = check_tensor(c, "place", DTYPE_I32, slots, 1),
                        begin = check_tensor(c, "begin", DTYPE_I64, u->ranks + 1, 1);
    int32_t *of = expert.data, *to = place.data;
    for (int64_t i = 0; i < slots; i++) {
        of[i] = draw(c->seed + 1, i, 100) < s->dropped ? -1 : draw(c->seed, i, s->experts);
        to[i] = -7;
    }
    c->ops->expert_sort(c->device, offset.data, sorted_token.data, slot_row.data, of, slots,
                        s->top_k, s->experts);
    c->ops->expert_unique(
        c->device, begin.data, token.data, to, of, slot_row.data,
        (struct dispatch_shape){
            .slots = slots, .top_k = s->top_k, .experts = s->experts, .ranks = u->ranks});
    check_unique(u, of, slot_row.data, begin.data, token.data, to);
    for (int64_t row = ((const int64_t *)offset.data)[s->experts]; row < slots; row++) {
        assert_int_equal(to[row], -7);
    }
}

/* Of each row by destination: the row of the same token by pairs of destinations. */
static void run_relay(struct check *c, const void *args)
{
    const struct unique *u = args;
    const struct sort *s = &u->of;
    const int64_t slots = s->tokens * s->top_k, fine = u->ranks, coarse = fine / 2;
    struct dispatch_shape shape = {
        .slots = slots, .top_k = s->top_k, .experts = s->experts, .ranks = fine};
    check_name(c, "expert_relay N=%lld K=%lld E=%lld ranks=%lld dropped=%d%%", (long long)s->tokens,
               (long long)s->top_k, (long long)s->experts, (long long)fine, s->dropped);
    int32_t *of = check_tensor(c, "expert", DTYPE_I32, slots, 1).data,
            *sorted = check_tensor(c, "sorted token", DTYPE_I32, slots, 1).data,
            *slot_row = check_tensor(c, "slot_row", DTYPE_I32, slots, 1).data,
            *token[2] = {check_tensor(c, "token", DTYPE_I32, slots, 1).data,
                         check_tensor(c, "token of pairs", DTYPE_I32, slots, 1).data},
            *place = check_tensor(c, "place", DTYPE_I32, slots, 1).data,
            *relay = check_tensor(c, "relay", DTYPE_I32, slots, 1).data;
    int64_t *offset = check_tensor(c, "offset", DTYPE_I64, s->experts + 1, 1).data,
            *begin[2] = {check_tensor(c, "begin", DTYPE_I64, fine + 1, 1).data,
                         check_tensor(c, "begin of pairs", DTYPE_I64, coarse + 1, 1).data};
    for (int64_t i = 0; i < slots; i++) {
        of[i] = draw(c->seed + 1, i, 100) < s->dropped ? -1 : draw(c->seed, i, s->experts);
        relay[i] = -7;
    }
    c->ops->expert_sort(c->device, offset, sorted, slot_row, of, slots, s->top_k, s->experts);
    c->ops->expert_unique(c->device, begin[0], token[0], place, of, slot_row, shape);
    shape.ranks = coarse;
    c->ops->expert_unique(c->device, begin[1], token[1], place, of, slot_row, shape);
    shape.ranks = fine;
    c->ops->expert_relay(c->device, relay, begin[0], token[0], place, of, slot_row, shape);
    for (int64_t to = 0; to < fine; to++) {
        for (int64_t row = begin[0][to]; row < begin[0][to + 1]; row++) {
            const int64_t there = begin[1][to / 2] + relay[row];
            assert_true(relay[row] >= 0 && there < begin[1][to / 2 + 1]);
            assert_int_equal(token[1][there], token[0][row]);
        }
    }
    for (int64_t row = begin[0][fine]; row < slots; row++) {
        assert_int_equal(relay[row], -7);
    }
}

/* By hand: three sources, the second sends nothing; and with their tokens in another order. */
static void run_fan_out(struct check *c, const void *args)
{
    (void)args;
    static const int32_t ungroup[] = {0, 2, 5, 1, 3, 4}, place[] = {1, 0, 1, 0, 1, 2};
    static const int64_t arrived[] = {0, 3, 3, 6}, unique[] = {0, 2, 2, 5};
    static const int32_t expected[] = {1, 2, 0, 3, 4, 1, -7};
    int32_t fan[] = {-7, -7, -7, -7, -7, -7, -7};
    check_name(c, "expert_fan_out");
    c->ops->expert_fan_out(c->device, fan, ungroup, place, arrived, unique, 3, 6);
    assert_memory_equal(fan, expected, sizeof fan);
    static const int64_t turned[] = {3, 3, 0, 5};
    static const int32_t also[] = {4, 0, 3, 1, 2, 4, -7};
    c->ops->expert_fan_out(c->device, fan, ungroup, place, arrived, turned, 3, 6);
    assert_memory_equal(fan, also, sizeof fan);
}

/* --- padded messages --- */

struct pad {
    struct sort of;
    int64_t ranks, spare; /* rows more than a pair can need */
};
static const struct pad pads[] = {{{1, 1, 1, 0}, 1, 0},    {{7, 2, 6, 30}, 3, 0},
                                  {{60, 6, 64, 10}, 8, 2}, {{50, 4, 8, 0}, 1, 0},
                                  {{40, 3, 6, 100}, 2, 1}, {{65, 8, 256, 0}, 4, 0},
                                  {{100, 1, 8, 20}, 4, 5}, {{100, 8, 8, 0}, 2, 0}};

/* All ranks' messages, from all ranks' slots: expert[ranks][slots]. */
struct padded {
    const struct pad *pad;
    struct padded_shape shape;
    int64_t slots, local;
    int32_t *expert, *token, *row, *back;     /* of all ranks */
    int32_t *sent, *message;                  /* [ranks, ranks, local+P] of all; [ranks, local+P] */
    int32_t *slot_row, *sorted_token, *place; /* of one rank */
    int32_t *unique_token;
    int64_t *offset, *begin;
};

static void *ints(struct check *c, const char *name, int64_t count)
{
    int32_t *data = check_tensor(c, name, DTYPE_I32, count, 1).data;
    for (int64_t i = 0; i < count; i++) {
        data[i] = -7;
    }
    return data;
}

static void pad_init(struct check *c, struct padded *p, const struct pad *pad)
{
    const struct sort *s = &pad->of;
    const int64_t local = s->experts / pad->ranks, slots = s->tokens * s->top_k,
                  most = s->tokens * (s->top_k < local ? s->top_k : local) + pad->spare;
    const int64_t ranks = pad->ranks, line = local + most;
    *p = (struct padded){.pad = pad,
                         .shape = {.slots = slots,
                                   .experts = s->experts,
                                   .ranks = ranks,
                                   .pair_slots = most,
                                   .pair_tokens = s->tokens + pad->spare},
                         .slots = slots,
                         .local = local,
                         .expert = ints(c, "expert", ranks * slots),
                         .token = ints(c, "token", ranks * ranks * (s->tokens + pad->spare)),
                         .row = ints(c, "row", ranks * ranks * most),
                         .back = ints(c, "back", ranks * slots),
                         .sent = ints(c, "sent", ranks * ranks * line),
                         .message = ints(c, "message", ranks * line),
                         .slot_row = ints(c, "slot_row", slots),
                         .sorted_token = ints(c, "sorted token", slots),
                         .place = ints(c, "place", slots),
                         .unique_token = ints(c, "unique token", slots),
                         .offset = check_tensor(c, "offset", DTYPE_I64, s->experts + 1, 1).data,
                         .begin = check_tensor(c, "begin", DTYPE_I64, ranks + 1, 1).data};
    /* Experts of a token are different ones: what bounds the rows of a pair. */
    for (int64_t i = 0; i < ranks * slots; i++) {
        const int64_t first = draw(c->seed, i / s->top_k, s->experts);
        p->expert[i] = draw(c->seed + 1, i, 100) < s->dropped
                           ? -1
                           : (int32_t)((first + i % s->top_k) % s->experts);
    }
}

static void pad_rank(struct check *c, struct padded *p, int64_t rank)
{
    const struct sort *s = &p->pad->of;
    const int64_t ranks = p->shape.ranks;
    const int32_t *expert = p->expert + rank * p->slots;
    c->ops->expert_sort(c->device, p->offset, p->sorted_token, p->slot_row, expert, p->slots,
                        s->top_k, s->experts);
    c->ops->expert_unique(
        c->device, p->begin, p->unique_token, p->place, expert, p->slot_row,
        (struct dispatch_shape){
            .slots = p->slots, .top_k = s->top_k, .experts = s->experts, .ranks = ranks});
    c->ops->expert_pad(c->device, p->sent + rank * ranks * (p->local + p->shape.pair_slots),
                       p->token + rank * ranks * p->shape.pair_tokens,
                       p->row + rank * ranks * p->shape.pair_slots, p->back + rank * p->slots,
                       p->offset, p->begin, p->unique_token, p->place, &p->shape);
}

/* What rank `me` receives: rows in (expert, source, slot) order, each found by both routes, and the
 * way back. */
static void check_pad(struct check *c, struct padded *p, int64_t me)
{
    const int64_t ranks = p->shape.ranks, most = p->shape.pair_slots, line = p->local + most,
                  top_k = p->pad->of.top_k;
    int64_t *offset = check_tensor(c, "offset there", DTYPE_I64, p->local + 1, 1).data;
    int32_t *regroup = ints(c, "regroup", ranks * most),
            *ungroup = ints(c, "ungroup", ranks * most), *fan = ints(c, "fan", ranks * most);
    int64_t row = 0, real = 0;
    for (int64_t from = 0; from < ranks; from++) {
        memcpy(p->message + from * line, p->sent + (from * ranks + me) * line,
               (size_t)line * sizeof *p->message);
    }
    c->ops->expert_unpad(c->device, regroup, ungroup, fan, offset, p->message, &p->shape);
    for (int64_t e = 0; e < p->local; e++) {
        assert_int_equal(offset[e], row);
        for (int64_t from = 0; from < ranks; from++) {
            for (int64_t slot = 0; slot < p->slots; slot++) {
                if (p->expert[from * p->slots + slot] != me * p->local + e) {
                    continue;
                }
                const int64_t at = regroup[row] % most, tokens = p->shape.pair_tokens,
                              sorted = p->row[(from * ranks + me) * most + at];
                assert_int_equal(regroup[row] / most, from);
                assert_int_equal(ungroup[regroup[row]], row);
                assert_int_equal(fan[row] / tokens, from);
                assert_int_equal(p->token[(from * ranks + me) * tokens + fan[row] % tokens],
                                 slot / top_k);
                assert_int_equal(p->back[from * p->slots + sorted], me * most + at);
                row++;
            }
        }
    }
    assert_int_equal(offset[p->local], row);
    for (int64_t i = 0; i < ranks * most; i++) {
        real += ungroup[i] >= 0;
        assert_true(i < row || (regroup[i] == -1 && fan[i] == -1));
    }
    assert_int_equal(real, row);
}

static void run_pad(struct check *c, const void *args)
{
    const struct pad *pad = args;
    struct padded p;
    check_name(c, "expert_pad N=%lld K=%lld E=%lld ranks=%lld", (long long)pad->of.tokens,
               (long long)pad->of.top_k, (long long)pad->of.experts, (long long)pad->ranks);
    pad_init(c, &p, pad);
    for (int64_t rank = 0; rank < pad->ranks; rank++) {
        int64_t kept = 0;
        pad_rank(c, &p, rank);
        for (int64_t i = 0; i < p.slots; i++) {
            kept += p.expert[rank * p.slots + i] >= 0;
        }
        for (int64_t i = 0; i < p.slots; i++) {
            assert_int_equal(p.back[rank * p.slots + i] >= 0, i < kept);
        }
    }
    for (int64_t rank = 0; rank < pad->ranks; rank++) {
        check_pad(c, &p, rank);
    }
}

static void test_pad(void **state)
{
    for (size_t i = 0; i < sizeof pads / sizeof pads[0]; i++) {
        check_run(*state, run_pad, &pads[i], 0);
    }
}

/* --- capacity --- */

static void expect_drop(struct check *c, const int32_t *expert, const float *weight, int64_t slots,
                        int64_t groups, int64_t capacity, const int32_t *left)
{
    int32_t kept[8], again[8];
    c->ops->expert_drop(c->device, kept, expert, weight, slots, 4, groups, capacity);
    assert_memory_equal(kept, left, (size_t)slots * sizeof *left);
    c->ops->expert_drop(c->device, again, kept, weight, slots, 4, groups, capacity);
    assert_memory_equal(again, kept, (size_t)slots * sizeof *left);
}

/* By hand: lowest weights first, ties: the later slot. */
static void run_known_drops(struct check *c, const void *args)
{
    (void)args;
    static const int32_t single[] = {0, 1, 0, 1, 0, 1, 0, 2},
                         none[] = {-1, -1, -1, -1, -1, -1, -1, -1};
    static const float weight[] = {0.5F, 0.5F, 0.7F, 0.3F, 0.5F, 0.5F, 0.1F, 0.9F};
    /* expert 0: keeps 0.7 and the earlier 0.5; expert 1: the two 0.5 */
    static const int32_t two_each[] = {0, 1, 0, -1, -1, 1, -1, 2};
    static const int32_t pairs[] = {0, 1, 0, 2, 1, 3, 0, 1};
    static const float paired[] = {0.5F, 0.25F, 0.75F, 0.5F, 0.5F, 0.125F, 0.25F, 0.25F};
    /* experts 0, 1 hold six slots; the weights 0.25 of three of them tie */
    static const int32_t five[] = {0, 1, 0, 2, 1, 3, 0, -1}, two[] = {0, -1, 0, 2, -1, 3, -1, -1},
                         all[] = {0, -1, 0, -1, -1, -1, -1, -1},
                         each[] = {-1, -1, 0, 2, 1, 3, -1, -1};
    check_name(c, "expert_drop by hand");
    expect_drop(c, single, weight, 8, 4, 2, two_each);
    expect_drop(c, single, weight, 8, 4, 100, single);
    expect_drop(c, single, weight, 8, 4, 0, none);
    expect_drop(c, single, weight, 0, 4, 1, none);
    expect_drop(c, pairs, paired, 8, 2, 6, pairs);
    expect_drop(c, pairs, paired, 8, 2, 5, five);
    expect_drop(c, pairs, paired, 8, 2, 2, two);
    expect_drop(c, pairs, paired, 8, 1, 2, all);
    expect_drop(c, pairs, paired, 8, 4, 1, each);
}

/* A slot stays exactly when fewer than `capacity` slots of its group come before it. */
static void run_drop(struct check *c, const void *args)
{
    enum { SLOTS = 120, EXPERTS = 6 };
    const int64_t groups = *(const int64_t *)args, size = EXPERTS / groups,
                  capacity = draw(c->seed + 50, groups, SLOTS / groups + 5);
    int32_t before[SLOTS], after[SLOTS];
    float weight[SLOTS];
    check_name(c, "expert_drop groups=%lld capacity=%lld", (long long)groups, (long long)capacity);
    for (int64_t i = 0; i < SLOTS; i++) {
        before[i] = draw(c->seed, i, EXPERTS + 1) - 1;    /* some dropped already */
        weight[i] = (float)draw(c->seed + 100, i, 8) / 8; /* many ties */
        weight[i] = weight[i] == 0 ? NAN : weight[i];     /* below all others */
    }
    c->ops->expert_drop(c->device, after, before, weight, SLOTS, EXPERTS, groups, capacity);
    for (int64_t i = 0; i < SLOTS; i++) {
        const double mine = isnan(weight[i]) ? -1 : (double)weight[i];
        int64_t ahead = 0;
        for (int64_t j = 0; j < SLOTS; j++) {
            const double other = isnan(weight[j]) ? -1 : (double)weight[j];
            ahead += before[j] >= 0 && before[j] / size == before[i] / size &&
                     (other > mine || (other == mine && j < i));
        }
        assert_int_equal(after[i], before[i] >= 0 && ahead < capacity ? before[i] : -1);
    }
}

static void test_sort(void **state)
{
    for (size_t i = 0; i < sizeof sorts / sizeof sorts[0]; i++) {
        check_run(*state, run_sort, &sorts[i], 0);
    }
}

static void test_regroup(void **state)
{
    static const int64_t sizes[][3] = {{1, 1, 5}, {3, 2, 7}, {64, 4, 9}, {2, 8, 40}, {5, 3, 1}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        check_run(*state, run_regroup, sizes[i], 0);
    }
}

static void test_drop(void **state)
{
    static const int64_t groups[] = {1, 2, 3, 6};
    check_run(*state, run_known_drops, NULL, 0);
    for (size_t i = 0; i < sizeof groups / sizeof groups[0]; i++) {
        check_run(*state, run_drop, &groups[i], 0);
    }
}

/* Slot i goes to expert i mod E; counts are of these; router_count adds them over rows. */
static void run_even(struct check *c, const void *args)
{
    enum { ROWS = 3, LENGTH = 5, K = 2, EXPERTS = 4, SLOTS = ROWS * LENGTH * K };
    (void)args;
    int32_t expert[SLOTS];
    float weight[SLOTS];
    int64_t routed[ROWS * EXPERTS], expected[ROWS * EXPERTS] = {0}, sum[EXPERTS] = {1, 1, 1, 1};
    const struct router_shape shape = {
        .tokens = ROWS * LENGTH, .experts = EXPERTS, .top_k = K, .row_tokens = LENGTH};
    check_name(c, "router_even");
    c->ops->router_even(c->device, expert, weight, (struct router_counts){.routed = routed}, shape);
    for (int i = 0; i < SLOTS; i++) {
        assert_int_equal(expert[i], i % EXPERTS);
        assert_true(weight[i] == 0.5F);
        expected[i / (LENGTH * K) * EXPERTS + i % EXPERTS]++;
    }
    assert_memory_equal(routed, expected, sizeof routed);
    c->ops->router_count(c->device, sum, routed, ROWS, EXPERTS);
    for (int e = 0; e < EXPERTS; e++) {
        assert_int_equal(sum[e],
                         1 + expected[e] + expected[EXPERTS + e] + expected[2 * EXPERTS + e]);
    }
}

static void test_even(void **state)
{
    check_run(*state, run_even, NULL, 0);
}

/* Slices of an expert lie on neighbouring ranks, `local` experts a rank; gradients are added up. */
static void run_slices(struct check *c, const void *args)
{
    enum { SLOTS = 37, EXPERTS = 12, MOST = 4 };
    const int64_t slices = *(const int64_t *)args;
    int32_t expert[SLOTS], spread[SLOTS * MOST];
    float weight[SLOTS], parts[SLOTS * MOST], folded[SLOTS];
    for (int64_t i = 0; i < SLOTS; i++) {
        expert[i] = draw(c->seed, i, EXPERTS + 1) - 1;
        weight[i] = (float)draw(c->seed + 1, i, 64) / 64;
    }
    for (int64_t local = 1; local <= EXPERTS; local++) {
        if (EXPERTS % local != 0) {
            continue;
        }
        check_name(c, "expert_spread slices=%lld local=%lld", (long long)slices, (long long)local);
        c->ops->expert_spread(c->device, spread, parts, expert, weight, SLOTS, slices, local);
        for (int64_t i = 0; i < SLOTS * slices; i++) {
            const int64_t e = expert[i / slices], rank = spread[i] / local;
            assert_true(parts[i] == weight[i / slices]);
            assert_int_equal(spread[i] < 0, e < 0);
            if (e >= 0) { /* rank = ep rank * slices + slice */
                assert_int_equal(rank % slices, i % slices);
                assert_int_equal(rank / slices, e / local);
                assert_int_equal(spread[i] % local, e % local);
            }
        }
    }
    c->ops->expert_fold(c->device, folded, parts, SLOTS, slices);
    for (int64_t i = 0; i < SLOTS; i++) {
        assert_true(folded[i] == (float)slices * weight[i]); /* of 64ths: exact */
    }
}

static void test_slices(void **state)
{
    static const int64_t slices[] = {1, 2, 3, 4};
    for (size_t i = 0; i < sizeof slices / sizeof slices[0]; i++) {
        check_run(*state, run_slices, &slices[i], 0);
    }
}

static void test_unique(void **state)
{
    for (size_t i = 0; i < sizeof uniques / sizeof uniques[0]; i++) {
        check_run(*state, run_unique, &uniques[i], 0);
        if (uniques[i].ranks % 2 == 0) {
            check_run(*state, run_relay, &uniques[i], 0);
        }
    }
    check_run(*state, run_fan_out, NULL, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sort),  cmocka_unit_test(test_regroup), cmocka_unit_test(test_unique),
        cmocka_unit_test(test_pad),   cmocka_unit_test(test_drop),    cmocka_unit_test(test_even),
        cmocka_unit_test(test_slices)};
    return cmocka_run_group_tests(tests, check_open, check_close_devices);
}
