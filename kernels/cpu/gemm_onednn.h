/* gemm_onednn: products by oneDNN's batch-reduce (brgemm) kernels, where this machine has them.
 *
 * Only implementations named "brg..." are used: their rows were found not to depend on the other
 * rows, nor, with long sums made part by part, on the number of threads; device_open checks that
 * again on this machine.
 * Primitives are made once per shape and kept. Both the v2 and the v3 C API of oneDNN are spoken.
 */
#ifndef KERNELS_CPU_GEMM_ONEDNN_H
#define KERNELS_CPU_GEMM_ONEDNN_H

#include "kernels/cpu/gemm.h"

struct onednn; /* engine, stream and the table of primitives */

struct onednn *onednn_open(void); /* NULL: oneDNN does not start here */
void onednn_close(struct onednn *onednn);

/* Computes one product; false when oneDNN has no brgemm kernel for it (nothing was done). */
bool onednn_gemm(struct onednn *onednn, const struct gemm *gemm, int threads);

void onednn_version(char *out, size_t bytes);
const char *onednn_isa(void); /* the widest instruction set it uses here */
/* It has AMX, faster than any vectors. */
bool onednn_has_amx(void);
/* AVX-512 is not capped (ONEDNN_MAX_CPU_ISA); with pairs: nor AVX512_BF16. */
bool onednn_allows(bool pairs);

#endif
