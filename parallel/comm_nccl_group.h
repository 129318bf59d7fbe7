/* comm_nccl_group: what the files of the NCCL wire (comm_nccl*.c) share: a group's state, the end
 * of the job, the watchdog, and how long operations took.
 *
 * The watchdog, a thread per group, reads NCCL's errors and each operation's end, and ends the rank
 * with one line when something fails or nothing moves. Operations inside a CUDA graph are not
 * followed one by one; what comes after the graph is.
 */
#ifndef PARALLEL_COMM_NCCL_GROUP_H
#define PARALLEL_COMM_NCCL_GROUP_H

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <pthread.h>
#include <stdatomic.h>

#include "parallel/transports.h"

enum { NCCL_POLL_MS = 100, NCCL_FOLLOWED = 256, NCCL_TIMED = 256 };

/* Filled by library_open. */
struct nccl {
    ncclResult_t (*version)(int *);
    ncclResult_t (*unique_id)(ncclUniqueId *);
    ncclResult_t (*init)(ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *);
    ncclResult_t (*finalize)(ncclComm_t);
    ncclResult_t (*destroy)(ncclComm_t);
    ncclResult_t (*abort)(ncclComm_t);
    ncclResult_t (*async_error)(ncclComm_t, ncclResult_t *);
    const char *(*error_string)(ncclResult_t);
    const char *(*last_error)(ncclComm_t);
    ncclResult_t (*group_start)(void);
    ncclResult_t (*group_end)(void);
    ncclResult_t (*all_reduce)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t,
                               ncclComm_t, cudaStream_t);
    ncclResult_t (*reduce_scatter)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t,
                                   ncclComm_t, cudaStream_t);
    ncclResult_t (*reduce)(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, int,
                           ncclComm_t, cudaStream_t);
    ncclResult_t (*all_gather)(const void *, void *, size_t, ncclDataType_t, ncclComm_t,
                               cudaStream_t);
    ncclResult_t (*send)(const void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
    ncclResult_t (*recv)(void *, size_t, ncclDataType_t, int, ncclComm_t, cudaStream_t);
};

/* An operation the watchdog follows: until `done` is reached. */
struct nccl_followed {
    cudaEvent_t done; /* owned */
    const char *what;
    uint64_t number; /* of the group's operations, from 1 */
    size_t bytes;    /* this rank hands in */
    double issued;   /* seconds */
};

/* Times by a pair of events each, while a trace is recorded (spans.h). */
struct nccl_times {
    cudaEvent_t from[NCCL_TIMED], to[NCCL_TIMED]; /* owned; made at the first use */
    uint64_t first, next; /* [first, next) of them, modulo NCCL_TIMED, are not read yet */
    bool open;            /* from is recorded, to is not */
    double ms;            /* of those that were read */
    int64_t lost;         /* in a graph, or too many at once */
};
enum nccl_time { NCCL_RUNS, NCCL_WAITS, NCCL_TIMES }; /* operations; the compute stream for them */

struct nccl_group {
    struct nccl nccl;
    void *library; /* owned */
    ncclComm_t comm;
    cudaStream_t compute, stream; /* borrowed; owned */
    cudaEvent_t ready, end;       /* owned: compute has come here; unfollowed operation done */
    cudaEvent_t captured;         /* owned: as end, in captures alone */
    cudaEvent_t started;          /* end of the last operation, until finish; borrowed; or NULL */
    int device, hang_seconds;
    int rank, size, world_rank;
    char label[160];  /* name and members, for messages */
    const char *what; /* the operation being issued */
    uint64_t number;
    size_t bytes;
    struct nccl_times times[NCCL_TIMES];
    /* the watchdog's, behind mutex */
    pthread_t thread;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    bool watched, stop;
    struct nccl_followed
        ring[NCCL_FOLLOWED]; /* [first, next) of them, modulo NCCL_FOLLOWED, are pending */
    uint64_t first, next;
    double moved; /* when the last of them ended */
    atomic_flag failing;
};

/* ---- comm_nccl_library.c ---- */

/* Opens NCCL. Errors: STATUS_RESOURCE it is not there, or too old. */
enum status nccl_load(struct nccl *nccl, void **library) __attribute__((warn_unused_result));

/* ---- comm_nccl_watch.c ---- */

double nccl_seconds(void); /* of a monotonic clock */
void nccl_sleep_ms(long ms);
/* Says why and ends this process; the launcher ends the others. From any thread. */
_Noreturn void nccl_fail(struct nccl_group *g, enum status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
const char *nccl_explain(struct nccl_group *g, ncclResult_t result);
void nccl_cuda(struct nccl_group *g, cudaError_t error, const char *call); /* fails for an error */
/* Errors: STATUS_RESOURCE. */
enum status nccl_watch_start(struct nccl_group *g) __attribute__((warn_unused_result));
void nccl_watch_stop(struct nccl_group *g); /* nothing where it was not started */

/* ---- comm_nccl_times.c ---- */

/* A time begins here on the stream, if `recording` and the stream is not captured; it ends at the
 * next nccl_times_to of its kind. */
void nccl_times_from(struct nccl_group *g, enum nccl_time kind, cudaStream_t stream,
                     bool recording);
void nccl_times_to(struct nccl_group *g, enum nccl_time kind, cudaStream_t stream);
/* Waits for the device. ms[NCCL_TIMES] so far; false: some were lost. */
bool nccl_times_read(struct nccl_group *g, double ms[NCCL_TIMES]);
void nccl_times_free(struct nccl_group *g);

#endif
