/* stream: deferred in-order queues, the heart of the emulated CUDA runtime.
 *
 * Nothing runs until the host waits (a synchronising call, a query, a blocking copy, a free); then
 * streams whose next operation is ready take turns in seeded order. So a host that reads too early
 * sees old data, one that reuses a buffer too early spoils it, and a missing cudaStreamWaitEvent
 * gives wrong results under some seed and a race report under every one.
 * Device memory is inaccessible except while operations run.
 */
#ifndef EMULATOR_STREAM_H
#define EMULATOR_STREAM_H

#include "emulator/emulator.h"

/* Memory that ThreadSanitizer does not know (its malloc would make races of our own frees). */
void *pool_take(size_t bytes);
void pool_give(void *p, size_t bytes);

/* step(state) does the operation, on a copy of `state`. false: cannot go on yet, ask again. */
void stream_push(cudaStream_t stream, const char *what, bool (*step)(void *state),
                 const void *state, size_t bytes);
static const char *const STREAM_MESSAGE =
    "an NCCL operation"; /* `what` of messages between ranks */
void stream_count_graph();
/* Operations of a capturing stream go to its graph instead (graph.cpp). NULL: it captures nothing.
 */
struct graph_capture;
struct graph_capture *stream_capture(cudaStream_t stream);
void stream_set_capture(cudaStream_t stream, struct graph_capture *capture);
void graph_add(struct graph_capture *capture, cudaStream_t stream, const char *what,
               bool (*step)(void *state), const void *state, size_t bytes);
/* Events recorded and waited for during a capture order its nodes. False: the stream captures
 * nothing. */
bool graph_record(cudaEvent_t event, cudaStream_t stream);
bool graph_wait(cudaStream_t stream, cudaEvent_t event);

/* An operation that waits for other ranks is not a deadlock. Called by its step. */
void stream_waits_for_others();
/* Runs operations until done(argument). */
void stream_drain(bool (*done)(const void *argument), const void *argument, const char *what);
void stream_synchronize_all();
int stream_device();  /* of cudaSetDevice */
bool stream_thread(); /* whether this is the thread that runs operations */

/* memory.cpp */
void memory_open(bool open); /* device memory readable and writable, or not at all */
bool memory_is_device(const void *p);
/* Reports a device range that is not inside one allocation. */
void memory_check(const void *p, size_t bytes, const char *what);

#endif
