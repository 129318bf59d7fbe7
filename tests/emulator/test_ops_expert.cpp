/* What stands between router and experts against the CPU device: places bit for bit, losses. And
 * fill. */
#include "ops_case.h"

#include <math.h>

/* ---- sort ---- */

struct sort_case {
    int64_t tokens, top_k, experts;
    int dropped; /* percent */
};
/* Around a chunk of 256 slots and the 512 experts of a scan; more chunks than the least. */
static const struct sort_case sorts[] = {{0, 2, 4, 0},     {1, 1, 1, 0},     {7, 2, 3, 30},
                                         {64, 4, 64, 10},  {40, 3, 5, 100},  {513, 1, 256, 0},
                                         {129, 2, 600, 5}, {17000, 2, 3, 20}};

static bool sort(const struct sort_case &k)
{
    const int64_t slots = k.tokens * k.top_k;
    ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "expert_sort N=%d K=%d E=%d dropped=%d%%",
               (int)k.tokens, (int)k.top_k, (int)k.experts, k.dropped);
    const uint64_t key = rng_key(11, "expert");
    operand &expert = c.fill("expert", DTYPE_I32, slots, 1, [=](int64_t i) {
        const bool drop = rng_uniform(key + 1, (uint64_t)i) * 100 < k.dropped;
        return drop ? -1 : floor(rng_uniform(key, (uint64_t)i) * (double)k.experts);
    });
    operand &offset = c.poison("offset", DTYPE_I64, k.experts + 1, 1);
    operand &token = c.poison("token", DTYPE_I32, slots, 1);
    operand &slot_row = c.poison("slot_row", DTYPE_I32, slots, 1);
    scratch work(cuda_expert_sort_scratch(slots, k.experts));
    c.upload();
    c.ops->expert_sort(c.device, offset.on_cpu<int64_t>(), token.on_cpu<int32_t>(),
                       slot_row.on_cpu<int32_t>(), expert.on_cpu<int32_t>(), slots, k.top_k,
                       k.experts);
    cuda_expert_sort(nullptr, offset.on_cuda<int64_t>(), token.on_cuda<int32_t>(),
                     slot_row.on_cuda<int32_t>(), expert.on_cuda<int32_t>(), slots, k.top_k,
                     k.experts, work.data);
    c.download();
    c.exact(offset);
    c.exact(token);
    c.exact(slot_row);
    return c.finish();
}

/* ---- regroup ---- */

static bool regroup(int64_t local, int64_t ranks, int most)
{
    ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "expert_regroup local=%d ranks=%d", (int)local,
               (int)ranks);
    const uint64_t key = rng_key(12, "taken");
    operand &taken = c.poison("taken", DTYPE_I64, local, ranks);
    int64_t total = 0;
    for (int64_t i = 0; i < local * ranks; i++) {
        const double u = rng_uniform(key, (uint64_t)i);
        taken.on_cpu<int64_t>()[i] = u < 0.3 ? 0 : (int64_t)(u * most);
        total += taken.on_cpu<int64_t>()[i];
    }
    operand &to = c.poison("regroup", DTYPE_I32, total + 3, 1); /* past the last: untouched */
    operand &back = c.poison("ungroup", DTYPE_I32, total + 3, 1);
    operand &offset = c.poison("offset", DTYPE_I64, local + 1, 1);
    scratch work(cuda_expert_regroup_scratch(local, ranks));
    c.upload();
    c.ops->expert_regroup(c.device, to.on_cpu<int32_t>(), back.on_cpu<int32_t>(),
                          offset.on_cpu<int64_t>(), taken.on_cpu<int64_t>(), local, ranks);
    cuda_expert_regroup(nullptr, to.on_cuda<int32_t>(), back.on_cuda<int32_t>(),
                        offset.on_cuda<int64_t>(), taken.on_cuda<int64_t>(), local, ranks,
                        work.data);
    c.download();
    c.exact(to);
    c.exact(back);
    c.exact(offset);
    return c.finish();
}

/* ---- a token once per destination ---- */

static bool unique(const struct sort_case &k, int64_t ranks)
{
    const int64_t slots = k.tokens * k.top_k;
    const struct dispatch_shape shape = {slots, k.top_k, k.experts, ranks};
    ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "expert_unique N=%d K=%d E=%d ranks=%d",
               (int)k.tokens, (int)k.top_k, (int)k.experts, (int)ranks);
    const uint64_t key = rng_key(15, "expert");
    operand &expert = c.fill("expert", DTYPE_I32, slots, 1, [=](int64_t i) {
        const bool drop = rng_uniform(key + 1, (uint64_t)i) * 100 < k.dropped;
        return drop ? -1 : floor(rng_uniform(key, (uint64_t)i) * (double)k.experts);
    });
    operand &sorted = c.poison("offset", DTYPE_I64, k.experts + 1, 1);
    operand &sorted_token = c.poison("sorted token", DTYPE_I32, slots, 1);
    operand &slot_row = c.poison("slot_row", DTYPE_I32, slots, 1);
    operand &begin = c.poison("begin", DTYPE_I64, ranks + 1, 1);
    operand &token = c.poison("token", DTYPE_I32, slots, 1);
    operand &place = c.poison("place", DTYPE_I32, slots + 3, 1); /* past the last: untouched */
    scratch work(cuda_expert_sort_scratch(slots, k.experts));
    scratch more(cuda_expert_unique_scratch(shape));
    c.upload();
    c.ops->expert_sort(c.device, sorted.on_cpu<int64_t>(), sorted_token.on_cpu<int32_t>(),
                       slot_row.on_cpu<int32_t>(), expert.on_cpu<int32_t>(), slots, k.top_k,
                       k.experts);
    c.ops->expert_unique(c.device, begin.on_cpu<int64_t>(), token.on_cpu<int32_t>(),
                         place.on_cpu<int32_t>(), expert.on_cpu<int32_t>(),
                         slot_row.on_cpu<int32_t>(), shape);
    cuda_expert_sort(nullptr, sorted.on_cuda<int64_t>(), sorted_token.on_cuda<int32_t>(),
                     slot_row.on_cuda<int32_t>(), expert.on_cuda<int32_t>(), slots, k.top_k,
                     k.experts, work.data);
    cuda_expert_unique(nullptr, begin.on_cuda<int64_t>(), token.on_cuda<int32_t>(),
                       place.on_cuda<int32_t>(), expert.on_cuda<int32_t>(),
                       slot_row.on_cuda<int32_t>(), shape, more.data);
    c.download();
    c.exact(begin);
    c.exact(token);
    c.exact(place);
    return c.finish();
}

/* ---- its row among those of several destinations ---- */

static bool relay(const struct sort_case &k, int64_t ranks)
{
    const int64_t slots = k.tokens * k.top_k;
    const struct dispatch_shape fine = {slots, k.top_k, k.experts, ranks},
                                coarse = {slots, k.top_k, k.experts, ranks / 2};
    ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "expert_relay N=%d K=%d E=%d ranks=%d",
               (int)k.tokens, (int)k.top_k, (int)k.experts, (int)ranks);
    const uint64_t key = rng_key(17, "expert");
    operand &expert = c.fill("expert", DTYPE_I32, slots, 1, [=](int64_t i) {
        const bool drop = rng_uniform(key + 1, (uint64_t)i) * 100 < k.dropped;
        return drop ? -1 : floor(rng_uniform(key, (uint64_t)i) * (double)k.experts);
    });
    operand &sorted = c.poison("offset", DTYPE_I64, k.experts + 1, 1);
    operand &sorted_token = c.poison("sorted token", DTYPE_I32, slots, 1);
    operand &slot_row = c.poison("slot_row", DTYPE_I32, slots, 1);
    operand &begin = c.poison("begin", DTYPE_I64, ranks + 1, 1);
    operand &token = c.poison("token", DTYPE_I32, slots, 1);
    operand &place = c.poison("place", DTYPE_I32, slots, 1);
    operand &to = c.poison("relay", DTYPE_I32, slots, 1); /* past the last: untouched */
    /* Inputs are the CPU's on both sides. */
    c.ops->expert_sort(c.device, sorted.on_cpu<int64_t>(), sorted_token.on_cpu<int32_t>(),
                       slot_row.on_cpu<int32_t>(), expert.on_cpu<int32_t>(), slots, k.top_k,
                       k.experts);
    c.ops->expert_unique(c.device, begin.on_cpu<int64_t>(), token.on_cpu<int32_t>(),
                         place.on_cpu<int32_t>(), expert.on_cpu<int32_t>(),
                         slot_row.on_cpu<int32_t>(), coarse);
    c.ops->expert_unique(c.device, begin.on_cpu<int64_t>(), token.on_cpu<int32_t>(),
                         sorted_token.on_cpu<int32_t>(), expert.on_cpu<int32_t>(),
                         slot_row.on_cpu<int32_t>(), fine);
    c.upload();
    c.ops->expert_relay(c.device, to.on_cpu<int32_t>(), begin.on_cpu<int64_t>(),
                        token.on_cpu<int32_t>(), place.on_cpu<int32_t>(), expert.on_cpu<int32_t>(),
                        slot_row.on_cpu<int32_t>(), fine);
    cuda_expert_relay(nullptr, to.on_cuda<int32_t>(), begin.on_cuda<int64_t>(),
                      token.on_cuda<int32_t>(), place.on_cuda<int32_t>(), expert.on_cuda<int32_t>(),
                      slot_row.on_cuda<int32_t>(), fine);
    c.download();
    c.exact(to);
    return c.finish();
}

/* Every third source sends nothing. */
static bool fan_out(int64_t ranks, int most)
{
    ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "expert_fan_out ranks=%d", (int)ranks);
    const uint64_t key = rng_key(16, "rows");
    operand &arrived = c.poison("arrived", DTYPE_I64, ranks + 1, 1);
    operand &from = c.poison("unique", DTYPE_I64, ranks + 1, 1);
    int64_t *rows = arrived.on_cpu<int64_t>(), *tokens = from.on_cpu<int64_t>();
    rows[0] = tokens[0] = 0;
    for (int64_t r = 0; r < ranks; r++) {
        const int64_t count =
            r % 3 == 1 ? 0 : 1 + (int64_t)(rng_uniform(key, (uint64_t)r) * (double)most);
        rows[r + 1] = rows[r] + count;
        tokens[r + 1] = tokens[r] + (count + 1) / 2;
    }
    const int64_t count = rows[ranks];
    operand &place = c.poison("place", DTYPE_I32, count, 1);
    operand &ungroup =
        c.fill("ungroup", DTYPE_I32, count, 1, [=](int64_t i) { return (double)(count - 1 - i); });
    operand &fan = c.poison("fan", DTYPE_I32, count + 3, 1); /* past the last: untouched */
    for (int64_t r = 0; r < ranks; r++) {
        for (int64_t p = rows[r]; p < rows[r + 1]; p++) {
            place.on_cpu<int32_t>()[p] = (int32_t)((p * 5) % (tokens[r + 1] - tokens[r]));
        }
    }
    c.upload();
    c.ops->expert_fan_out(c.device, fan.on_cpu<int32_t>(), ungroup.on_cpu<int32_t>(),
                          place.on_cpu<int32_t>(), rows, tokens, ranks, count);
    cuda_expert_fan_out(nullptr, fan.on_cuda<int32_t>(), ungroup.on_cuda<int32_t>(),
                        place.on_cuda<int32_t>(), arrived.on_cuda<int64_t>(),
                        from.on_cuda<int64_t>(), ranks, count);
    c.download();
    c.exact(fan);
    return c.finish();
}

/* ---- padded messages ---- */

static bool pad(const struct sort_case &k, int64_t ranks, int64_t spare)
{
    const int64_t slots = k.tokens * k.top_k, local = k.experts / ranks;
    const int64_t most = k.tokens * (k.top_k < local ? k.top_k : local) + spare;
    const struct padded_shape shape = {slots, k.experts, ranks, most, k.tokens + spare};
    ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "expert_pad N=%d K=%d E=%d ranks=%d",
               (int)k.tokens, (int)k.top_k, (int)k.experts, (int)ranks);
    const uint64_t key = rng_key(17, "expert");
    operand &expert = c.fill("expert", DTYPE_I32, slots, 1, [=](int64_t i) {
        const bool drop = rng_uniform(key + 1, (uint64_t)i) * 100 < k.dropped;
        const int64_t first =
            (int64_t)(rng_uniform(key, (uint64_t)(i / k.top_k)) * (double)k.experts);
        return drop ? -1 : (double)((first + i % k.top_k) % k.experts);
    });
    operand &offset = c.poison("offset", DTYPE_I64, k.experts + 1, 1);
    operand &sorted_token = c.poison("sorted token", DTYPE_I32, slots, 1);
    operand &slot_row = c.poison("slot_row", DTYPE_I32, slots, 1);
    operand &begin = c.poison("begin", DTYPE_I64, ranks + 1, 1);
    operand &unique_token = c.poison("unique token", DTYPE_I32, slots, 1);
    operand &place = c.poison("place", DTYPE_I32, slots, 1);
    c.ops->expert_sort(c.device, offset.on_cpu<int64_t>(), sorted_token.on_cpu<int32_t>(),
                       slot_row.on_cpu<int32_t>(), expert.on_cpu<int32_t>(), slots, k.top_k,
                       k.experts);
    c.ops->expert_unique(c.device, begin.on_cpu<int64_t>(), unique_token.on_cpu<int32_t>(),
                         place.on_cpu<int32_t>(), expert.on_cpu<int32_t>(),
                         slot_row.on_cpu<int32_t>(), {slots, k.top_k, k.experts, ranks});
    operand &message = c.poison("message", DTYPE_I32, ranks, local + most);
    operand &token = c.poison("token", DTYPE_I32, ranks, shape.pair_tokens);
    operand &row = c.poison("row", DTYPE_I32, ranks, most);
    operand &back = c.poison("back", DTYPE_I32, slots, 1);
    operand &regroup = c.poison("regroup", DTYPE_I32, ranks, most);
    operand &ungroup = c.poison("ungroup", DTYPE_I32, ranks, most);
    operand &fan = c.poison("fan", DTYPE_I32, ranks, most);
    operand &there = c.poison("offset there", DTYPE_I64, local + 1, 1);
    scratch work(cuda_expert_unpad_scratch(shape));
    c.upload();
    c.ops->expert_pad(c.device, message.on_cpu<int32_t>(), token.on_cpu<int32_t>(),
                      row.on_cpu<int32_t>(), back.on_cpu<int32_t>(), offset.on_cpu<int64_t>(),
                      begin.on_cpu<int64_t>(), unique_token.on_cpu<int32_t>(),
                      place.on_cpu<int32_t>(), &shape);
    cuda_expert_pad(nullptr, message.on_cuda<int32_t>(), token.on_cuda<int32_t>(),
                    row.on_cuda<int32_t>(), back.on_cuda<int32_t>(), offset.on_cuda<int64_t>(),
                    begin.on_cuda<int64_t>(), unique_token.on_cuda<int32_t>(),
                    place.on_cuda<int32_t>(), shape);
    /* As if each source had sent what this one sends to rank `source`: any counts will do. */
    c.ops->expert_unpad(c.device, regroup.on_cpu<int32_t>(), ungroup.on_cpu<int32_t>(),
                        fan.on_cpu<int32_t>(), there.on_cpu<int64_t>(), message.on_cpu<int32_t>(),
                        &shape);
    cuda_expert_unpad(nullptr, regroup.on_cuda<int32_t>(), ungroup.on_cuda<int32_t>(),
                      fan.on_cuda<int32_t>(), there.on_cuda<int64_t>(), message.on_cuda<int32_t>(),
                      shape, work.data);
    c.download();
    for (operand *o : {&message, &token, &row, &back, &regroup, &ungroup, &fan, &there}) {
        c.exact(*o);
    }
    return c.finish();
}

/* ---- drop ---- */

/* levels: how many different weights there are, a few: many ties; the largest: none. The lowest is
 * NaN of either sign. */
static bool drop(int64_t slots, int64_t experts, int64_t groups, int64_t capacity, int levels)
{
    ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE,
               "expert_drop of %d E=%d groups=%d capacity=%d, %d levels", (int)slots, (int)experts,
               (int)groups, (int)capacity, levels);
    const uint64_t key = rng_key(13, "weight");
    operand &expert = c.integers("expert", slots, 1, -1, (int)experts + 1);
    operand &weight = c.fill("weight", DTYPE_F32, slots, 1, [=](int64_t i) {
        const double level = floor(rng_uniform(key, (uint64_t)i) * levels);
        return level == 0 ? copysign(NAN, i % 2 - 0.5) : (level - levels / 4) / levels;
    });
    operand &kept = c.poison("kept", DTYPE_I32, slots, 1);
    c.upload();
    c.ops->expert_drop(c.device, kept.on_cpu<int32_t>(), expert.on_cpu<int32_t>(),
                       weight.on_cpu<float>(), slots, experts, groups, capacity);
    cuda_expert_drop(nullptr, kept.on_cuda<int32_t>(), expert.on_cuda<int32_t>(),
                     weight.on_cuda<float>(), slots, experts, groups, capacity);
    c.download();
    c.exact(kept);
    return c.finish();
}

/* ---- parts of experts ---- */

static bool slices(int64_t slots, int64_t parts, int64_t local)
{
    ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "expert_spread and _fold of %d by %d local=%d",
               (int)slots, (int)parts, (int)local);
    operand &expert = c.integers("expert", slots, 1, -1, 6 * (int)local + 1);
    operand &weight = c.fill("weight", DTYPE_F32, slots, 1,
                             [=](int64_t i) { return rng_uniform(7, (uint64_t)i); });
    operand &spread = c.poison("spread", DTYPE_I32, slots, parts);
    operand &each = c.poison("each", DTYPE_F32, slots, parts);
    operand &folded = c.poison("folded", DTYPE_F32, slots, 1);
    c.upload();
    c.ops->expert_spread(c.device, spread.on_cpu<int32_t>(), each.on_cpu<float>(),
                         expert.on_cpu<int32_t>(), weight.on_cpu<float>(), slots, parts, local);
    c.ops->expert_fold(c.device, folded.on_cpu<float>(), each.on_cpu<float>(), slots, parts);
    cuda_expert_spread(nullptr, spread.on_cuda<int32_t>(), each.on_cuda<float>(),
                       expert.on_cuda<int32_t>(), weight.on_cuda<float>(), slots, parts, local);
    cuda_expert_fold(nullptr, folded.on_cuda<float>(), each.on_cuda<float>(), slots, parts);
    c.download();
    c.exact(spread);
    c.exact(each);
    c.exact(folded);
    return c.finish();
}

/* ---- counts and balance losses ---- */

static bool even(struct router_shape s)
{
    const int64_t rows = s.tokens / s.row_tokens;
    ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "router_even and _count N=%d E=%d",
               (int)s.tokens, (int)s.experts);
    operand &expert = c.poison("expert", DTYPE_I32, s.tokens, s.top_k);
    operand &weight = c.poison("weight", DTYPE_F32, s.tokens, s.top_k);
    operand &routed = c.poison("routed", DTYPE_I64, rows, s.experts);
    operand &count = c.poison("count", DTYPE_I64, s.experts, 1);
    for (int64_t e = 0; e < s.experts; e++) {
        count.on_cpu<int64_t>()[e] = 1000 * e;
    }
    c.upload();
    c.ops->router_even(c.device, expert.on_cpu<int32_t>(), weight.on_cpu<float>(),
                       {routed.on_cpu<int64_t>(), nullptr, nullptr}, s);
    c.ops->router_count(c.device, count.on_cpu<int64_t>(), routed.on_cpu<int64_t>(), rows,
                        s.experts);
    cuda_router_even(nullptr, expert.on_cuda<int32_t>(), weight.on_cuda<float>(),
                     {routed.on_cuda<int64_t>(), nullptr, nullptr}, s);
    cuda_router_count(nullptr, count.on_cuda<int64_t>(), routed.on_cuda<int64_t>(), rows,
                      s.experts);
    c.download();
    c.exact(expert);
    c.exact(weight);
    c.exact(routed);
    c.exact(count);
    return c.finish();
}

static operand &counts(ops_case &c, const char *name, int64_t rows, int64_t cols)
{
    const uint64_t key = rng_key(14, name);
    operand &o = c.poison(name, DTYPE_I64, rows, cols);
    for (int64_t i = 0; i < rows * cols; i++) {
        o.on_cpu<int64_t>()[i] = (int64_t)(rng_uniform(key, (uint64_t)i) * 20);
    }
    return o;
}

static bool balance(struct router_shape s, struct balance_terms terms, const char *what)
{
    const int64_t rows = s.tokens / s.row_tokens;
    ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "balance %s N=%d E=%d", what, (int)s.tokens,
               (int)s.experts);
    operand &loss = c.fill("loss", DTYPE_F64, 1, 1, [](int64_t) { return 0.25; });
    operand &gradient = c.poison("gradient", DTYPE_F32, rows, s.experts);
    operand &sums =
        c.fill("sums", DTYPE_F64, rows, s.experts, [](int64_t i) { return 0.5 + (double)(i % 7); });
    operand &routed = counts(c, "routed", rows, s.experts);
    operand &scored = terms.score_counts ? counts(c, "scored", rows, s.experts) : c.none("scored");
    operand &group =
        terms.communication > 0 ? counts(c, "group", rows, s.loss_groups) : c.none("group");
    operand &chosen = terms.batch_weight > 0 ? counts(c, "chosen", 1, s.experts) : c.none("chosen");
    operand &lse = terms.z > 0 ? c.random("lse", DTYPE_F32, s.tokens, 1) : c.none("lse");
    c.upload();
    c.ops->balance(c.device, loss.on_cpu<double>(), gradient.on_cpu<float>(), sums.on_cpu<double>(),
                   {routed.on_cpu<int64_t>(), scored.on_cpu<int64_t>(), group.on_cpu<int64_t>()},
                   chosen.on_cpu<int64_t>(), lse.on_cpu<float>(), s, &terms);
    cuda_balance(nullptr, loss.on_cuda<double>(), gradient.on_cuda<float>(), sums.on_cuda<double>(),
                 {routed.on_cuda<int64_t>(), scored.on_cuda<int64_t>(), group.on_cuda<int64_t>()},
                 chosen.on_cuda<int64_t>(), lse.on_cuda<float>(), s, &terms);
    c.download();
    c.close(loss, 1e-13);
    c.close(gradient, U);
    return c.finish();
}

static bool losses()
{
    /* tokens, experts, top_k, row_tokens, ..., loss_groups */
    const struct router_shape shapes[] = {{30, 8, 2, 10, true, 1, 1, true, 1, 4},
                                          {700, 6, 3, 700, false, 1, 1, true, 1, 2},
                                          {6, 300, 8, 1, true, 1, 1, true, 1, 10}};
    bool right = true;
    for (const struct router_shape &s : shapes) {
        /* sequence, score_counts, device, communication, top_groups, batch_weight, batch_share, z,
         * unit */
        right = balance(s, {1e-2, false, 0, 0, 0, 0, 0, 0, 3}, "sequence") && right;
        right = balance(s, {1e-2, true, 0, 0, 0, 0, 0, 1e-3, 1}, "scores and z") && right;
        right = balance(s, {0, false, 5e-2, 2e-2, 2, 0, 0, 0, 0.5}, "groups") && right;
        right = balance(s, {1e-2, false, 5e-2, 0, 0, 1e-4, 0.125, 1e-3, 2}, "all") && right;
        right = balance(s, {0, false, 0, 0, 0, 0, 0, 0, 1}, "none") && right;
    }
    return right;
}

static bool fills()
{
    bool right = true;
    for (int64_t count : {0, 1, 255, 1031}) {
        ops_case c(cpu_device(), DTYPE_F32, SHIFT_NONE, "fill of %d", (int)count);
        operand &x = c.poison("x", DTYPE_F32, 1, count);
        c.upload();
        c.ops->fill(c.device, x.on_cpu<float>(), count, -1.25F);
        cuda_fill(nullptr, x.on_cuda<float>(), count, -1.25F);
        c.download();
        c.exact(x);
        right = c.finish() && right;
    }
    return right;
}

static bool test()
{
    bool right = losses() & fills();
    for (const struct sort_case &k : sorts) {
        right = (SLOW && k.tokens > 1000 ? true : sort(k)) && right;
    }
    right = regroup(1, 1, 5) & regroup(3, 2, 7) & regroup(64, 9, 9) & regroup(2, 8, 600) & right;
    right = unique({0, 2, 4, 0}, 2) & unique({7, 2, 3, 30}, 3) & unique({64, 6, 64, 10}, 8) &
            unique({40, 3, 6, 100}, 1) & unique({129, 4, 8, 5}, 2) & right;
    right = relay({0, 2, 4, 0}, 2) & relay({7, 2, 4, 30}, 4) & relay({64, 6, 64, 10}, 8) &
            relay({300, 4, 8, 5}, 2) & right;
    right = pad({1, 1, 1, 0}, 1, 0) & pad({7, 2, 6, 30}, 3, 1) & pad({64, 6, 64, 10}, 8, 0) & right;
    right =
        pad({40, 3, 6, 100}, 2, 3) & pad({129, 4, 8, 5}, 2, 0) & pad({3, 2, 600, 0}, 2, 0) & right;
    right = fan_out(1, 9) & fan_out(2, 300) & fan_out(9, 70) & right;
    right = drop(0, 4, 2, 3, 4) & drop(8, 4, 4, 0, 2) & drop(700, 6, 6, 50, 4) & right;
    right =
        drop(700, 6, 2, 200, 5) & drop(1200, 8, 1, 600, 1 << 20) & drop(50, 4, 2, 60, 9) & right;
    right = drop(600, 2, 2, 100, 1) & right;
    right = slices(0, 2, 1) & slices(1, 4, 3) & slices(300, 2, 5) & slices(517, 8, 32) & right;
    right = even({0, 4, 2, 5, true, 1, 1, true, 1, 1}) &
            even({15, 4, 2, 5, true, 1, 1, true, 1, 1}) &
            even({9, 300, 3, 3, true, 1, 1, true, 1, 1}) & right;
    return right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, two_passes<test>);
}
