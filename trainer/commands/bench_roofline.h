/* bench_roofline: where the time of a step goes beside the least it could take (Williams et al.
 * 2009): of each family of ops FLOPs, bytes, seconds, and which of the two bounds it, against
 * ceilings measured in the same run. Of one rank; what no op accounts for is the host, waiting, and
 * collectives.
 */
#ifndef TRAINER_COMMANDS_BENCH_ROOFLINE_H
#define TRAINER_COMMANDS_BENCH_ROOFLINE_H

#include "kernels/device.h"
#include "kernels/meter.h"
#include "trainer/session.h"
#include "trainer/step.h"

struct roofline {
    bool there;                             /* the device can be metered */
    struct device_ceilings ceiling;         /* of this rank; products: at least what GEMM reached */
    double world_flops;                     /* ceiling.fma_flops of all ranks */
    struct meter_line line[METER_FAMILIES]; /* of one step */
    double step_seconds;
    double flops; /* per second, of the whole step, all ranks */
};

/* Collective. */
void roofline_ceilings(struct roofline *roofline, struct session *session, enum dtype act);
/* Means over `steps`. phase: its means; flops: per second, of the whole step. */
void roofline_take(struct roofline *roofline, const struct meter *meter,
                   const struct phase_ms *phase, int64_t steps, double flops);
/* Nothing where there is none. */
void roofline_print(const struct roofline *roofline);
void roofline_json(const struct roofline *roofline); /* begins with a comma */

#endif
