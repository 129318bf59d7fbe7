#include "emulator/stream.h"

#include "emulator/block.h"
#include "emulator/race.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { STREAMS_MAX = 256, POOL_CHUNK = 1 << 20, OTHERS_SECONDS = 30 };

struct stream_op {
    struct stream_op *next;
    bool (*step)(void *state);
    void *state;
    size_t bytes;
    uint64_t sequence; /* order of enqueueing, for the default stream's implicit ordering */
    const char *what;
    char race; /* what the host did before enqueueing */
};
struct CUstream_st {
    struct stream_op *head, *tail;
    bool blocking; /* orders with the default stream */
    bool used;
    int number;
    void *race_fiber;
    struct graph_capture *capture;
    char race; /* what the stream has done */
};
struct CUevent_st {
    uint64_t recorded, done;
    double time_ms;
    char race;
};

static struct CUstream_st streams[STREAMS_MAX]; /* 0: the default stream */
static uint64_t sequence;
static bool waits_for_others;
static struct CUstream_st *running;

/* ---- pool ---- */

static struct unit {
    struct unit *next;
} * pool[32];

static int pool_class(size_t bytes)
{
    int power = 6;
    while ((size_t)1 << power < bytes)
        power++;
    return power;
}

void *pool_take(size_t bytes)
{
    int power = pool_class(bytes);
    if (!pool[power]) {
        size_t size = (size_t)1 << power, chunk = size > POOL_CHUNK ? size : (size_t)POOL_CHUNK;
        char *p = (char *)mmap(nullptr, chunk, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                               -1, 0);
        if (p == MAP_FAILED) {
            perror("emulator: memory of a stream operation");
            exit(71);
        }
        for (size_t at = 0; at < chunk; at += size)
            pool_give(p + at, size);
    }
    struct unit *u = pool[power];
    pool[power] = u->next;
    return u;
}

void pool_give(void *p, size_t bytes)
{
    int power = pool_class(bytes);
    struct unit *u = (struct unit *)p;
    u->next = pool[power];
    pool[power] = u;
}

/* ---- what EMU_COUNTS=1 prints at the end ---- */

/* waits: of the host for the device, from the first graph on: before it, sizes settle. overtakes:
 * kernels that ran before a message between ranks that was enqueued earlier, as only kernels that
 * no event orders behind it can. */
static struct {
    int64_t waits, graphs, overtakes;
} counts;

__attribute__((destructor)) static void print_counts()
{
    const char *wanted = getenv("EMU_COUNTS");
    if (wanted && wanted[0] == '1')
        fprintf(stderr, "emulator: %lld waits, %lld graphs, %lld overtakes\n",
                (long long)counts.waits, (long long)counts.graphs, (long long)counts.overtakes);
}

void stream_count_graph()
{
    counts.graphs++;
}

/* ---- queues ---- */

static struct CUstream_st *stream_get(cudaStream_t stream)
{
    streams[0].used = streams[0].blocking = true;
    race_create(&streams[0].race_fiber); /* now: at its first operation it would know too much */
    if (!stream || stream == cudaStreamLegacy)
        return &streams[0];
    if (stream < streams || stream >= streams + STREAMS_MAX || !stream->used)
        emu_fail({"cudart", 0}, "not a stream, or destroyed");
    return stream;
}

void stream_push(cudaStream_t stream, const char *what, bool (*step)(void *state),
                 const void *state, size_t bytes)
{
    struct CUstream_st *s = stream_get(stream);
    if (s->capture) {
        graph_add(s->capture, s, what, step, state, bytes);
        return;
    }
    struct stream_op *op = (struct stream_op *)pool_take(sizeof *op);
    op->next = nullptr;
    op->step = step;
    op->state = pool_take(bytes);
    op->bytes = bytes;
    op->sequence = ++sequence;
    op->what = what;
    copy_bytes(op->state, state, bytes);
    race_release(&op->race);
    if (s->tail)
        s->tail->next = op;
    else
        s->head = op;
    s->tail = op;
}

/* The default stream waits for earlier work of blocking streams, and they for its. */
static bool in_order(const struct CUstream_st *s)
{
    for (const struct CUstream_st &other : streams)
        if (other.used && other.head && &other != s && other.head->sequence < s->head->sequence &&
            ((s == streams && other.blocking) || (&other == streams && s->blocking)))
            return false;
    return true;
}

static void acquire_implicit(const struct CUstream_st *s)
{
    for (const struct CUstream_st &other : streams)
        if (other.used && ((s == streams && other.blocking) || (&other == streams && s->blocking)))
            race_acquire(&other.race);
}

static bool launch_step(void *state);

static void count_overtake(const struct CUstream_st *s)
{
    for (const struct CUstream_st &other : streams)
        counts.overtakes += s->head->step == launch_step && other.used && other.head &&
                            other.head->sequence < s->head->sequence &&
                            strcmp(other.head->what, STREAM_MESSAGE) == 0;
}

static bool head_step(struct CUstream_st *s)
{
    struct stream_op *op = s->head;
    void *host = race_current();
    race_switch(&s->race_fiber);
    race_acquire(&op->race);
    acquire_implicit(s);
    running = s;
    bool done = op->step(op->state);
    running = nullptr;
    if (done)
        race_release(&s->race);
    race_switch(&host);
    if (!done)
        return false;
    count_overtake(s);
    s->head = op->next;
    if (!s->head)
        s->tail = nullptr;
    pool_give(op->state, op->bytes);
    pool_give(op, sizeof *op);
    return true;
}

/* Runs one operation of a random ready stream (seed 0: the one enqueued first). */
static bool step_one()
{
    struct CUstream_st *ready[STREAMS_MAX];
    int count = 0;
    for (struct CUstream_st &s : streams)
        if (s.used && s.head && in_order(&s))
            ready[count++] = &s;
    for (int i = 0; i < count - 1; i++) {
        int pick = i;
        if (emu_seed())
            pick = i + (int)(emu_random() % (uint64_t)(count - i));
        for (int j = i; j < count && !emu_seed(); j++)
            if (ready[j]->head->sequence < ready[pick]->head->sequence)
                pick = j;
        struct CUstream_st *other = ready[i];
        ready[i] = ready[pick];
        ready[pick] = other;
    }
    memory_open(true);
    for (int i = 0; i < count; i++)
        if (head_step(ready[i]))
            return true;
    return false;
}

void stream_waits_for_others()
{
    waits_for_others = true;
}

static void report_stuck(const char *what)
{
    fprintf(stderr, "emulator: DEADLOCK of streams: the host waits in %s\n", what);
    for (struct CUstream_st &s : streams)
        if (s.used && s.head)
            fprintf(stderr, "  stream %d is at %s\n", s.number, s.head->what);
    fflush(stderr);
    _exit(EMU_EXIT);
}

struct graph_capture *stream_capture(cudaStream_t stream)
{
    return stream_get(stream)->capture;
}

void stream_set_capture(cudaStream_t stream, struct graph_capture *capture)
{
    stream_get(stream)->capture = capture;
}

void stream_drain(bool (*done)(const void *argument), const void *argument, const char *what)
{
    for (const struct CUstream_st &s : streams)
        if (s.used && s.capture)
            emu_fail({"cudart", 0}, "%s while stream %d captures a graph", what, s.number);
    scheduler_seed_from_environment();
    counts.waits += counts.graphs > 0;
    if (running)
        emu_fail({"cudart", 0}, "%s called from a host function of a stream", what);
    time_t since = time(nullptr);
    while (!done(argument)) {
        waits_for_others = false;
        if (step_one()) {
            since = time(nullptr);
            continue;
        }
        if (!waits_for_others || time(nullptr) - since > OTHERS_SECONDS)
            report_stuck(what);
        usleep(50);
    }
    memory_open(false);
}

static bool all_empty(const void *)
{
    for (const struct CUstream_st &s : streams)
        if (s.used && s.head)
            return false;
    return true;
}

static bool stream_empty(const void *stream)
{
    return ((const struct CUstream_st *)stream)->head == nullptr;
}

void stream_synchronize_all()
{
    stream_drain(all_empty, nullptr, "cudaDeviceSynchronize");
    for (struct CUstream_st &s : streams)
        race_acquire(&s.race);
}

/* ---- kernels ---- */

/* The arguments follow it, as aligned as a tensor map wants to be. */
struct alignas(64) launch {
    struct emu_grid grid;
    void (*body)(void *);
};

static bool launch_step(void *state)
{
    struct launch *l = (struct launch *)state;
    emu_run_grid(&l->grid, l->body, l + 1);
    return true;
}

void emu_enqueue_grid(cudaStream_t stream, const struct emu_grid *grid, void (*body)(void *),
                      const void *argument, size_t bytes)
{
    struct launch *l = (struct launch *)pool_take(sizeof *l + bytes);
    l->grid = *grid;
    l->body = body;
    copy_bytes(l + 1, argument, bytes);
    stream_push(stream, grid->name, launch_step, l, sizeof *l + bytes);
    pool_give(l, sizeof *l + bytes);
}

/* ---- events ---- */

struct event_state {
    struct CUevent_st *event;
    uint64_t value;
};

/* Other threads may look (a watchdog), but only the first one runs operations. */
bool stream_thread()
{
    return syscall(SYS_gettid) == getpid();
}

static bool record_step(void *state)
{
    struct event_state *e = (struct event_state *)state;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    e->event->time_ms = (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
    __atomic_store_n(&e->event->done, e->value, __ATOMIC_RELEASE);
    race_release(&e->event->race);
    return true;
}

static bool wait_step(void *state)
{
    struct event_state *e = (struct event_state *)state;
    if (e->event->done < e->value)
        return false;
    race_acquire(&e->event->race);
    return true;
}

static bool event_reached(const void *state)
{
    const struct event_state *e = (const struct event_state *)state;
    return e->event->done >= e->value;
}

extern "C" {

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned)
{
    *event = (cudaEvent_t)pool_take(sizeof **event);
    (*event)->recorded = (*event)->done = 0;
    (*event)->time_ms = 0;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, 0);
}

/* NOTE: the memory is never reused: streams may still hold waits on it, which CUDA allows. */
cudaError_t cudaEventDestroy(cudaEvent_t)
{
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    if (graph_record(event, stream))
        return cudaSuccess;
    struct event_state e = {event, __atomic_add_fetch(&event->recorded, 1, __ATOMIC_RELEASE)};
    stream_push(stream, "cudaEventRecord", record_step, &e, sizeof e);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned)
{
    if (graph_wait(stream, event))
        return cudaSuccess;
    struct event_state e = {event, event->recorded};
    stream_push(stream, "cudaStreamWaitEvent", wait_step, &e, sizeof e);
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    struct event_state e = {event, event->recorded};
    stream_drain(event_reached, &e, "cudaEventSynchronize");
    race_acquire(&event->race);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    if (!stream_thread()) {
        uint64_t recorded = __atomic_load_n(&event->recorded, __ATOMIC_ACQUIRE);
        uint64_t done = __atomic_load_n(&event->done, __ATOMIC_ACQUIRE);
        return done < recorded ? cudaErrorNotReady : cudaSuccess;
    }
    scheduler_seed_from_environment();
    step_one(); /* polling makes progress */
    memory_open(false);
    if (event->done < event->recorded)
        return cudaErrorNotReady;
    race_acquire(&event->race);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    if (!start->recorded || !end->recorded)
        return cudaErrorInvalidResourceHandle;
    if (start->done < start->recorded || end->done < end->recorded)
        return cudaErrorNotReady;
    *ms = (float)(end->time_ms - start->time_ms);
    return cudaSuccess;
}

/* ---- streams ---- */

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int)
{
    stream_get(nullptr);
    for (int i = 1; i < STREAMS_MAX; i++)
        if (!streams[i].used) {
            streams[i].used = true;
            streams[i].number = i;
            race_create(&streams[i].race_fiber);
            streams[i].blocking = !(flags & cudaStreamNonBlocking);
            *stream = &streams[i];
            return cudaSuccess;
        }
    return cudaErrorMemoryAllocation;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags)
{
    return cudaStreamCreateWithPriority(stream, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return cudaStreamCreateWithPriority(stream, cudaStreamDefault, 0);
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    struct CUstream_st *s = stream_get(stream);
    stream_drain(stream_empty, s, "cudaStreamSynchronize");
    race_acquire(&s->race);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    cudaStreamSynchronize(stream); /* CUDA lets the work finish later; here it finishes now */
    stream->used = false;
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    struct CUstream_st *s = stream_get(stream);
    scheduler_seed_from_environment();
    step_one();
    memory_open(false);
    if (s->head)
        return cudaErrorNotReady;
    race_acquire(&s->race);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize()
{
    stream_synchronize_all();
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

struct host_call {
    cudaHostFn_t function;
    void *data;
};

static bool host_step(void *state)
{
    struct host_call *call = (struct host_call *)state;
    memory_open(false); /* host code, even here */
    call->function(call->data);
    memory_open(true);
    return true;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data)
{
    struct host_call call = {function, data};
    stream_push(stream, "cudaLaunchHostFunc", host_step, &call, sizeof call);
    return cudaSuccess;
}
}
