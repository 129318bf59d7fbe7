#include "trainer/plan/exchange.h"

#include <math.h>

const char *const exchange_names[EXCHANGES] = {
    [EXCHANGE_DISPATCH] = "dispatch",
    [EXCHANGE_COMBINE] = "combine",
    [EXCHANGE_DISPATCH_BACK] = "dispatch_backward",
    [EXCHANGE_COMBINE_BACK] = "combine_backward",
};

/* Chance that none of k things drawn out of n is among m of them. */
static double missed(int64_t n, int64_t m, int64_t k)
{
    double chance = 1;
    for (int64_t i = 0; i < k; i++) {
        chance *= (double)(n - m - i > 0 ? n - m - i : 0) / (double)(n - i);
    }
    return chance;
}

/* Expected parts hit by k of n things in `bins` equal parts. */
static double hit(int64_t n, int64_t bins, int64_t k)
{
    return (double)bins * (1 - missed(n, n / bins, k));
}

static double choose(int64_t n, int64_t k)
{
    double ways = k >= 0 && k <= n ? 1 : 0;
    for (int64_t i = 0; i < k && ways > 0; i++) {
        ways *= (double)(n - i) / (double)(i + 1);
    }
    return ways;
}

double exchange_spread(const struct exchange_shape *shape, int64_t bins)
{
    const int64_t experts = shape->experts, groups = shape->groups, top = shape->top_groups,
                  allowed = experts / groups * top;
    if (groups <= 1 || top >= groups || bins <= 1) {
        return hit(experts, bins, shape->top_k);
    }
    if (bins % groups == 0) { /* a group is several whole parts */
        return hit(allowed, bins / groups * top, shape->top_k);
    }
    if (groups % bins == 0) { /* a part is several whole groups, j of which are allowed */
        const int64_t own = groups / bins;
        double none = 0;
        for (int64_t j = 0; j <= own; j++) {
            none += choose(own, j) * choose(groups - own, top - j) / choose(groups, top) *
                    missed(allowed, experts / groups * j, shape->top_k);
        }
        return (double)bins * (1 - none);
    }
    return hit(experts, bins, shape->top_k);
}

static int64_t ranks_of(const struct exchange_shape *shape)
{
    return shape->ep * shape->etp;
}

/* Ranks that a token goes to: all that have a part of one of its experts. */
static double ranks_hit(const struct exchange_shape *shape)
{
    return exchange_spread(shape, shape->ep) * (double)shape->etp;
}

/* Nodes that it goes to: parts of an expert may span several. */
static double nodes_hit(const struct exchange_shape *shape, int64_t nodes)
{
    return nodes <= shape->ep
               ? exchange_spread(shape, nodes)
               : exchange_spread(shape, shape->ep) * (double)nodes / (double)shape->ep;
}

static int64_t node_ranks(const struct exchange_shape *shape)
{
    const int64_t ranks = ranks_of(shape);
    return ranks < shape->ranks_per_node ? ranks : shape->ranks_per_node;
}

int64_t exchange_nodes(const struct exchange_shape *shape)
{
    return (ranks_of(shape) + node_ranks(shape) - 1) / node_ranks(shape);
}

/* Rows of worst-case messages go to every rank alike. */
static struct exchange_bytes spread_evenly(const struct exchange_shape *shape, double to_each,
                                           double row)
{
    const double near = (double)(node_ranks(shape) - 1), far = (double)ranks_of(shape) - near - 1;
    return (struct exchange_bytes){.network = far * to_each * row, .nvlink = near * to_each * row};
}

static int64_t relay_ranks(const struct exchange_shape *shape)
{
    const int64_t ranks = ranks_of(shape),
                  each = shape->relay_ranks > 0 ? shape->relay_ranks : shape->ranks_per_node;
    return each < ranks ? each : ranks;
}

/* Rows that go once to each of the groups of `each` neighbours, and there once to each rank: how
 * many of them the cluster's network carries. */
static struct exchange_bytes once_to_groups(const struct exchange_shape *shape, int64_t each,
                                            double row)
{
    const int64_t node = node_ranks(shape), groups = (ranks_of(shape) + each - 1) / each,
                  near = node > each ? node / each - 1 : 0, /* groups on the rank's own node */
        own = (node < each ? node : each) - 1;              /* ranks of its group there */
    const double tokens = (double)shape->tokens, ranks = (double)each, all = (double)groups,
                 first = tokens * nodes_hit(shape, groups) * (all - 1) / all * row,
                 then = tokens * ranks_hit(shape) * (ranks - 1) / ranks * row,
                 first_near = groups > 1 ? first * (double)near / (all - 1) : 0,
                 then_near = each > 1 ? then * (double)own / (ranks - 1) : 0;
    return (struct exchange_bytes){.network = first - first_near + then - then_near,
                                   .nvlink = first_near + then_near};
}

/* Less cross from one group of relays to another. */
bool exchange_relays(const struct exchange_shape *shape)
{
    const int64_t ranks = ranks_of(shape), each = relay_ranks(shape),
                  groups = (ranks + each - 1) / each;
    const double parts = (double)groups, once = nodes_hit(shape, groups) * (parts - 1) / parts,
                 flat = ranks_hit(shape) * (double)(ranks - each) / (double)ranks;
    return shape->apart && !shape->by_node && !shape->padded && once < flat;
}

static bool relayed(const struct exchange_shape *shape, enum exchange_kind kind)
{
    const bool tokens =
        kind == EXCHANGE_DISPATCH || (kind == EXCHANGE_DISPATCH_BACK && !shape->codes);
    return tokens && exchange_relays(shape);
}

struct exchange_bytes exchange_bytes(const struct exchange_shape *shape, enum exchange_kind kind)
{
    const bool out = kind == EXCHANGE_DISPATCH || kind == EXCHANGE_DISPATCH_BACK;
    const double tokens = (double)shape->tokens, row = out ? shape->row_out : shape->row_back,
                 ranks = (double)ranks_of(shape),
                 slots = tokens * (double)(shape->top_k * shape->etp);
    if (ranks_of(shape) == 1) {
        return (struct exchange_bytes){0};
    }
    if (shape->by_node || relayed(shape, kind)) {
        return once_to_groups(shape, shape->by_node ? node_ranks(shape) : relay_ranks(shape), row);
    }
    if (shape->padded) {
        const int64_t local = shape->experts / shape->ep,
                      most = shape->top_k < local ? shape->top_k : local;
        return spread_evenly(shape, kind == EXCHANGE_DISPATCH ? tokens : tokens * (double)most,
                             row);
    }
    return spread_evenly(
        shape, (kind == EXCHANGE_DISPATCH ? tokens * ranks_hit(shape) : slots) / ranks, row);
}

double exchange_seconds(const struct hardware *hardware, const struct exchange_shape *shape,
                        enum exchange_kind kind, bool busy)
{
    const struct exchange_bytes bytes = exchange_bytes(shape, kind);
    const double network = busy ? hardware->network_busy : hardware->network_share,
                 link = busy ? hardware->link_busy : hardware->link;
    if (ranks_of(shape) == 1) {
        return 0;
    }
    const double across = bytes.network / (network * hardware->network),
                 within = bytes.nvlink / (link * hardware->nvlink);
    if (relayed(shape, kind)) { /* one behind the other */
        return across + within + 2 * hardware->message;
    }
    return fmax(across, within) + hardware->message;
}

/* Ranks of a node that are `stride` apart. */
static int64_t ranks_on_node(const struct hardware *hardware, int64_t stride)
{
    return hardware->ranks_per_node > stride ? hardware->ranks_per_node / stride : 1;
}

double exchange_reduce_seconds(const struct hardware *hardware, double bytes, int64_t ranks,
                               int64_t stride)
{
    const int64_t on_node = ranks_on_node(hardware, stride);
    const double together = hardware->network * (double)on_node, /* a ring's, over all its nodes */
        rate = ranks <= on_node ? hardware->nvlink
               : on_node == 1   ? hardware->network
                                : fmin(hardware->nvlink, together);
    return ranks == 1 ? 0
                      : bytes * (double)(ranks - 1) / (double)ranks / (hardware->reduce * rate) +
                            2 * hardware->message;
}

double exchange_pass_seconds(const struct hardware *hardware, double bytes, int64_t ranks,
                             int64_t stride)
{
    const double rate =
        ranks <= ranks_on_node(hardware, stride) ? hardware->nvlink : hardware->network;
    return ranks == 1 ? 0 : bytes / (hardware->reduce * rate) + hardware->message;
}
