/* work: time of one block, head or optimizer step of a config on a rank, kernel by kernel.
 *
 * A micro-batch is n tokens; experts get the balanced n * K rows a rank. Products count as
 * operations and as bytes, all other kernels as bytes (kernel families: hardware.h). Forward,
 * backward of inputs (with what recompute does again) and gradients of weights stand apart, as
 * schedules move them apart.
 */
#ifndef TRAINER_PLAN_WORK_H
#define TRAINER_PLAN_WORK_H

#include "trainer/muon.h"
#include "trainer/plan/exchange.h"

enum phase { PHASE_FORWARD, PHASE_BACKWARD, PHASE_WEIGHT, PHASES };
enum work_block {
    WORK_DENSE,
    WORK_MOE,
    WORK_MTP
}; /* WORK_MTP: a block with experts and its module */

struct work {
    double s[PHASES][KERNELS];
    /* of which may run beside messages: */
    double shared[PHASES]; /* the shared experts' */
    double up_weight;      /* the gradients of the experts' up weights */
};

struct workload {
    const struct config *config;     /* borrowed */
    const struct hardware *hardware; /* borrowed */
    struct architecture arch;
    int64_t tokens; /* n */
    double apart; /* ranks that share sequences (parallel.cp): each has n tokens of n * apart, whose
                     keys it sees */
    double split; /* ranks that share dense matrices (parallel.tp): between such products each has
                     n / split tokens */
    bool fp8;
    bool layout; /* run.deterministic layout: gradients are integers */
    double own;  /* share of the GPU that kernels have */
    struct exchange_shape exchange;
};

void workload_init(struct workload *load, const struct config *config,
                   const struct hardware *hardware, bool by_node);
struct work work_block(const struct workload *load, enum work_block kind);
/* Final norm, head, loss; the embedding. */
struct work work_head(const struct workload *load);
struct work work_embedding(const struct workload *load);
double work_sum(const struct work *work, enum phase phase);
/* s of the gathers and reductions between the ranks of parallel.tp around one block. */
double work_split_messages(const struct workload *load, enum work_block kind, bool backward);
/* s of what routers send in a block with experts where parallel.tp or cp divide sequences: choices
 * that a capacity takes from all, sums for the balance losses. */
double work_router_messages(const struct workload *load, bool backward);
/* As work_split_messages, around the embedding, or around head and loss. */
double work_vocabulary_messages(const struct workload *load);
/* Of keys and values, and of gradients of them, that go round the ranks of parallel.cp while the
 * attention of a block is computed (`work`), s. */
struct work_ring {
    double messages, exposed; /* exposed: of these, longer than what is computed meanwhile */
};
struct work_ring work_context(const struct workload *load, const struct work *work, bool backward);
/* Codes of so many weights, both ways, s; 0 but in FP8. */
double work_codes(const struct workload *load, double weights);
/* AdamW and the weights' new device form of a rank that holds `weights` and updates `share` of
 * them; offloaded: s that its state takes to come and go beside. */
double work_optimizer(const struct workload *load, double weights, double share, double offloaded);
/* Muon of a group's dearest rank: orthogonalising, and what its momentum and update take beyond
 * work_optimizer's. */
double work_muon(const struct workload *load, const struct muon_load *muon);
struct muon_ranks {
    int64_t replicas, stride; /* ranks that share the group's state, so far apart */
    int64_t peers;            /* neighbours with the other parts of its matrices */
};
/* Updates to the owners of their matrices and back; of divided matrices the parts of a turn to the
 * peer that has it whole, and back. */
double work_muon_messages(const struct workload *load, const struct muon_load *muon,
                          const struct muon_ranks *ranks);
/* s of optimizer.offload: `state` bytes of a rank come and go; of its `share` of parameters `dense`
 * are not experts'. */
double work_offloaded(const struct workload *load, double state, double dense, double share);

#endif
