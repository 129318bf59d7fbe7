/* CUDA graphs: capture keeps operations and the events between them; a launch is one operation of
 * its stream that runs the nodes in a seeded order the events allow. All run as that stream, so the
 * race check sees no race between branches; a missing event shows as a wrong result under some
 * seed. */
#include "emulator/block.h"
#include "emulator/stream.h"

enum { NODES_MAX = 4096, CAPTURES_MAX = 16, EVENTS_MAX = 256 };

enum node_kind { NODE_WORK, NODE_RECORD, NODE_WAIT };

struct node {
    enum node_kind kind;
    cudaStream_t lane; /* nodes of one lane run in order */
    int record;        /* of a wait: the node it waits for */
    bool (*step)(void *state);
    void *state;
    size_t bytes;
    bool done;
};

struct graph_capture {
    cudaStream_t origin;
    cudaStream_t joined[CAPTURES_MAX]; /* origin first */
    int joined_count;
    struct CUgraph_st *graph;
    struct {
        cudaEvent_t event;
        int record;
    } events[EVENTS_MAX];
    int event_count;
};
struct CUgraph_st {
    struct node nodes[NODES_MAX];
    int count, left; /* left: not yet run by the present launch */
    void *launch;
};

static struct graph_capture *captures[CAPTURES_MAX];

static struct node *node_new(struct CUgraph_st *graph, enum node_kind kind, cudaStream_t lane)
{
    if (graph->count == NODES_MAX)
        emu_fail({"cudart", 0}, "a graph of more than %d nodes", NODES_MAX);
    struct node *n = &graph->nodes[graph->count++];
    *n = {kind, lane, -1, nullptr, nullptr, 0, false};
    return n;
}

void graph_add(struct graph_capture *capture, cudaStream_t stream, const char *,
               bool (*step)(void *), const void *state, size_t bytes)
{
    struct node *n = node_new(capture->graph, NODE_WORK, stream);
    n->step = step;
    n->state = pool_take(bytes);
    n->bytes = bytes;
    copy_bytes(n->state, state, bytes);
}

bool graph_record(cudaEvent_t event, cudaStream_t stream)
{
    struct graph_capture *capture = stream_capture(stream);
    if (!capture)
        return false;
    node_new(capture->graph, NODE_RECORD, stream);
    int at = 0;
    while (at < capture->event_count && capture->events[at].event != event)
        at++;
    if (at == EVENTS_MAX)
        emu_fail({"cudart", 0}, "more than %d events in one capture", EVENTS_MAX);
    if (at == capture->event_count)
        capture->event_count++;
    capture->events[at] = {event, capture->graph->count - 1};
    return true;
}

/* A stream that waits for a captured event joins the capture. */
bool graph_wait(cudaStream_t stream, cudaEvent_t event)
{
    for (struct graph_capture *capture : captures)
        for (int i = 0; capture && i < capture->event_count; i++) {
            if (capture->events[i].event != event)
                continue;
            if (!stream_capture(stream)) {
                if (capture->joined_count == CAPTURES_MAX)
                    emu_fail({"cudart", 0}, "more than %d streams in one capture", CAPTURES_MAX);
                capture->joined[capture->joined_count++] = stream;
                stream_set_capture(stream, capture);
            }
            node_new(capture->graph, NODE_WAIT, stream)->record = capture->events[i].record;
            return true;
        }
    if (stream_capture(stream))
        emu_fail({"cudart", 0},
                 "a capturing stream waits for an event from outside of the capture");
    return false;
}

/* The first node of each lane that has not run may, if it is no wait for one that has not. */
static bool node_ready(const struct CUgraph_st *graph, int at)
{
    const struct node *n = &graph->nodes[at];
    for (int i = 0; i < at; i++)
        if (graph->nodes[i].lane == n->lane && !graph->nodes[i].done)
            return false;
    return !n->done && (n->kind != NODE_WAIT || graph->nodes[n->record].done);
}

/* A random node among those that may run and can go on (seed 0: the first captured). */
static bool graph_step_one(struct CUgraph_st *graph)
{
    int ready[NODES_MAX], count = 0;
    for (int i = 0; i < graph->count; i++)
        if (node_ready(graph, i))
            ready[count++] = i;
    if (count == 0)
        emu_fail({"cudart", 0}, "a graph whose nodes wait for each other");
    for (int left = count; left > 0; left--) {
        int pick = emu_seed() ? (int)(emu_random() % (uint64_t)left) : 0;
        struct node *n = &graph->nodes[ready[pick]];
        if (n->kind != NODE_WORK || n->step(n->state))
            return n->done = true;
        for (int i = pick; i < left - 1; i++)
            ready[i] = ready[i + 1];
    }
    return false; /* all of them wait for other ranks */
}

/* Launches of one graph take turns: `launch` has it from its first node to its last. */
static bool graph_step(void *state)
{
    struct CUgraph_st *graph = *(struct CUgraph_st **)state;
    if (graph->launch && graph->launch != state)
        return false;
    graph->launch = state;
    for (; graph->left > 0; graph->left--)
        if (!graph_step_one(graph))
            return false;
    for (int i = 0; i < graph->count; i++)
        graph->nodes[i].done = false;
    graph->left = graph->count;
    graph->launch = nullptr;
    return true;
}

extern "C" {

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode)
{
    if (!stream || stream_capture(stream))
        return cudaErrorStreamCaptureUnsupported;
    for (struct graph_capture *&slot : captures)
        if (!slot) {
            slot = (struct graph_capture *)pool_take(sizeof *slot);
            slot->graph = (struct CUgraph_st *)pool_take(sizeof *slot->graph);
            slot->graph->count = slot->event_count = 0;
            slot->origin = slot->joined[0] = stream;
            slot->joined_count = 1;
            stream_set_capture(stream, slot);
            return cudaSuccess;
        }
    return cudaErrorMemoryAllocation;
}

/* Every joined stream must have been waited for by the origin. */
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    struct graph_capture *capture = stream_capture(stream);
    *graph = nullptr;
    if (!capture || capture->origin != stream)
        return cudaErrorStreamCaptureUnmatched;
    struct CUgraph_st *g = capture->graph;
    bool joined = true;
    for (int i = 0; i < capture->joined_count; i++) {
        int last = -1;
        for (int k = 0; k < g->count; k++)
            if (g->nodes[k].lane == capture->joined[i])
                last = k;
        bool waited = i == 0 || last < 0;
        for (int k = last; k < g->count && !waited; k++)
            waited = g->nodes[k].kind == NODE_WAIT && g->nodes[k].record == last;
        joined = joined && waited;
        stream_set_capture(capture->joined[i], nullptr);
    }
    for (struct graph_capture *&slot : captures)
        if (slot == capture)
            slot = nullptr;
    pool_give(capture, sizeof *capture);
    if (!joined)
        return cudaErrorStreamCaptureUnjoined;
    g->left = g->count;
    g->launch = nullptr;
    *graph = g;
    return cudaSuccess;
}

/* Calls that capture modes forbid are not modelled. */
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *mode)
{
    static thread_local enum cudaStreamCaptureMode own = cudaStreamCaptureModeGlobal;
    enum cudaStreamCaptureMode before = own;
    own = *mode;
    *mode = before;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    *status = stream_capture(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

/* The executable graph is the graph: destroying one leaves the other usable, so neither is freed.
 */
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    *exec = (cudaGraphExec_t)graph;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    stream_count_graph();
    stream_push(stream, "cudaGraphLaunch", graph_step, &exec, sizeof exec);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t)
{
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t)
{
    return cudaSuccess;
}
}
