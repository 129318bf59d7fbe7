/* exchange: bytes and time of the all-to-alls between tokens and experts.
 *
 * Routing is taken as balanced: a token's K experts are any K of those that node-limited routing
 * (n_group, topk_group) leaves it. Two ways, config key cluster.exchange:
 * direct: what training does. Tokens go once to each rank that has one of their experts, or where
 * that is less (relayed, parallel.node_dispatch) once to each node and from there to its ranks, and
 * gradients of outputs as they; nodes are those of parallel.ranks_per_node there, but what is
 * network is the cluster's to say, always; else those, in FP8 always, and all that comes
 * back go by slot. With padded dispatch messages have the size of the worst case.
 * by_node: a token crosses the network once for each node, and fans out by NVLink there; what comes
 * back is added up on the way (DeepEP).
 */
#ifndef TRAINER_PLAN_EXCHANGE_H
#define TRAINER_PLAN_EXCHANGE_H

#include "trainer/model/architecture.h"
#include "trainer/plan/hardware.h"

struct exchange_shape {
    int64_t tokens;             /* of a micro-batch */
    int64_t experts, top_k;     /* E, K */
    int64_t groups, top_groups; /* of routing; 1: unlimited */
    int64_t ep, etp;            /* ranks among which experts, and each expert's matrices, are */
    int64_t ranks_per_node;     /* of those ep x etp, on a node of the cluster */
    int64_t relay_ranks;        /* of those, that relay for one another (parallel.ranks_per_node);
                                   0: a node's */
    bool by_node, padded;
    bool apart;               /* relay_ranks are such that tokens may be relayed */
    bool codes;               /* what goes to experts is in FP8 */
    double row_out, row_back; /* bytes of a token on its way to experts, and back */
};

/* Of one all-to-all, sent by one rank. */
struct exchange_bytes {
    double network, nvlink;
};

enum exchange_kind {
    EXCHANGE_DISPATCH,      /* tokens to experts */
    EXCHANGE_COMBINE,       /* outputs back */
    EXCHANGE_DISPATCH_BACK, /* gradients of outputs to experts */
    EXCHANGE_COMBINE_BACK,  /* gradients of inputs back */
    EXCHANGES
};
extern const char *const exchange_names[EXCHANGES];

/* Of `bins` equal parts of the experts (nodes, ranks), the number that a token's experts are
 * expected in. Exact where groups of routing and bins divide one another. */
double exchange_spread(const struct exchange_shape *shape, int64_t bins);
/* Nodes that the group's ranks stand on. */
int64_t exchange_nodes(const struct exchange_shape *shape);
/* Whether training relays tokens, of balanced routing. */
bool exchange_relays(const struct exchange_shape *shape);
struct exchange_bytes exchange_bytes(const struct exchange_shape *shape, enum exchange_kind kind);
/* s; busy: beside kernels. 0 where the group is one rank. */
double exchange_seconds(const struct hardware *hardware, const struct exchange_shape *shape,
                        enum exchange_kind kind, bool busy);
/* s to reduce `bytes` to equal shares of them on `ranks` ranks, or to gather those; the group's
 * ranks stand `stride` apart. */
double exchange_reduce_seconds(const struct hardware *hardware, double bytes, int64_t ranks,
                               int64_t stride);
/* One step of a ring of such ranks: `bytes` to the next, as many from the one before. */
double exchange_pass_seconds(const struct hardware *hardware, double bytes, int64_t ranks,
                             int64_t stride);

#endif
