/* invariance: whether this machine's matrix products keep what run.deterministic layout stands on:
 * a row of a product is the same bits alone and among any other rows, a group's gradient of weights
 * alone and beside other groups, with one thread of the host and with all of the device's (ranks x
 * threads differ from layout to layout). A few shapes, some milliseconds; tests/invariance_check.h
 * looks at every op.
 */
#ifndef KERNELS_INVARIANCE_H
#define KERNELS_INVARIANCE_H

#include "kernels/device.h"

/* Products of `act` (f32 or bf16) of 65 rows: [width, inner] both ways, each cut to 512; sums over
 * all of a longer one for 48 columns. Local. Errors: STATUS_RESOURCE, naming the op and the rows;
 * or out of memory. */
enum status invariance_check(struct device *device, enum dtype act, int64_t width, int64_t inner)
    __attribute__((warn_unused_result));

#endif
