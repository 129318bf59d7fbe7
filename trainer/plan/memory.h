/* memory: bytes a rank needs, from the layout that the run itself uses.
 *
 * With one pipeline stage, or a schedule that trains, the arenas are model_measure's: exactly what
 * training reserves. A stage of another schedule is measured as a model of its own blocks; what it
 * keeps for backward counts once for each micro-batch between the two. Everything is the worst
 * case: buffers of the exchange are as large as they can get, however unevenly tokens are routed.
 */
#ifndef TRAINER_PLAN_MEMORY_H
#define TRAINER_PLAN_MEMORY_H

#include "trainer/model/model.h"
#include "trainer/model/stages.h"
#include "trainer/plan/hardware.h"

struct stage_memory {
    size_t kind[MODEL_MEMORIES];
    int64_t elements[PARAM_GROUPS];      /* of a rank, padding included */
    struct muon_load muon[PARAM_GROUPS]; /* optimizer.name muon */
    size_t host;                         /* host memory: state that is offloaded */
    size_t spare; /* of gradients: room to reduce that a CPU run uses nothing of */
    /* what is measured where `saves` says so, else 0 */
    size_t staging;  /* host memory: the copy that saves are written from */
    int64_t tensors; /* of them, on the first rank */
    bool stages;     /* a save comes to use it before the run's end */
};

struct plan_memory {
    size_t kind[MODEL_MEMORIES]; /* bytes of the fullest rank */
    size_t arenas;               /* their sum; where it trains what the run reserves */
    size_t host;                 /* host memory: optimizer.offload, likewise; of the same rank */
    size_t staging;              /* host memory: the copy that saves beside the training are written
                                    from, to the byte what a run of one stage reserves */
    size_t outside;              /* program, libraries, scratch of kernels: estimated */
    size_t all;                  /* arenas + outside, on a CPU + staging: what there must be */
    size_t peak; /* what a process is expected to reach: on a CPU, pages that balanced routing never
                    touches do not count, nor a copy that no save comes to use */
    int64_t stage;  /* of the fullest rank */
    int64_t shared; /* elements of an embedding that it shares with another stage */
};

/* Of the first rank, which has most: Muon gives it the largest matrix. dp: ranks with
 * the same dense parameters, those of parallel.tp counted. saves: what a save has, too, which takes
 * longer than all else. Errors: STATUS_RESOURCE, STATUS_USAGE. */
enum status memory_of_stage(struct stage_memory *memory, const struct config *config,
                            const struct stage *stage, struct device *device, int64_t dp,
                            int64_t ep, bool saves);
/* The same of rank `rank` of a pipeline of pp ranks that trains, all its stages. Errors:
 * STATUS_USAGE also for stages that cannot be. */
enum status memory_of_rank(struct stage_memory *memory, const struct config *config, int64_t pp,
                           int64_t rank, struct device *device, int64_t dp, int64_t ep, bool saves)
    __attribute__((warn_unused_result));
/* Bytes beside the arenas. */
size_t memory_outside(const struct config *config, const struct hardware *hardware,
                      const struct architecture *arch, const struct stage_memory *memory,
                      int64_t dp);
/* Of a model in one stage: bytes of the arenas that a CPU run never touches: room to reduce what
 * has one replica, or more than comes at a time, and for more than a fair share of rows. Errors: as
 * memory_of_stage. */
enum status memory_untouched(size_t *bytes, const struct config *config, const struct stage *stage,
                             const struct stage_memory *memory, struct device *device, int64_t dp,
                             int64_t ep);

#endif
