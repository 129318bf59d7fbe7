/* meter: what the ops of a device cost: calls, seconds, and the FLOPs and bytes that the maths
 * needs at least, by family. A table of ops that hands on to the device's own and looks at the
 * clock; for devices whose ops are done when they return. Collectives, FP8's ops and the host's own
 * work are not in it.
 */
#ifndef KERNELS_METER_H
#define KERNELS_METER_H

#include "kernels/ops.h"

enum meter_family {
    METER_PROJECTIONS, /* linear_*: attention's, dense and shared MLPs', */
    METER_PROJECTIONS_INPUT,
    METER_PROJECTIONS_WEIGHT,
    METER_EXPERTS, /* grouped_* */
    METER_EXPERTS_INPUT,
    METER_EXPERTS_WEIGHT,
    METER_HEAD, /* products and cross-entropy, forward and backward */
    METER_ATTENTION,
    METER_ATTENTION_BACKWARD,
    METER_SWIGLU,
    METER_SWIGLU_BACKWARD,
    METER_NORM,
    METER_NORM_BACKWARD,
    METER_ROUTER,   /* logits, choice, balance, and their backward */
    METER_DISPATCH, /* sorting, gathering and combining rows */
    METER_ROWS,     /* rotary positions, columns copied and added */
    METER_EMBEDDING,
    METER_GRADIENT, /* zeroing, norm */
    METER_OPTIMIZER,
    METER_FAMILIES
};

struct meter_line {
    int64_t calls;
    double seconds;
    double flops; /* of products; else 0 */
    double bytes; /* each operand read or written once */
};

/* Caller's; must live as long as the device. */
struct meter {
    const struct ops *ops; /* the device's own; this and `counting` written by device_meter */
    struct ops counting;
    struct meter_line line[METER_FAMILIES];
};

extern const char *const meter_names[METER_FAMILIES]; /* [a-z_]+ */

/* For device.c: ops that are metered replace those of a copy of the device's table. */
void meter_wrap(struct ops *ops);

#endif
