/* Two streams, pinned host buffers, events between them: upload, compute, download, three rounds.
 */
#include "check.h"
#include "samples/samples.h"

struct pipeline {
    cudaStream_t copy, compute;
    cudaEvent_t uploaded, computed, downloaded;
    float *host_in, *host_out, *in, *out;
};

static void count_up(void *counter)
{
    ++*(int *)counter;
}

static bool round_trip(struct pipeline *p, int n, int number)
{
    for (int i = 0; i < n; i++)
        p->host_in[i] = (float)(i + 1000 * number);
    cudaMemcpyAsync(p->in, p->host_in, (size_t)n * 4, cudaMemcpyHostToDevice, p->copy);
    cudaEventRecord(p->uploaded, p->copy);
#ifdef MUTANT_BUFFER_REUSED
    for (int i = 0; i < n; i++)
        p->host_in[i] = -1;
#endif
#ifndef MUTANT_NO_WAIT_EVENT
    cudaStreamWaitEvent(p->compute, p->uploaded, 0);
#endif
    launch_affine(p->compute, p->in, p->out, n, 2.0f, 1.0f);
    cudaEventRecord(p->computed, p->compute);
    cudaStreamWaitEvent(p->copy, p->computed, 0);
    cudaMemcpyAsync(p->host_out, p->out, (size_t)n * 4, cudaMemcpyDeviceToHost, p->copy);
    cudaEventRecord(p->downloaded, p->copy);
#ifndef MUTANT_NO_HOST_WAIT
    cudaEventSynchronize(p->downloaded);
#endif
#ifdef MUTANT_HOST_TOUCHES_DEVICE
    return p->out[0] == 1;
#endif
    for (int i = 0; i < n; i++)
        if (p->host_out[i] != (float)(2 * (i + 1000 * number) + 1)) {
            printf("streams: WRONG at %d of round %d: %g\n", i, number, (double)p->host_out[i]);
            return false;
        }
    return true;
}

/* A captured fork and join, launched twice: x = 2 x + 1 on one branch, y = 3 on the other, x = x +
 * y. */
static bool graph_runs(struct pipeline *p)
{
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    std::vector<float> two = {5, 7};
    device_vector<float> x(two), y(two);
    must(cudaStreamBeginCapture(p->compute, cudaStreamCaptureModeThreadLocal), "capture");
    cudaEventRecord(p->uploaded, p->compute);
    cudaStreamWaitEvent(p->copy, p->uploaded, 0);
    launch_affine(p->compute, x.data, x.data, 1, 2.0f, 1.0f);
    launch_affine(p->copy, y.data, x.data + 1, 1, 0.0f, 3.0f);
#ifndef MUTANT_NO_GRAPH_JOIN
    cudaEventRecord(p->computed, p->copy);
    cudaStreamWaitEvent(p->compute, p->computed, 0);
#endif
    launch_affine(p->compute, x.data + 1, y.data, 1, 1.0f, 10.0f);
    cudaError_t error = cudaStreamEndCapture(p->compute, &graph);
    if (error != cudaSuccess) {
        printf("WRONG: cudaStreamEndCapture: %d\n", (int)error);
        return false;
    }
    must(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    cudaGraphLaunch(exec, p->compute);
    cudaGraphLaunch(exec, p->compute);
    cudaStreamSynchronize(p->compute);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return x.get()[0] == 23 && x.get()[1] == 3 && y.get()[0] == 13;
}

static bool test()
{
    const int n = 700;
    struct pipeline p;
    int count = 0, total = -1;
    float ms = -1;
    must(cudaStreamCreateWithFlags(&p.copy, cudaStreamNonBlocking), "stream");
    must(cudaStreamCreateWithPriority(&p.compute, cudaStreamNonBlocking, -1), "stream");
    for (cudaEvent_t *e : {&p.uploaded, &p.computed, &p.downloaded})
        must(cudaEventCreateWithFlags(e, cudaEventDisableTiming), "event");
    must(cudaMallocHost((void **)&p.host_in, n * 4), "cudaMallocHost");
    must(cudaMallocHost((void **)&p.host_out, n * 4), "cudaMallocHost");
    must(cudaMalloc((void **)&p.in, n * 4), "cudaMalloc");
    must(cudaMalloc((void **)&p.out, n * 4), "cudaMalloc");
    bool right = true;
    for (int i = 0; i < 3 && right; i++)
        right = round_trip(&p, n, i);
    right = right && graph_runs(&p);
    cudaLaunchHostFunc(p.compute, count_up, &count);
    cudaStreamSynchronize(p.compute);
    while (cudaStreamQuery(p.copy) == cudaErrorNotReady)
        continue;
    must(cudaEventElapsedTime(&ms, p.uploaded, p.downloaded), "cudaEventElapsedTime");
    /* The default stream waits for a blocking stream, and the host for the default stream. */
    cudaStream_t blocking;
    must(cudaStreamCreate(&blocking), "stream");
    cudaMemsetAsync(p.in, 0, 4, blocking);
    cudaMemcpy(&total, p.in, 4, cudaMemcpyDeviceToHost);
    right = right && count == 1 && total == 0 && ms >= 0;
    cudaFree(p.in);
    cudaFree(p.out);
    cudaFreeHost(p.host_in);
    cudaFreeHost(p.host_out);
    for (cudaStream_t s : {p.copy, p.compute, blocking})
        cudaStreamDestroy(s);
    return right;
}

int main(int argc, char **argv)
{
    return for_seeds(argc, argv, test);
}
