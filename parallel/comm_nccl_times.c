#include "parallel/comm_nccl_group.h"

static void open_events(struct nccl_group *g, struct nccl_times *times)
{
    for (int i = 0; i < NCCL_TIMED && times->from[NCCL_TIMED - 1] == NULL; i++) {
        nccl_cuda(g, cudaEventCreate(&times->to[i]), "cudaEventCreate");
        nccl_cuda(g, cudaEventCreate(&times->from[i]), "cudaEventCreate");
    }
}

/* Adds up what has ended, in the order it began; `wait`: all of it. */
static void read(struct nccl_group *g, struct nccl_times *times, bool wait)
{
    for (; times->first < times->next; times->first++) {
        const uint64_t i = times->first % NCCL_TIMED;
        float ms = 0;
        const cudaError_t state =
            wait ? cudaEventSynchronize(times->to[i]) : cudaEventQuery(times->to[i]);
        if (state == cudaErrorNotReady) {
            return;
        }
        nccl_cuda(g, state, "cudaEventQuery");
        nccl_cuda(g, cudaEventElapsedTime(&ms, times->from[i], times->to[i]),
                  "cudaEventElapsedTime");
        times->ms += (double)ms;
    }
}

void nccl_times_from(struct nccl_group *g, enum nccl_time kind, cudaStream_t stream, bool recording)
{
    struct nccl_times *times = &g->times[kind];
    enum cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    if (!recording) {
        return;
    }
    nccl_cuda(g, cudaStreamIsCapturing(stream, &capture), "cudaStreamIsCapturing");
    if (capture == cudaStreamCaptureStatusNone) {
        open_events(g, times);
        read(g, times, false);
    }
    times->open = capture == cudaStreamCaptureStatusNone && times->next - times->first < NCCL_TIMED;
    times->lost += !times->open;
    if (times->open) {
        nccl_cuda(g, cudaEventRecord(times->from[times->next % NCCL_TIMED], stream),
                  "cudaEventRecord");
    }
}

void nccl_times_to(struct nccl_group *g, enum nccl_time kind, cudaStream_t stream)
{
    struct nccl_times *times = &g->times[kind];
    if (times->open) {
        nccl_cuda(g, cudaEventRecord(times->to[times->next++ % NCCL_TIMED], stream),
                  "cudaEventRecord");
        times->open = false;
    }
}

bool nccl_times_read(struct nccl_group *g, double ms[NCCL_TIMES])
{
    int64_t lost = 0;
    for (int kind = 0; kind < NCCL_TIMES; kind++) {
        read(g, &g->times[kind], true);
        ms[kind] = g->times[kind].ms;
        lost += g->times[kind].lost;
    }
    return lost == 0;
}

void nccl_times_free(struct nccl_group *g)
{
    for (int kind = 0; kind < NCCL_TIMES; kind++) {
        for (int i = 0; i < NCCL_TIMED; i++) {
            if (g->times[kind].from[i] != NULL) {
                (void)cudaEventDestroy(g->times[kind].from[i]);
            }
            if (g->times[kind].to[i] != NULL) {
                (void)cudaEventDestroy(g->times[kind].to[i]);
            }
        }
    }
}
