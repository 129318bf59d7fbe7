/* comm_device_ functions on memory of an emulated GPU per rank: by NCCL and staged, in groups of
 * all and of halves, in a graph; what is refused; how a hang and a failure end. Arguments: seeds.
 * COMM_CASE in the environment: shared, missing, hang or fails instead; no_ready, no_done or
 * no_turn: with a bug. */
#include <cuda_runtime_api.h>
#include <mpi.h>
#include <nccl.h>
#include <time.h>

#include "kernels/device.h"
#include "parallel/activity.h"
#include "parallel/device_checks.h"
#include "parallel/mesh.h"
#include "parallel/transports.h"

void emu_set_seed(uint64_t seed);

/* The least a device needs here. */
struct device {
    struct ops ops;
    cudaStream_t stream;
};
static struct device gpu;

static void must(cudaError_t error)
{
    if (error != cudaSuccess) {
        fprintf(stderr, "WRONG: %s\n", cudaGetErrorString(error));
        exit(1);
    }
}

/* The linker gives the wire this one (--wrap). COMM_CASE no_ready, no_done: a bug of it, that one
 * of the two edges between its stream and the device's is missing; no_turn: that to the group
 * before it, which is the second wait of a stream in a row. */
cudaError_t __real_cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t __wrap_cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t __wrap_cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    static cudaStream_t last;
    const char *which = getenv("COMM_CASE");
    const bool own = stream == gpu.stream, again = stream == last;
    last = stream;
    if (which != NULL && strcmp(which, "no_turn") == 0 && again && !own) {
        return cudaSuccess;
    }
    if (which != NULL && strcmp(which, own ? "no_done" : "no_ready") == 0) {
        return cudaSuccess;
    }
    return __real_cudaStreamWaitEvent(stream, event, flags);
}

static void upload(struct device *device, void *to, const void *host, size_t bytes)
{
    must(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, device->stream));
    must(cudaStreamSynchronize(device->stream));
}

static void download(struct device *device, void *host, const void *from, size_t bytes)
{
    must(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, device->stream));
    must(cudaStreamSynchronize(device->stream));
}

static void copy(struct device *device, void *to, const void *from, size_t bytes)
{
    must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, device->stream));
}

const struct ops *device_ops(const struct device *device)
{
    return &device->ops;
}

void *device_stream(const struct device *device)
{
    return device->stream;
}

static void *take(size_t bytes)
{
    void *memory = NULL;
    must(cudaMalloc(&memory, bytes));
    return memory;
}

static void give(void *memory)
{
    must(cudaFree(memory));
}

/* Nothing waits but `get`: what the wire does not order goes wrong under some seed. The host's
 * bytes are kept until then. */
static void put(void *to, const void *host, size_t bytes)
{
    upload(&gpu, to, host, bytes);
}

static void get(void *host, const void *from, size_t bytes)
{
    download(&gpu, host, from, bytes);
}

static struct rig rig_of(struct comm *world, struct comm *group)
{
    return (struct rig){world, group, take, give, put, get};
}

/* Operations in a row with no wait between them, each needing the one before: some of the device's
 * own, some of the wire. */
static void check_chain(struct comm *world, struct comm *group)
{
    enum { N = 96 };
    const struct rig rig = rig_of(world, group);
    const int size = group->size;
    float *x = ranks_memory(world, (size_t)(N * size) * sizeof *x);
    float *expected = ranks_memory(world, (size_t)(N * size) * sizeof *x);
    const size_t part = N * sizeof *x, all = part * (size_t)size;
    for (int i = 0; i < N * size; i++) {
        x[i] = (float)(i + group->rank);
        expected[i] = (float)(size * i + size * (size - 1) / 2) * (float)size;
    }
    unsigned char *input = device_copy(&rig, x, all), *a = device_take(&rig, all),
                  *b = device_take(&rig, part), *c = device_take(&rig, all),
                  *d = device_take(&rig, all), *junk = device_take(&rig, all);
    for (int again = 0; again < 3; again++) {
        copy(&gpu, a, junk, all);
        copy(&gpu, a, input, all);
        comm_device_reduce_scatter(group, b, a, N, DTYPE_F32);
        comm_device_all_gather(group, c, b, part);
        comm_device_all_to_all_fixed(group, d, c, N, sizeof *x); /* block `rank` from everyone */
        comm_device_all_to_all_fixed(group, c, d, N, sizeof *x); /* and back */
        comm_device_all_reduce(group, c, N * size, DTYPE_F32, REDUCE_SUM);
        device_expect(&rig, "chain", c, expected, all);
    }
    device_give(&rig, junk);
    device_give(&rig, input);
    device_give(&rig, a);
    device_give(&rig, b);
    device_give(&rig, c);
    device_give(&rig, d);
    free(x);
    free(expected);
}

/* The same operations, captured once and launched three times on changing data. */
static void check_graph(struct comm *world, struct comm *group)
{
    enum { N = 40 };
    const struct rig rig = rig_of(world, group);
    const size_t part = N * sizeof(float), all = part * (size_t)group->size;
    float *x = ranks_memory(world, all), *expected = ranks_memory(world, all);
    unsigned char *a = device_copy(&rig, x, all), *b = device_take(&rig, all);
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    must(cudaStreamBeginCapture(gpu.stream, cudaStreamCaptureModeGlobal));
    comm_device_all_to_all_fixed(group, b, a, N, sizeof *x);
    comm_device_all_reduce(group, b, N * group->size, DTYPE_F32, REDUCE_SUM);
    must(cudaStreamEndCapture(gpu.stream, &graph));
    must(cudaGraphInstantiate(&exec, graph, 0));
    for (int launch = 0; launch < 3; launch++) {
        for (int r = 0; r < group->size; r++) {
            for (int i = 0; i < N; i++) {
                x[r * N + i] = (float)(100 * launch + 10 * group->rank + r + i);
                expected[r * N + i] = 0;
                for (int to = 0; to < group->size; to++) { /* rank `to` got it from rank r */
                    expected[r * N + i] += (float)(100 * launch + 10 * r + to + i);
                }
            }
        }
        rig.put(a, x, all);
        must(cudaGraphLaunch(exec, gpu.stream));
        device_expect(&rig, "graph", b, expected, all);
        check_all_reduce(&rig, 9, DTYPE_F64, REDUCE_SUM); /* beside the graph */
    }
    must(cudaGraphExecDestroy(exec));
    must(cudaGraphDestroy(graph));
    device_give(&rig, a);
    device_give(&rig, b);
    free(x);
    free(expected);
}

/* Between start and finish the device's own operations go on: the last rank takes part only when
 * the others have waited for a copy that they enqueued after their start. */
static void check_beside(struct comm *world, struct comm *group, bool ring)
{
    enum { N = 50 };
    const struct rig rig = rig_of(world, group);
    const bool late = group->rank == group->size - 1;
    const size_t part = N * sizeof(float), all = part * (size_t)group->size;
    float *x = ranks_memory(world, all), *expected = ranks_memory(world, all);
    for (int i = 0; i < N * group->size; i++) {
        x[i] = (float)(1000 * group->rank + i);
        expected[i] = ring ? (float)(1000 * ((group->rank + group->size - 1) % group->size) + i)
                           : (float)(1000 * (i / N) + group->rank * N + i % N);
    }
    unsigned char *a = device_copy(&rig, x, all), *b = device_take(&rig, all),
                  *c = device_take(&rig, all);
    cudaEvent_t copied;
    must(cudaEventCreateWithFlags(&copied, cudaEventDisableTiming));
    if (late) {
        comm_barrier(group);
    }
    if (ring) {
        comm_device_pass_start(group, "pass", b, a, all);
    } else {
        comm_device_all_to_all_fixed_start(group, b, a, N, sizeof *x);
    }
    copy(&gpu, c, a, all);
    must(cudaEventRecord(copied, gpu.stream));
    if (!late) {
        must(cudaEventSynchronize(copied));
        comm_barrier(group);
    }
    comm_device_finish(group);
    device_expect(&rig, "beside", b, expected, all);
    device_expect(&rig, "beside", c, x, all);
    must(cudaEventDestroy(copied));
    device_give(&rig, a);
    device_give(&rig, b);
    device_give(&rig, c);
    free(x);
    free(expected);
}

/* What is marked goes on beside its own group's operations and those of others; these come behind
 * it, so that what they give says that it has ended; and wait waits for it. */
static void check_marks(struct comm *world, const char *kind)
{
    enum { N = 96, BEFORE = 9 };
    struct comm one = {0}, two = {0};
    comm_split(world, 0, world->rank, &one);
    comm_split(world, 0, -world->rank, &two);
    CHECK_EQUAL(world, comm_attach(&one, &gpu, kind), STATUS_OK);
    CHECK_EQUAL(world, comm_attach(&two, &gpu, kind), STATUS_OK);
    const struct rig rig = rig_of(world, &one);
    const size_t part = N * sizeof(float), all = part * (size_t)one.size;
    float *x = ranks_memory(world, all), *gathered[2];
    for (int g = 0; g < 2; g++) {
        const struct comm *comm = g == 0 ? &one : &two;
        gathered[g] = ranks_memory(world, all);
        for (int i = 0; i < N * comm->size; i++) {
            const int from = g == 0 ? i / N : comm->size - 1 - i / N;
            gathered[g][i] = (float)(1000 * from + i % N);
        }
    }
    for (int i = 0; i < N; i++) {
        x[i] = (float)(1000 * world->rank + i);
    }
    unsigned char *input = device_copy(&rig, x, part), *a = device_take(&rig, all),
                  *b = device_take(&rig, all), *c = device_take(&rig, all);
    for (int again = 0; again < 3; again++) {
        for (int i = 0; i < BEFORE; i++) { /* so that it takes longer than what follows */
            comm_device_all_gather_start(&one, c, input, part);
        }
        comm_device_all_gather_start(&one, a, input, part);
        const struct comm_mark mark = comm_device_mark(&one);
        comm_device_all_gather(&two, b, input, part);
        device_expect(&rig, "behind", b, gathered[1], all);
        device_expect(&rig, "marked, behind which it came", a, gathered[0], all);
        comm_device_all_gather_start(&one, c, a, part); /* of one's first: of rank 0 */
        const struct comm_mark next = comm_device_mark(&one);
        comm_device_finish(&one);
        comm_device_wait(&one, &mark);
        comm_device_wait(&one, &next);
        for (int i = 0; i < N * one.size; i++) {
            x[i] = gathered[0][i % N];
        }
        device_expect(&rig, "marked", c, x, all);
    }
    device_give(&rig, input);
    device_give(&rig, a);
    device_give(&rig, b);
    device_give(&rig, c);
    free(x);
    free(gathered[0]);
    free(gathered[1]);
    comm_free(&two);
    comm_free(&one);
}

/* Operations are timed while spans are recorded, and then alone. */
static void check_times(struct comm *world, struct comm *group)
{
    const struct rig rig = rig_of(world, group);
    struct spans spans;
    double run = 0, waited = 0, more[2] = {0};
    CHECK_EQUAL(world, spans_init(&spans, 8), STATUS_OK);
    world->activity->spans = &spans;
    for (int i = 0; i < 300; i++) { /* more than there are events */
        check_all_reduce(&rig, 9, DTYPE_F64, REDUCE_SUM);
    }
    world->activity->spans = NULL;
    check_all_reduce(&rig, 9, DTYPE_F64, REDUCE_SUM);
    CHECK(world, comm_device_times(group, &run, &waited));
    CHECK(world, run > 0 && waited >= 0);
    CHECK(world, comm_device_times(group, &more[0], &more[1]));
    CHECK(world, more[0] == run && more[1] == waited);
    spans_free(&spans);
}

static void check_group(struct comm *world, struct comm *group, const char *kind, const char *wire,
                        int64_t most)
{
    const struct rig rig = rig_of(world, group);
    const enum status status = comm_attach(group, &gpu, kind);
    CHECK_EQUAL(world, status, STATUS_OK);
    CHECK(world, strcmp(comm_wire_name(group), group->size == 1 ? "local" : wire) == 0);
    check_chain(world, group);
    check_device_functions(&rig, most);
    if (strcmp(comm_wire_name(group), "nccl") == 0) {
        check_graph(world, group);
        check_beside(world, group, false);
        check_beside(world, group, true);
        check_times(world, group);
    }
}

/* All ranks, halves of them, and a mesh's groups, beside each other. */
static void check_kind(struct comm *world, const char *kind, const char *wire)
{
    struct comm all = {0}, half = {0};
    const struct mesh_shape shape = mesh_shape_of(1, world->size > 2 ? 2 : world->size);
    struct mesh mesh;
    comm_split(world, 0, world->rank, &all);
    comm_split(world, world->rank % 2, -world->rank, &half);
    check_group(world, &all, kind, wire, 1009);
    check_group(world, &half, kind, wire, 5);
    check_chain(world, &all);
    CHECK_EQUAL(world, mesh_init(&mesh, world, &shape, 4), STATUS_OK);
    CHECK_EQUAL(world, mesh_attach(&mesh, &gpu, kind), STATUS_OK);
    check_chain(world, &mesh.experts);
    check_chain(world, &mesh.edp);
    check_chain(world, &mesh.stage);
    mesh_free(&mesh);
    if (world->size > 1) {
        check_marks(world, kind);
    }
    comm_free(&half);
    comm_free(&all);
    comm_split(world, 0, world->rank, &all); /* attached and never used */
    CHECK_EQUAL(world, comm_attach(&all, &gpu, kind), STATUS_OK);
    comm_free(&all);
}

/* Host buffers far smaller than the messages: many rounds. */
static void check_rounds(struct comm *world)
{
    struct comm group = {0};
    const struct rig rig = rig_of(world, &group);
    comm_split(world, 0, world->rank, &group);
    group.device = &gpu;
    CHECK_EQUAL(world, comm_staged_attach(&group, &gpu.ops, 9001), STATUS_OK);
    check_device_functions(&rig, 203);
    comm_free(&group);
}

static void run_all(struct comm *world)
{
    struct comm group = {0};
    check_kind(world, "nccl", "nccl");
    check_kind(world, "mpi", "staged");
    check_rounds(world);
    comm_split(world, 0, world->rank, &group);
    CHECK_EQUAL(world, comm_attach(&group, &gpu, "auto"), STATUS_OK);
    CHECK(world, strcmp(comm_wire_name(&group), world->size == 1 ? "local" : "nccl") == 0);
    check_chain(world, &group);
    comm_free(&group);
    comm_split(world, 0, world->rank, &group);
    CHECK_EQUAL(world, comm_attach(&group, &gpu, "smoke"), STATUS_USAGE);
    CHECK_MESSAGE(world, "run.comm smoke: use auto");
    comm_free(&group);
}

/* Two ranks on one GPU: auto goes through the host, nccl refuses in one line. */
static void run_shared(struct comm *world)
{
    struct comm group = {0};
    comm_split(world, 0, world->rank, &group);
    CHECK_EQUAL(world, comm_attach(&group, &gpu, "nccl"), STATUS_USAGE);
    CHECK_MESSAGE(world, "run.comm nccl: ranks 0 and 1 share GPU 0000:01:00.0 of ");
    CHECK_MESSAGE(world, "use run.comm=mpi");
    CHECK(world, strchr(status_message(), '\n') == NULL);
    check_group(world, &group, "auto", "staged", 64);
    comm_free(&group);
}

/* A program that does not carry NCCL, where the library is no library. */
static void run_missing(struct comm *world)
{
    struct comm group = {0};
    comm_split(world, 0, world->rank, &group);
    CHECK_EQUAL(world, comm_attach(&group, &gpu, "nccl"), STATUS_RESOURCE);
    CHECK_MESSAGE(world, "run.comm nccl: libnccl.so.2 is not usable");
    CHECK_MESSAGE(world, "or use run.comm=mpi");
    CHECK(world, strchr(status_message(), '\n') == NULL);
    check_group(world, &group, "auto", "staged", 64);
    comm_free(&group);
}

/* The last rank leaves the others alone in operation 3, or NCCL reports a failure: the watchdog
 * ends the job. */
static void run_alone(struct comm *world, bool hang)
{
    struct comm group = {0};
    const struct rig rig = rig_of(world, &group);
    const struct timespec long_time = {.tv_sec = 20};
    comm_split(world, 0, world->rank, &group);
    group.name = "half";
    group.device = &gpu;
    CHECK_EQUAL(world, comm_nccl_check(&group), STATUS_OK);
    CHECK_EQUAL(world, comm_nccl_attach(&group, 1), STATUS_OK);
    check_all_reduce(&rig, 5, DTYPE_I64, REDUCE_SUM);
    check_all_reduce(&rig, 5, DTYPE_F64, REDUCE_MAX);
    if (!hang || world->rank != world->size - 1) {
        check_all_to_all(&rig, 0, 8);
    }
    nanosleep(&long_time, NULL); /* the watchdog looks now and then */
    fprintf(stderr, "WRONG: nothing failed\n");
    comm_abort(world, 1);
}

int main(int argc, char **argv)
{
    struct comm world;
    int version = 0, devices = 1;
    const char *which = getenv("COMM_CASE");
    const char *text = which != NULL ? which : "";
    if (comm_open(&world, "nccl") != STATUS_OK || ncclGetVersion(&version) != ncclSuccess) {
        return 1;
    }
    devices = strcmp(text, "shared") == 0 ? 1 : world.size;
    must(cudaSetDevice(world.rank % devices));
    must(cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking));
    gpu.ops = (struct ops){.name = "test", .copy = copy, .upload = upload, .download = download};
    for (int i = 1; i < argc; i++) {
        const uint64_t seed = strtoull(argv[i], NULL, 10);
        emu_set_seed(seed != 0 ? seed + 100 * (uint64_t)world.rank : 0);
        if (strcmp(text, "shared") == 0) {
            run_shared(&world);
        } else if (strcmp(text, "missing") == 0) {
            run_missing(&world);
        } else if (strcmp(text, "hang") == 0 || strcmp(text, "fails") == 0) {
            run_alone(&world, strcmp(text, "hang") == 0);
        } else {
            run_all(&world);
        }
    }
    must(cudaStreamDestroy(gpu.stream));
    comm_close(&world);
    return 0;
}
