/* probe: what is told of a model's tensors as a training step makes them (trainer/trace.h). */
#ifndef TRAINER_PROBE_H
#define TRAINER_PROBE_H

#include "kernels/base/tensor.h"

/* In the order of computation; C hidden, N tokens, K top-k, E experts. */
enum probe_point {
    PROBE_IDS,             /* [N] int32: what the micro-batch reads, */
    PROBE_LABELS,          /* [N] int32: and is to predict */
    PROBE_INPUT,           /* [N,C] act, per block: the stream entering it */
    PROBE_ATTENTION,       /* [N,C] act, per block: what attention adds to the stream */
    PROBE_SCORE,           /* [N,E] f32, per block with experts: the router's scores */
    PROBE_EXPERT,          /* [N,K] int32, per block with experts: the experts chosen */
    PROBE_FEED_FORWARD,    /* [N,C] act, per block: what experts or MLP add to the stream */
    PROBE_FINAL_NORM,      /* [N,C] act: the stream behind the last norm, which the head reads */
    PROBE_LOSS,            /* [1] f64: sum of -log p over the counted labels */
    PROBE_OUTPUT_GRADIENT, /* [N,C] act: gradient of the head's input, of this loss and of the
                              modules of multi-token prediction */
    PROBE_STREAM_GRADIENT, /* [N,C] act, per block: gradient of the stream entering it */
    PROBE_POINTS
};

struct probe {
    /* x: device memory, as it is now; of the micro-batch that runs. layer -1: of no block. */
    void (*tell)(void *context, int64_t layer, enum probe_point point, struct tensor x);
    void *context; /* borrowed */
};

static inline void probe_tell(const struct probe *probe, int64_t layer, enum probe_point point,
                              struct tensor x)
{
    if (probe != NULL) {
        probe->tell(probe->context, layer, point, x);
    }
}

#endif
