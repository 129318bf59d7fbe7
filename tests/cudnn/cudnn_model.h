/* cudnn_model: see cudnn_model.c. */
#ifndef TESTS_CUDNN_CUDNN_MODEL_H
#define TESTS_CUDNN_CUDNN_MODEL_H

#include <cudnn.h>
#include <stdint.h>

#include "kernels/base/tensor.h"

extern int64_t cudnn_model_engines;   /* that the heuristic proposes: 1, or 0 to refuse */
extern int64_t cudnn_model_workspace; /* bytes of every plan */
extern int64_t cudnn_model_alive;     /* descriptors */
extern int64_t cudnn_model_runs;      /* of plans */

#endif
