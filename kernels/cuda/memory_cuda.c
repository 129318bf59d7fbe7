#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/cuda_device.h"

static void count_memory(struct cuda_device *self, size_t taken, size_t given)
{
    self->head.info.memory_used += taken;
    self->head.info.memory_used -= given;
}

void *cuda_scratch(struct cuda_device *self, enum cuda_slot slot, size_t bytes)
{
    /* An eighth more and whole pages of the driver: sizes that follow the routing settle soon. */
    enum { PAGE = 2 << 20 };
    if (self->scratch[slot].bytes < bytes) {
        const size_t room = (bytes + bytes / 8 + PAGE - 1) / PAGE * PAGE;
        assert(!self->recording);
        cuda_check(self, cudaStreamSynchronize(self->stream), "cudaStreamSynchronize");
        cuda_check(self, cudaFree(self->scratch[slot].data), "cudaFree");
        count_memory(self, 0, self->scratch[slot].bytes);
        self->scratch[slot].data = NULL;
        self->scratch[slot].bytes = 0;
        self->generation++;
        if (cudaMalloc(&self->scratch[slot].data, room) != cudaSuccess) {
            fprintf(stderr,
                    "switchyard: cuda %d: out of device memory for %zu bytes of scratch of %s: use "
                    "a smaller train.micro_batch\n",
                    self->ordinal, room, self->op);
            exit(status_exit_code(STATUS_RESOURCE));
        }
        self->scratch[slot].bytes = room;
        count_memory(self, room, 0);
    }
    return self->scratch[slot].data;
}

void *cuda_memory_alloc(struct device *device, size_t bytes)
{
    struct cuda_device *self = cuda_begin(device, "memory_alloc");
    void *data = NULL;
    const cudaError_t error = cudaMalloc(&data, bytes > 0 ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError(); /* said by NULL */
        data = NULL;
    } else {
        cuda_check(self, error, "cudaMalloc");
        count_memory(self, bytes, 0);
        cuda_check(self, cudaMemsetAsync(data, 0, bytes, self->stream), "cudaMemsetAsync");
    }
    cuda_end(self);
    return data;
}

void cuda_memory_free(struct device *device, void *data, size_t bytes)
{
    struct cuda_device *self = cuda_begin(device, "memory_free");
    cuda_check(self, cudaFree(data), "cudaFree");
    count_memory(self, 0, data != NULL ? bytes : 0);
    cuda_end(self);
}

void cuda_zero(struct device *device, void *data, size_t bytes)
{
    struct cuda_device *self = cuda_begin(device, "zero");
    if (bytes > 0) {
        cuda_check(self, cudaMemsetAsync(data, 0, bytes, self->stream), "cudaMemsetAsync");
    }
    cuda_end(self);
}

void cuda_copy(struct device *device, void *to, const void *from, size_t bytes)
{
    struct cuda_device *self = cuda_begin(device, "copy");
    if (bytes > 0) {
        cuda_check(self, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, self->stream),
                   "cudaMemcpyAsync");
    }
    cuda_end(self);
}

/* Whether a part of the ring in [first, end) may still be read by a copy. */
static bool stage_busy(const struct cuda_stage *stage, size_t first, size_t end)
{
    for (int i = 0; i < stage->parts; i++) {
        const int part = (stage->oldest + i) % STAGE_PARTS;
        if (stage->part[part].first < end && first < stage->part[part].end) {
            return true;
        }
    }
    return false;
}

/* Copies `bytes` <= STAGE_MOST by way of a part of the ring, waiting for old copies only where the
 * ring is full. */
static void upload_part(struct cuda_device *self, char *to, const char *host, size_t bytes)
{
    struct cuda_stage *stage = &self->stage;
    const size_t first = stage->at + bytes > STAGE_BYTES ? 0 : stage->at, end = first + bytes;
    while (stage->parts == STAGE_PARTS || stage_busy(stage, first, end)) {
        cuda_check(self, cudaEventSynchronize(stage->part[stage->oldest].done), "upload");
        stage->oldest = (stage->oldest + 1) % STAGE_PARTS;
        stage->parts--;
    }
    const int part = (stage->oldest + stage->parts++) % STAGE_PARTS;
    if (stage->part[part].done == NULL) {
        cuda_check(self, cudaEventCreateWithFlags(&stage->part[part].done, cudaEventDisableTiming),
                   "cudaEventCreate");
    }
    stage->part[part].first = first;
    stage->part[part].end = end;
    stage->at = end;
    memcpy(stage->ring + first, host, bytes);
    cuda_check(
        self, cudaMemcpyAsync(to, stage->ring + first, bytes, cudaMemcpyHostToDevice, self->stream),
        "cudaMemcpyAsync");
    cuda_check(self, cudaEventRecord(stage->part[part].done, self->stream), "cudaEventRecord");
}

void cuda_upload(struct device *device, void *to, const void *host, size_t bytes)
{
    struct cuda_device *self = cuda_begin(device, "upload");
    assert(!self->recording);
    if (self->stage.ring == NULL && bytes > 0) {
        void *ring = NULL;
        cuda_check(self, cudaHostAlloc(&ring, STAGE_BYTES, cudaHostAllocDefault), "pinned memory");
        self->stage.ring = ring;
    }
    for (size_t at = 0; at < bytes; at += STAGE_MOST) {
        const size_t part = bytes - at < STAGE_MOST ? bytes - at : STAGE_MOST;
        upload_part(self, (char *)to + at, (const char *)host + at, part);
    }
    cuda_end(self);
}

void cuda_download(struct device *device, void *host, const void *from, size_t bytes)
{
    struct cuda_device *self = cuda_begin(device, "download");
    assert(!self->recording);
    if (bytes > 0) {
        cuda_check(self, cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, self->stream),
                   "cudaMemcpyAsync");
    }
    cuda_check(self, cudaStreamSynchronize(self->stream), "a kernel before it");
    cuda_end(self);
}

void *cuda_host_alloc(struct device *device, size_t bytes)
{
    struct cuda_device *self = cuda_begin(device, "host_alloc");
    void *data = NULL;
    const cudaError_t error = cudaHostAlloc(&data, bytes > 0 ? bytes : 1, cudaHostAllocDefault);
    if (error == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError(); /* said by NULL */
        data = NULL;
    } else {
        cuda_check(self, error, "pinned memory");
    }
    cuda_end(self);
    return data;
}

void cuda_host_free(struct device *device, void *data, size_t bytes)
{
    struct cuda_device *self = cuda_begin(device, "host_free");
    (void)bytes;
    cuda_check(self, cudaFreeHost(data), "cudaFreeHost");
    cuda_end(self);
}

/* The copy's own stream waits for the ops', never the other way: they go on. */
void cuda_download_begin(struct device *device, void *host, const void *from, size_t bytes)
{
    struct cuda_device *self = cuda_begin(device, "download_begin");
    assert(!self->recording);
    if (self->downloads.stream == NULL) {
        cuda_check(self, cudaStreamCreateWithFlags(&self->downloads.stream, cudaStreamNonBlocking),
                   "cudaStreamCreate");
        cuda_check(self, cudaEventCreateWithFlags(&self->downloads.called, cudaEventDisableTiming),
                   "cudaEventCreate");
    }
    if (bytes > 0) {
        cudaStream_t stream = self->downloads.stream;
        cuda_check(self, cudaEventRecord(self->downloads.called, self->stream), "cudaEventRecord");
        cuda_check(self, cudaStreamWaitEvent(stream, self->downloads.called, 0),
                   "cudaStreamWaitEvent");
        cuda_check(self, cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, stream),
                   "cudaMemcpyAsync");
    }
    cuda_end(self);
}

void cuda_download_wait(struct device *device)
{
    struct cuda_device *self = cuda_begin(device, "download_wait");
    if (self->downloads.stream != NULL) {
        cuda_check(self, cudaStreamSynchronize(self->downloads.stream), "a kernel before it");
    }
    cuda_end(self);
}

static void wait_for(struct cuda_device *self, cudaStream_t stream, cudaEvent_t event)
{
    cuda_check(self, cudaStreamWaitEvent(stream, event, 0), "cudaStreamWaitEvent");
}

static void mark(struct cuda_device *self, cudaEvent_t event, cudaStream_t stream)
{
    cuda_check(self, cudaEventRecord(event, stream), "cudaEventRecord");
}

static void open_event(struct cuda_device *self, cudaEvent_t *event)
{
    cuda_check(self, cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreate");
}

static void open_windows(struct cuda_device *self)
{
    if (self->windows.in != NULL) {
        return;
    }
    cuda_check(self, cudaStreamCreateWithFlags(&self->windows.in, cudaStreamNonBlocking),
               "cudaStreamCreate");
    cuda_check(self, cudaStreamCreateWithFlags(&self->windows.out, cudaStreamNonBlocking),
               "cudaStreamCreate");
    open_event(self, &self->windows.called);
    for (int i = 0; i < 2; i++) {
        open_event(self, &self->windows.ended[i]);
    }
    for (int w = 0; w < OPS_WINDOWS; w++) {
        open_event(self, &self->windows.here[w]);
        open_event(self, &self->windows.free[w]);
    }
    mark(self, self->windows.called, self->stream); /* fetches come after what was called */
    wait_for(self, self->windows.in, self->windows.called);
}

void cuda_fetch(struct device *device, int window, void *to, const void *host, size_t bytes)
{
    struct cuda_device *self = cuda_begin(device, "fetch");
    assert(!self->recording);
    open_windows(self);
    wait_for(self, self->windows.in, self->windows.free[window]);
    if (bytes > 0) {
        cuda_check(self, cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, self->windows.in),
                   "cudaMemcpyAsync");
    }
    mark(self, self->windows.here[window], self->windows.in);
    cuda_end(self);
}

void cuda_fetched(struct device *device, int window)
{
    struct cuda_device *self = cuda_begin(device, "fetched");
    open_windows(self);
    wait_for(self, self->stream, self->windows.here[window]);
    cuda_end(self);
}

/* The stream that brings back waits for the ops', never the other way: they go on. */
void cuda_put(struct device *device, int window, void *host, const void *from, size_t bytes)
{
    struct cuda_device *self = cuda_begin(device, "put");
    cudaStream_t out = NULL;
    assert(!self->recording);
    open_windows(self);
    out = self->windows.out;
    mark(self, self->windows.called, self->stream);
    wait_for(self, out, self->windows.called);
    if (bytes > 0) {
        cuda_check(self, cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, out),
                   "cudaMemcpyAsync");
    }
    mark(self, self->windows.free[window], out);
    cuda_end(self);
}

void cuda_window_settle(struct device *device)
{
    struct cuda_device *self = cuda_begin(device, "window_settle");
    if (self->windows.in != NULL) {
        cudaStream_t const streams[] = {self->windows.in, self->windows.out};
        for (int i = 0; i < 2; i++) {
            mark(self, self->windows.ended[i], streams[i]);
            wait_for(self, self->stream, self->windows.ended[i]);
        }
        mark(self, self->windows.called, self->stream);
        wait_for(self, self->windows.in, self->windows.called);
    }
    cuda_end(self);
}

void cuda_synchronize(struct device *device)
{
    struct cuda_device *self = cuda_begin(device, "synchronize");
    cuda_check(self, cudaStreamSynchronize(self->stream), "a kernel before it");
    cuda_end(self);
}

static struct cuda_graph *graph_of(struct cuda_device *self, uint64_t key)
{
    for (int i = 0; i < self->graph_count; i++) {
        if (self->graphs[i].key == key) {
            return &self->graphs[i];
        }
    }
    const size_t count = (size_t)self->graph_count + 1;
    struct cuda_graph *graphs = realloc(self->graphs, count * sizeof *graphs);
    if (graphs == NULL) {
        fprintf(stderr, "switchyard: out of memory\n");
        exit(status_exit_code(STATUS_RESOURCE));
    }
    self->graphs = graphs;
    graphs[self->graph_count] = (struct cuda_graph){.key = key, .generation = -1};
    return &graphs[self->graph_count++];
}

static void drop_graph(struct cuda_device *self, struct cuda_graph *graph)
{
    if (graph->exec != NULL) {
        cuda_check(self, cudaGraphExecDestroy(graph->exec), "cudaGraphExecDestroy");
        graph->exec = NULL;
    }
}

/* The first run of a key is an ordinary one, so that scratch grows and libraries choose their
 * kernels; the second is recorded. If scratch moves, by whatever op, both begin anew. */
bool cuda_graph_begin(struct device *device, uint64_t key)
{
    struct cuda_device *self = cuda_begin(device, "graph_begin");
    struct cuda_graph *graph = graph_of(self, key);
    const bool settled = graph->generation == self->generation;
    assert(self->graph == NULL);
    if (graph->exec != NULL && settled) {
        cuda_check(self, cudaGraphLaunch(graph->exec, self->stream), "cudaGraphLaunch");
        cuda_end(self);
        return false;
    }
    drop_graph(self, graph);
    self->graph = graph;
    self->recording = settled;
    if (settled) {
        cuda_check(self, cudaStreamBeginCapture(self->stream, cudaStreamCaptureModeThreadLocal),
                   "cudaStreamBeginCapture");
    }
    cuda_end(self);
    return true;
}

void cuda_graph_end(struct device *device)
{
    struct cuda_device *self = cuda_begin(device, "graph_end");
    struct cuda_graph *graph = self->graph;
    assert(graph != NULL);
    if (self->recording) {
        cudaGraph_t recorded = NULL;
        cuda_check(self, cudaStreamEndCapture(self->stream, &recorded), "cudaStreamEndCapture");
        cuda_check(self, cudaGraphInstantiate(&graph->exec, recorded, 0), "cudaGraphInstantiate");
        cuda_check(self, cudaGraphDestroy(recorded), "cudaGraphDestroy");
        cuda_check(self, cudaGraphLaunch(graph->exec, self->stream), "cudaGraphLaunch");
    }
    graph->generation = self->generation;
    self->graph = NULL;
    self->recording = false;
    cuda_end(self);
}

void cuda_graph_forget(struct device *device)
{
    struct cuda_device *self = cuda_begin(device, "graph_forget");
    assert(self->graph == NULL);
    if (self->graph_count > 0) {
        cuda_check(self, cudaStreamSynchronize(self->stream), "a kernel before it");
    }
    for (int i = 0; i < self->graph_count; i++) {
        drop_graph(self, &self->graphs[i]);
    }
    self->graph_count = 0;
    cuda_end(self);
}

void cuda_memory_close(struct cuda_device *self)
{
    for (int i = 0; i < self->graph_count; i++) {
        if (self->graphs[i].exec != NULL) {
            (void)cudaGraphExecDestroy(self->graphs[i].exec);
        }
    }
    free(self->graphs);
    free(self->list);
    for (int slot = 0; slot < CUDA_SLOTS; slot++) {
        (void)cudaFree(self->scratch[slot].data);
    }
    for (int part = 0; part < STAGE_PARTS; part++) {
        if (self->stage.part[part].done != NULL) {
            (void)cudaEventDestroy(self->stage.part[part].done);
        }
    }
    (void)cudaFreeHost(self->stage.ring);
    if (self->downloads.stream != NULL) {
        (void)cudaStreamDestroy(self->downloads.stream);
        (void)cudaEventDestroy(self->downloads.called);
    }
    if (self->windows.in != NULL) {
        (void)cudaStreamDestroy(self->windows.in);
        (void)cudaStreamDestroy(self->windows.out);
        (void)cudaEventDestroy(self->windows.called);
        for (int i = 0; i < 2; i++) {
            (void)cudaEventDestroy(self->windows.ended[i]);
        }
        for (int w = 0; w < OPS_WINDOWS; w++) {
            (void)cudaEventDestroy(self->windows.here[w]);
            (void)cudaEventDestroy(self->windows.free[w]);
        }
    }
}
