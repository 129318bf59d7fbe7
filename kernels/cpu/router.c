#include <assert.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu.h"

/* Softmax of one row; returns log-sum-exp. */
static float softmax(float *prob, const float *logits, int64_t experts)
{
    float most = logits[0], sum = 0;
    for (int64_t e = 1; e < experts; e++) {
        most = logits[e] > most ? logits[e] : most;
    }
    for (int64_t e = 0; e < experts; e++) {
        prob[e] = expf(logits[e] - most);
        sum += prob[e];
    }
    for (int64_t e = 0; e < experts; e++) {
        prob[e] /= sum;
    }
    return most + logf(sum);
}

/* The k largest, falling; equal ones by lower index. NaN never wins, so that k different experts
 * always come out. */
static void choose(int32_t *expert, float *weight, const float *prob, int64_t experts,
                   int64_t top_k)
{
    for (int64_t k = 0; k < top_k; k++) {
        int32_t best = -1;
        for (int32_t e = 0; e < experts; e++) {
            bool taken = false;
            for (int64_t j = 0; j < k; j++) {
                taken = taken || expert[j] == e;
            }
            if (!taken && (best < 0 || prob[e] > prob[best])) {
                best = e;
            }
        }
        expert[k] = best;
        weight[k] = prob[best];
    }
}

void cpu_router_forward(struct device *device, int32_t *expert, float *weight, float *prob,
                        float *lse, int64_t *count, const float *logits, struct router_shape shape)
{
    const int64_t experts = shape.experts, top_k = shape.top_k;
    assert(top_k >= 1 && top_k <= experts);
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < shape.tokens; n++) {
        float *chosen = weight + n * top_k, sum = 0;
        lse[n] = softmax(prob + n * experts, logits + n * experts, experts);
        choose(expert + n * top_k, chosen, prob + n * experts, experts, top_k);
        for (int64_t k = 0; k < top_k; k++) {
            sum += chosen[k];
        }
        for (int64_t k = 0; k < top_k && shape.normalize; k++) {
            chosen[k] /= sum;
        }
    }
    memset(count, 0, (size_t)experts * sizeof *count);
    for (int64_t slot = 0; slot < shape.tokens * top_k; slot++) {
        count[expert[slot]]++;
    }
}

/* Gradient of the logits through the chosen weights. Normalised weights depend on the chosen logits
 * only. */
static void weights_backward(float *dlogits, const float *dweight, const int32_t *expert,
                             const float *weight, const float *prob, struct router_shape shape)
{
    float mean = 0;
    for (int64_t k = 0; k < shape.top_k; k++) {
        mean += dweight[k] * weight[k]; /* not normalised: weight is the probability */
    }
    for (int64_t k = 0; k < shape.top_k; k++) {
        dlogits[expert[k]] += weight[k] * (shape.normalize ? dweight[k] - mean : dweight[k]);
    }
    for (int64_t e = 0; e < shape.experts && !shape.normalize; e++) {
        dlogits[e] -= prob[e] * mean;
    }
}

void cpu_router_backward(struct device *device, float *dlogits, const float *dweight,
                         const int32_t *expert, const float *weight, const float *prob,
                         const float *lse, const float *aux_dprob, float z_scale,
                         struct router_shape shape)
{
    const int64_t experts = shape.experts, top_k = shape.top_k;
#pragma omp parallel for num_threads(device->threads) schedule(static)
    for (int64_t n = 0; n < shape.tokens; n++) {
        float *out = dlogits + n * experts, mean = 0;
        const float *p = prob + n * experts;
        for (int64_t e = 0; e < experts; e++) {
            mean += p[e] * aux_dprob[e];
        }
        for (int64_t e = 0; e < experts; e++) {
            out[e] = p[e] * (aux_dprob[e] - mean) + 2.0F * z_scale * lse[n] * p[e];
        }
        weights_backward(out, dweight + n * top_k, expert + n * top_k, weight + n * top_k, p,
                         shape);
    }
}
