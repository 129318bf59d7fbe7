/* comm: every operation with small whole numbers, so that sums are exact and compared with ==. */
#include "kernels/device.h"
#include "parallel/device_checks.h"
#include "parallel/ranks.h"
#include "parallel/transports.h"

enum { MOST = 4099 }; /* not a multiple of anything */

/* What rank r holds at i: exact in every dtype, different everywhere. */
static int64_t value(int rank, int64_t i)
{
    return (rank + 1) * (i % 1000 - 300) + rank;
}

static void set(void *data, enum dtype dtype, int64_t i, int64_t number)
{
    switch (dtype) {
    case DTYPE_F32:
        ((float *)data)[i] = (float)number;
        return;
    case DTYPE_F64:
        ((double *)data)[i] = (double)number;
        return;
    case DTYPE_I32:
        ((int32_t *)data)[i] = (int32_t)number;
        return;
    default:
        ((int64_t *)data)[i] = number;
    }
}

static void test_all_reduce(struct comm *world)
{
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_F64, DTYPE_I32, DTYPE_I64};
    static const int64_t counts[] = {0, 1, 2, 63, MOST};
    static double data[MOST + 1], expected[MOST + 1];
    for (int d = 0; d < 4; d++) {
        for (int op = REDUCE_SUM; op <= REDUCE_MAX; op++) {
            for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
                memset(data, 0x55, sizeof data); /* what lies behind stays */
                memset(expected, 0x55, sizeof expected);
                for (int64_t i = 0; i < counts[c]; i++) {
                    int64_t sum = 0, most = value(0, i);
                    for (int r = 0; r < world->size; r++) {
                        sum += value(r, i);
                        most = value(r, i) > most ? value(r, i) : most;
                    }
                    set(data, dtypes[d], i, value(world->rank, i));
                    set(expected, dtypes[d], i, op == REDUCE_SUM ? sum : most);
                }
                comm_all_reduce(world, data, counts[c], dtypes[d], (enum reduce)op);
                CHECK(world, memcmp(data, expected, sizeof data) == 0);
            }
        }
    }
}

/* Not exact: the bits say that ranks were added in order 0, 1, 2, ... */
static void test_sums_go_in_rank_order(struct comm *world)
{
    enum { COUNT = 300 };
    float mine[COUNT], sum[COUNT], all[16 * COUNT], part[COUNT];
    CHECK(world, world->size <= 16);
    for (int r = 0; r < world->size; r++) {
        for (int i = 0; i < COUNT; i++) {
            const float x = 1.0F / (float)(3 + 7 * r + i) * (r % 2 == 0 ? 1e6F : 1.0F);
            sum[i] = r == 0 ? x : sum[i] + x;
            mine[i] = r == world->rank ? x : mine[i];
        }
    }
    for (int r = 0; r < world->size; r++) {
        memcpy(all + r * COUNT, mine, sizeof mine);
    }
    comm_reduce_scatter(world, part, all, COUNT, DTYPE_F32);
    CHECK(world, memcmp(part, sum, sizeof sum) == 0);
    comm_all_reduce(world, mine, COUNT, DTYPE_F32, REDUCE_SUM);
    CHECK(world, memcmp(mine, sum, sizeof sum) == 0);
}

static void test_reduce_scatter(struct comm *world)
{
    static const int64_t counts[] = {0, 1, 5, 1000};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        const int64_t count = counts[c];
        float *in = ranks_memory(world, (size_t)(count * world->size) * sizeof *in),
              *out = ranks_memory(world, (size_t)(count + 1) * sizeof *out);
        for (int64_t i = 0; i < count * world->size; i++) {
            in[i] = (float)value(world->rank, i);
        }
        out[count] = -7;
        comm_reduce_scatter(world, out, in, count, DTYPE_F32);
        for (int64_t i = 0; i < count; i++) {
            int64_t sum = 0;
            for (int r = 0; r < world->size; r++) {
                sum += value(r, world->rank * count + i);
            }
            CHECK_EQUAL(world, out[i], sum);
            CHECK_EQUAL(world, in[i], value(world->rank, i)); /* inputs stay */
        }
        CHECK(world, out[count] == -7);
        free(in);
        free(out);
    }
}

static void test_all_gather(struct comm *world)
{
    static const size_t sizes[] = {0, 1, 3, 4096};
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        for (int in_place = 0; in_place < 2; in_place++) {
            const size_t bytes = sizes[s], all = bytes * (size_t)world->size;
            unsigned char *out = ranks_memory(world, all + 1), *in = ranks_memory(world, bytes);
            unsigned char *own = in_place ? out + (size_t)world->rank * bytes : in;
            for (size_t i = 0; i < bytes; i++) {
                own[i] = (unsigned char)(value(world->rank, (int64_t)i) & 0xff);
            }
            out[all] = 0x77;
            comm_all_gather(world, out, own, bytes);
            for (size_t i = 0; i < all; i++) {
                const int64_t from = (int64_t)(i / bytes), at = (int64_t)(i % bytes);
                CHECK_EQUAL(world, out[i], value((int)from, at) & 0xff);
            }
            CHECK_EQUAL(world, out[all], 0x77);
            free(out);
            free(in);
        }
    }
}

static void exchange(struct comm *world, int pattern, size_t row_bytes)
{
    int64_t send_rows[16], recv_rows[16], sent = 0, received = 0;
    CHECK(world, world->size <= 16);
    for (int r = 0; r < world->size; r++) {
        send_rows[r] = device_rows(pattern, world->rank, r);
        recv_rows[r] = device_rows(pattern, r, world->rank);
        sent += send_rows[r];
        received += recv_rows[r];
    }
    unsigned char *send = ranks_memory(world, (size_t)sent * row_bytes),
                  *recv = ranks_memory(world, (size_t)received * row_bytes + 1), *at = send;
    for (int to = 0; to < world->size; to++) {
        for (size_t i = 0; i < (size_t)send_rows[to] * row_bytes; i++) {
            *at++ = (unsigned char)(i * 31 + (size_t)(16 * to + world->rank));
        }
    }
    recv[(size_t)received * row_bytes] = 0x77;
    comm_all_to_all(world, recv, recv_rows, send, send_rows, row_bytes);
    at = recv;
    for (int from = 0; from < world->size; from++) {
        for (size_t i = 0; i < (size_t)recv_rows[from] * row_bytes; i++) {
            const size_t expected = i * 31 + (size_t)(16 * world->rank + from);
            CHECK_EQUAL(world, *at++, (unsigned char)expected);
        }
    }
    CHECK_EQUAL(world, *at, 0x77);
    free(send);
    free(recv);
}

static void test_all_to_all(struct comm *world)
{
    static const size_t row_bytes[] = {1, 6, 512};
    for (int pattern = 0; pattern < 6; pattern++) {
        for (size_t i = 0; i < sizeof row_bytes / sizeof row_bytes[0]; i++) {
            exchange(world, pattern, row_bytes[i]);
        }
    }
    const int64_t none[16] = {0};
    comm_all_to_all(world, NULL, none, NULL, none, 8); /* nothing anywhere */
}

/* A step of a ring waits for nobody when it starts: each rank starts behind the one before it. */
static void test_pass(struct comm *world)
{
    enum { BYTES = 1 << 20 }; /* more than travels before it is asked for */
    unsigned char *send = ranks_memory(world, BYTES), *recv = ranks_memory(world, BYTES), token = 0;
    const int before = (world->rank + world->size - 1) % world->size;
    struct comm_request request, told;
    memset(send, world->rank + 1, BYTES);
    if (world->rank > 0) {
        comm_receive(world, &token, 1, before);
    }
    comm_pass_start(world, "pass", recv, send, BYTES, &request);
    if (world->rank + 1 < world->size) {
        comm_send_start(world, &token, 1, world->rank + 1, &told);
        comm_send_finish(world, &told);
    }
    comm_exchange_test(world, &request);
    comm_exchange_finish(world, &request);
    for (int i = 0; i < BYTES; i++) {
        CHECK_EQUAL(world, recv[i], before + 1);
    }
    free(send);
    free(recv);
}

/* Parts of sums for every rank, all under way at once; a rank begins to take its own behind what it
 * sends, the last of its two first. */
static void test_parts(struct comm *world)
{
    enum { BYTES = 100003, TIMES = 2, RANKS = 4 };
    struct comm_rows *sent[TIMES * RANKS] = {0}, *own[TIMES];
    const size_t others = (size_t)world->size - 1, parts = TIMES * (others + 1);
    unsigned char *send = ranks_memory(world, parts * BYTES),
                  *recv = ranks_memory(world, TIMES * others * BYTES);
    CHECK(world, world->size <= RANKS);
    for (size_t i = 0; i < parts * BYTES; i++) {
        send[i] = (unsigned char)(i * 7 + (size_t)world->rank * 31);
    }
    for (int i = 0; i < TIMES * world->size; i++) {
        if (i / TIMES != world->rank) {
            sent[i] = comm_parts_start(world, NULL, send + (size_t)i * BYTES, BYTES, i / TIMES);
        }
    }
    for (size_t t = 0; t < TIMES; t++) {
        own[t] = comm_parts_start(world, recv + t * others * BYTES, NULL, BYTES, world->rank);
    }
    for (int t = TIMES - 1; t >= 0; t--) {
        while (!comm_rows_test(world, own[t])) {
        }
        comm_rows_finish(world, own[t]);
    }
    for (int i = 0; i < TIMES * world->size; i++) {
        if (sent[i] != NULL) {
            comm_rows_finish(world, sent[i]);
        }
    }
    for (size_t i = 0; i < TIMES * others * BYTES; i++) {
        const size_t slot = i / BYTES % others, from = slot + (slot >= (size_t)world->rank ? 1 : 0),
                     part = (size_t)world->rank * TIMES + i / BYTES / others;
        CHECK_EQUAL(world, recv[i], (unsigned char)((part * BYTES + i % BYTES) * 7 + from * 31));
    }
    free(send);
    free(recv);
}

static void test_broadcast(struct comm *world)
{
    static const size_t sizes[] = {0, 1, 100003};
    for (int root = 0; root < world->size; root++) {
        for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
            unsigned char *data = ranks_memory(world, sizes[s] + 1);
            memset(data, world->rank, sizes[s]);
            for (size_t i = 0; i < sizes[s] && world->rank == root; i++) {
                data[i] = (unsigned char)(i + 13 * (size_t)root);
            }
            data[sizes[s]] = 0x77;
            comm_broadcast(world, data, sizes[s], root);
            for (size_t i = 0; i < sizes[s]; i++) {
                CHECK_EQUAL(world, data[i], (unsigned char)(i + 13 * (size_t)root));
            }
            CHECK_EQUAL(world, data[sizes[s]], 0x77);
            free(data);
        }
    }
}

static void test_split(struct comm *world)
{
    struct comm half = {0}, reversed = {0};
    comm_split(world, world->rank % 2, world->rank, &half);
    CHECK_EQUAL(world, half.size, (world->size + 1 - world->rank % 2) / 2);
    CHECK_EQUAL(world, half.rank, world->rank / 2);
    int64_t sum = world->rank, expected = 0;
    for (int r = world->rank % 2; r < world->size; r += 2) {
        expected += r;
    }
    comm_all_reduce(&half, &sum, 1, DTYPE_I64, REDUCE_SUM);
    CHECK_EQUAL(world, sum, expected);
    comm_split(world, 3, -world->rank, &reversed);
    CHECK_EQUAL(world, reversed.size, world->size);
    CHECK_EQUAL(world, reversed.rank, world->size - 1 - world->rank);
    CHECK(world, reversed.node_size >= 1 && reversed.node_rank < reversed.node_size);
    int32_t root = world->rank;
    comm_broadcast(&reversed, &root, sizeof root, 0);
    CHECK_EQUAL(world, root, world->size - 1);
    comm_free(&half);
    comm_free(&half);
    comm_free(&reversed);
}

/* Statuses of the ranks (the first `size` count): all get the worst, its lowest rank and its
 * message. */
static void test_agree(struct comm *world)
{
    static const struct {
        enum status status[4];
    } cases[] = {
        {{STATUS_OK, STATUS_OK, STATUS_OK, STATUS_OK}},
        {{STATUS_DATA, STATUS_OK, STATUS_OK, STATUS_OK}},
        {{STATUS_OK, STATUS_IO, STATUS_OK, STATUS_IO}},
        {{STATUS_DATA, STATUS_IO, STATUS_USAGE, STATUS_IO}},
        {{STATUS_USAGE, STATUS_USAGE, STATUS_USAGE, STATUS_USAGE}},
        {{STATUS_OK, STATUS_OK, STATUS_OK, STATUS_DIVERGED}},
    };
    CHECK(world, world->size <= 4);
    for (size_t c = 0; c < sizeof cases / sizeof cases[0]; c++) {
        enum status worst = STATUS_OK, own = cases[c].status[world->rank];
        int expected = -1, where = -1;
        char message[64];
        for (int r = 0; r < world->size; r++) {
            expected = cases[c].status[r] > worst ? r : expected;
            worst = cases[c].status[r] > worst ? cases[c].status[r] : worst;
        }
        const enum status ignored = status_fail(own, "case %d, rank %d", (int)c, world->rank);
        CHECK_EQUAL(world, ignored, own);
        CHECK_EQUAL(world, comm_agree(world, own, &where), worst);
        if (worst != STATUS_OK) {
            CHECK_EQUAL(world, where, expected);
            snprintf(message, sizeof message, "case %d, rank %d", (int)c, expected);
            CHECK(world, strcmp(status_message(), message) == 0);
        }
        CHECK_EQUAL(world, comm_agree(world, own, NULL), worst);
    }
}

static void test_open_refuses(struct comm *world)
{
    struct comm other;
    CHECK_EQUAL(world, comm_open(&other, "smoke"), STATUS_USAGE);
    CHECK_MESSAGE(world, "run.comm smoke: use auto, self, mpi or nccl");
    CHECK_EQUAL(world, comm_open(&other, "self"), world->size > 1 ? STATUS_USAGE : STATUS_OK);
    comm_close(&other);
}

static void host_copy(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}

/* Not attached, then on the CPU device: the host's memory is the device's. */
static void test_device_is_host(struct comm *world)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    struct device *device = NULL;
    struct comm half = {0};
    struct rig rig = {world, world, malloc, free, host_copy, host_copy};
    check_device_functions(&rig, MOST);
    CHECK_EQUAL(world, device_open(&device, &options), STATUS_OK);
    comm_split(world, world->rank % 2, world->rank, &half);
    CHECK_EQUAL(world, comm_attach(&half, device, "auto"), STATUS_OK);
    CHECK(world, strcmp(comm_wire_name(&half), "direct") == 0);
    rig.group = &half;
    check_device_functions(&rig, MOST);
    comm_free(&half);
    device_close(device);
}

/* A device whose memory holds the complement of every byte: who touches it directly is found. */
static void put_complement(void *to, const void *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        ((unsigned char *)to)[i] = (unsigned char)~((const unsigned char *)from)[i];
    }
}

static void complement_move(struct device *device, void *to, const void *from, size_t bytes)
{
    (void)device;
    put_complement(to, from, bytes);
}

static void complement_copy(struct device *device, void *to, const void *from, size_t bytes)
{
    (void)device;
    memcpy(to, from, bytes);
}

static const struct ops complement_ops = {
    .copy = complement_copy, .upload = complement_move, .download = complement_move};

/* Device memory through host buffers that hold everything, or little: many rounds. */
static void test_staged(struct comm *world)
{
    static const size_t stages[] = {1 << 20, 9001};
    struct comm group = {0};
    const struct rig rig = {world, &group, malloc, free, put_complement, put_complement};
    for (size_t i = 0; i < sizeof stages / sizeof stages[0]; i++) {
        comm_split(world, world->rank / 3, -world->rank, &group);
        CHECK_EQUAL(world, comm_staged_attach(&group, &complement_ops, stages[i]), STATUS_OK);
        CHECK(world, strcmp(comm_wire_name(&group), "staged") == 0);
        check_device_functions(&rig, MOST);
        comm_free(&group);
    }
}

/* One rank's group: copies inside the device, and nothing else. */
static void test_local(struct comm *world)
{
    struct comm group = {0};
    const struct rig rig = {world, &group, malloc, free, put_complement, put_complement};
    comm_split(world, world->rank, 0, &group);
    comm_local_attach(&group, &complement_ops);
    CHECK(world, strcmp(comm_wire_name(&group), "local") == 0);
    check_device_functions(&rig, MOST);
    comm_free(&group);
}

/* Two ranks of a group on one GPU are refused, with their numbers in the world. */
static void test_places(struct comm *world)
{
    char gpu[COMM_GPU_BYTES], part[64], label[96];
    struct comm reversed = {0};
    snprintf(gpu, sizeof gpu, "%04d", world->rank);
    CHECK_EQUAL(world, comm_places_check(world, gpu), STATUS_OK);
    comm_split(world, 0, -world->rank, &reversed);
    reversed.name = "ep";
    if (world->size > 1) {
        CHECK_EQUAL(world, comm_places_check(&reversed, world->rank < 2 ? "0000:19" : gpu),
                    STATUS_USAGE);
        snprintf(part, sizeof part, "ranks 1 and 0 share GPU 0000:19 of ");
        CHECK_MESSAGE(world, part);
    }
    comm_label(&reversed, label, sizeof label);
    static const char *const labels[] = {"", "group ep of 1 ranks (0)", "group ep of 2 ranks (1 0)",
                                         "", "group ep of 4 ranks (3 2 1 0)"};
    CHECK(world, world->size <= 4 && strcmp(label, labels[world->size]) == 0);
    comm_label(&reversed, label, 12);
    CHECK(world, strcmp(label, "group ep of") == 0);
    comm_free(&reversed);
}

/* A refusal is every rank's, and leaves the group as it was. */
static void test_attach_refuses(struct comm *world)
{
    const struct device_options options = {.name = "cpu", .threads = 1};
    struct device *device = NULL;
    struct comm group = {0};
    CHECK_EQUAL(world, device_open(&device, &options), STATUS_OK);
    comm_split(world, 0, world->rank, &group);
    CHECK_EQUAL(world, comm_attach(&group, device, "smoke"), STATUS_USAGE);
    CHECK_MESSAGE(world, "run.comm smoke: use auto, self, mpi or nccl");
    CHECK_EQUAL(world, comm_attach(&group, device, "nccl"), STATUS_USAGE);
    CHECK_MESSAGE(world, "use run.comm=mpi, or run.device=cuda");
    const char *one = world->rank == world->size - 1 ? "nccl" : "mpi";
    CHECK_EQUAL(world, comm_attach(&group, device, one), STATUS_USAGE);
    CHECK_MESSAGE(world, "run.comm nccl");
    CHECK_EQUAL(world, comm_attach(&group, device, "mpi"), STATUS_OK);
    comm_free(&group);
    device_close(device);
}

/* The transport of one rank alone gives what mpi gives. */
static void test_self(struct comm *world)
{
    struct comm self;
    if (world->size > 1) {
        return;
    }
    CHECK_EQUAL(world, comm_open(&self, "self"), STATUS_OK);
    CHECK(world, strcmp(self.table->name, "self") == 0 && self.size == 1 && self.rank == 0);
    test_all_reduce(&self);
    test_sums_go_in_rank_order(&self);
    test_reduce_scatter(&self);
    test_all_gather(&self);
    test_all_to_all(&self);
    test_broadcast(&self);
    test_split(&self);
    test_parts(&self);
    test_agree(&self);
    test_device_is_host(&self);
    comm_close(&self);
    comm_close(&self);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_all_reduce),     RANKS_TEST(test_sums_go_in_rank_order),
        RANKS_TEST(test_reduce_scatter), RANKS_TEST(test_all_gather),
        RANKS_TEST(test_all_to_all),     RANKS_TEST(test_broadcast),
        RANKS_TEST(test_split),          RANKS_TEST(test_agree),
        RANKS_TEST(test_open_refuses),   RANKS_TEST(test_device_is_host),
        RANKS_TEST(test_attach_refuses), RANKS_TEST(test_staged),
        RANKS_TEST(test_local),          RANKS_TEST(test_places),
        RANKS_TEST(test_self),           RANKS_TEST(test_pass),
        RANKS_TEST(test_parts),
    };
    return RANKS_MAIN(tests);
}
