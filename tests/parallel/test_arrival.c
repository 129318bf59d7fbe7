/* Weights that come beside the next step's forward (arrival.h) against all of them behind the
 * update: the same bits of losses, norms, weights, moments and averages, in every layout and
 * schedule. Pieces come as late as they may: a rank's memory has NaN in their place until they are
 * waited for, so that whatever reads one without waiting for it has other bits. By the order of
 * what a rank does: forward begins before all is there.
 */
#include <assert.h>

#include "axis_check.h"
#include "parallel/activity.h"
#include "tiny_model.h"
#include "trainer/optimizer.h"
#include "trainer/replicas.h"

enum { MOST = 14, STEPS = 3, MOST_LATE = 4096 };

/* A wire that is not the host's own, by which a group gathers behind the update. */
static void behind_rows(struct comm *comm, void *recv, const int64_t *recv_rows, const void *send,
                        const int64_t *send_rows, size_t row_bytes)
{
    comm_all_to_all(comm, recv, recv_rows, send, send_rows, row_bytes);
}

static const struct comm_wire behind = {.name = "behind",
                                        .all_reduce = comm_all_reduce,
                                        .reduce_scatter = comm_reduce_scatter,
                                        .all_gather = comm_all_gather,
                                        .all_to_all = behind_rows,
                                        .detach = axis_detach};

/* --- a transport whose pieces come when they are waited for --- */

static struct late {
    struct comm_rows *rows; /* NULL: not in use */
    void *data;
    size_t bytes;
    int root;
} late[MOST_LATE];

static struct comm_table transport; /* what is underneath */
static int64_t waited;

static struct late *find_late(const struct comm_rows *rows)
{
    for (int i = 0; i < MOST_LATE; i++) {
        if (late[i].rows == rows) {
            return &late[i];
        }
    }
    return NULL;
}

static void late_start(struct comm *comm, void *data, size_t bytes, int root,
                       struct comm_rows *rows)
{
    if (root == comm->rank) {
        transport.spread_start(comm, data, bytes, root, rows);
        return;
    }
    struct late *own = find_late(NULL);
    assert(own != NULL);
    *own = (struct late){.rows = rows, .data = data, .bytes = bytes, .root = root};
    memset(data, 0xFF, bytes);
}

static bool late_test(const struct comm *comm, struct comm_rows *rows)
{
    return find_late(rows) == NULL && transport.rows_test(comm, rows);
}

static void late_finish(struct comm *comm, struct comm_rows *rows)
{
    struct late *own = find_late(rows);
    if (own != NULL) {
        transport.spread_start(comm, own->data, own->bytes, own->root, rows);
        own->rows = NULL;
        waited++;
    }
    transport.rows_finish(comm, rows);
}

static struct comm_table late_table;

/* --- runs --- */

struct curve {
    double loss[STEPS], aux[STEPS], norm[STEPS];
};

enum way { LATE, SOON, BEHIND, WAYS };

/* What a rank did: attentions of all forwards before the last of the pieces was waited for. */
struct order {
    int64_t pieces, beside;
};

static void note_order(struct order *order, const struct spans *spans)
{
    int64_t forward = 0;
    *order = (struct order){0};
    for (int64_t i = 0; i < spans->count; i++) {
        const struct span *span = &spans->span[i];
        if (strcmp(span->name, "attention") == 0) {
            forward++;
        } else if (strcmp(span->name, "exchange, start of a piece") == 0) {
            order->pieces++;
        } else if (strcmp(span->name, "exchange, finish of a piece") == 0) {
            order->beside = forward;
        }
    }
}

static void use_way(struct tiny *tiny, enum way way)
{
    struct comm *const groups[] = {&tiny->mesh.stage, &tiny->mesh.replicas, &tiny->mesh.edp};
    transport = *tiny->mesh.world->table;
    late_table = transport;
    late_table.spread_start = late_start;
    late_table.rows_test = late_test;
    late_table.rows_finish = late_finish;
    for (int i = 0; i < 3; i++) {
        groups[i]->wire = way == BEHIND ? &behind : NULL;
        groups[i]->table = way == LATE && groups[i]->size > 1 ? &late_table : groups[i]->table;
    }
}

static void train(struct comm *world, struct tiny *tiny, const char *text, enum way way,
                  const char *const more[MOST], struct curve *curve, struct order *order)
{
    const char *overrides[TINY_OVERRIDES] = {"train.micro_batch=1"};
    struct spans spans;
    int count = 1;
    if (text == TINY_V3) {
        overrides[count++] = "model.num_nextn_predict_layers=1";
        overrides[count++] = "router.bias_update_speed=0.01";
    }
    for (int i = 0; i < MOST && more[i] != NULL; i++) {
        overrides[count++] = more[i];
    }
    CHECK(world, tiny_open(tiny, world, text, overrides) == STATUS_OK);
    use_way(tiny, way);
    optimizer_start_average(&tiny->model);
    CHECK(world, spans_init(&spans, 1 << 16) == STATUS_OK);
    for (int s = 0; s < STEPS; s++) {
        struct step_result result;
        world->activity->spans = s == 1 ? &spans : NULL; /* whose forward has what step 0 updated */
        CHECK(world, stepper_step(&tiny->stepper, s + 1, s * tiny->config.train.global_batch,
                                  &result) == STATUS_OK);
        curve->loss[s] = result.loss;
        curve->aux[s] = result.aux_loss;
        curve->norm[s] = result.grad_norm;
    }
    CHECK(world, spans.count < spans.room);
    note_order(order, &spans);
    spans_free(&spans);
    arrival_finish(&tiny->model);
}

static bool same_bytes(const void *a, const void *b, size_t bytes)
{
    return a == NULL || memcmp(a, b, bytes) == 0;
}

static bool same_state(const struct tiny *a, const struct tiny *b)
{
    bool same = true;
    for (int g = 0; g < a->model.params.groups; g++) {
        const struct model_group *x = &a->model.group[g], *y = &b->model.group[g];
        const size_t share = (size_t)x->zero.share, width = dtype_bytes(a->model.act),
                     moment = share * dtype_bytes(a->model.moments);
        same = same && same_bytes(x->master, y->master, share * sizeof(float)) &&
               same_bytes(x->weights, y->weights, (size_t)x->zero.count * width) &&
               same_bytes(x->moment1, y->moment1, moment) &&
               same_bytes(x->moment2, y->moment2, moment) &&
               same_bytes(x->ema, y->ema, share * sizeof(float));
    }
    return same;
}

/* comes: some group's weights come beside forward, where there are several ranks. */
static void compare(struct comm *world, const char *text, bool comes, const char *const more[MOST])
{
    static struct tiny tiny[WAYS];
    struct curve curve[WAYS] = {0};
    struct order order[WAYS];
    if (world->rank == 0) {
        fprintf(stderr, "%s", text == TINY_V3 ? "v3" : "mixtral");
        for (int i = 0; i < MOST && more[i] != NULL; i++) {
            fprintf(stderr, " %s", more[i]);
        }
        fprintf(stderr, "\n");
    }
    waited = 0;
    for (int i = 0; i < WAYS; i++) {
        train(world, &tiny[i], text, (enum way)i, more, &curve[i], &order[i]);
    }
    comes = comes && world->size > 1;
    CHECK(world, comes == (waited > 0));
    for (int i = 0; i < BEHIND; i++) {
        CHECK(world, memcmp(&curve[i], &curve[BEHIND], sizeof curve[0]) == 0);
        CHECK(world, same_state(&tiny[i], &tiny[BEHIND]));
        CHECK(world, comes == (order[i].pieces > 0));
    }
    CHECK(world, !comes || order[LATE].beside > 0);
    CHECK_EQUAL(world, order[BEHIND].pieces, 0);
    for (int i = 0; i < WAYS; i++) {
        tiny_close(&tiny[i]);
    }
}

#define WITH(...) ((const char *const[MOST]){__VA_ARGS__})

static void test_blocks(struct comm *world)
{
    for (int ep = 1; ep <= world->size; ep *= 2) {
        char divide[40];
        snprintf(divide, sizeof divide, "parallel.ep=%d", ep);
        compare(world, TINY_MIXTRAL, true, WITH(divide, "optimizer.ema=0.9"));
        compare(world, TINY_V3, true, WITH(divide, "train.precision=bf16", "optimizer.ema=0.9"));
        if (ep > 1) {
            compare(world, TINY_V3, true,
                    WITH(divide, "parallel.overlap=on", "train.global_batch=16"));
        }
        compare(world, TINY_V3, true,
                WITH(divide, "run.deterministic=layout", "train.recompute=block",
                     "optimizer.freeze=*embed*,*q_a_proj*,*layers.1.*norm*"));
    }
    compare(world, TINY_V3, true,
            WITH("optimizer.name=muon", "optimizer.moments=bf16", "train.precision=bf16",
                 "optimizer.clip_norm=0.01"));
    compare(world, TINY_MIXTRAL, true,
            WITH("train.batch_ramp.start=4", "train.batch_ramp.increment=4",
                 "train.batch_ramp.tokens=64", "router.dispatch=padded", "train.precision=bf16"));
    compare(world, TINY_MIXTRAL, false,
            WITH("train.precision=fp8", "model.hidden_size=32", "model.intermediate_size=48",
                 "model.head_dim=16"));
}

static void test_layouts(struct comm *world)
{
    static const char *const texts[] = {TINY_MIXTRAL, TINY_V3};
    static const char *const axes[] = {"parallel.tp=2", "parallel.cp=2", "parallel.etp=2"};
    for (int i = 0; i < 6 && world->size > 1; i++) {
        compare(world, texts[i / 3], true, WITH(axes[i % 3]));
    }
    for (int i = 0; i < 4 && world->size > 1; i++) { /* experts come, all else behind or ahead */
        compare(world, texts[i / 2], true,
                WITH(i % 2 == 0 ? "parallel.zero=2" : "parallel.zero=3"));
    }
}

/* Every schedule that trains. Two ranks a stage. SWITCHYARD_FULL=1: both families in each. */
static void test_pipelines(struct comm *world)
{
    static const char *const texts[] = {TINY_MIXTRAL, TINY_V3};
    static const char *const cases[][3] = {
        {"parallel.ep=1", "parallel.schedule=1f1b"},
        {"parallel.ep=2", "parallel.schedule=1f1b", "parallel.virtual_stages=2"},
        {"parallel.ep=1", "parallel.schedule=zero_bubble"},
        {"parallel.ep=2", "parallel.schedule=zero_bubble"},
        {"parallel.ep=1", "parallel.schedule=dualpipe_v"},
        {"parallel.ep=2", "parallel.schedule=dualpipe_v"},
        {"parallel.ep=2", "parallel.schedule=dualpipe_v", "parallel.overlap=off"},
        {"parallel.tp=2", "parallel.schedule=dualpipe_v"},
        {"parallel.cp=2", "parallel.schedule=zero_bubble"},
    };
    enum { CASES = sizeof cases / sizeof cases[0] };
    const int families = axis_full() ? 2 : 1;
    for (int i = 0; i < families * CASES && world->size == 4; i++) {
        const char *const *own = cases[i / families];
        const char *const more[MOST] = {
            "parallel.pp=2", "model.num_hidden_layers=4", "train.global_batch=16", own[0], own[1],
            own[2]};
        compare(world, texts[(i + 1) % 2], true, more);
    }
}

/* Who else looks at weights or writes them finds them whole: copies are compared, a step is saved
 * and loaded, and trained on from there, evaluation reads them. */
static void test_edges(struct comm *world)
{
    static struct tiny tiny[2];
    struct curve curve;
    struct order order;
    struct step_result result[2];
    double loss[2];
    char folder[64], checkpoint[160];
    axis_folder(world, folder, sizeof folder);
    for (int i = 0; i < 2; i++) {
        int64_t labels = 0;
        train(world, &tiny[i], TINY_V3, i == 0 ? LATE : BEHIND, WITH("train.precision=bf16"),
              &curve, &order);
        struct tiny *own = &tiny[i];
        const struct replicas start = {.model = &own->model};
        struct replicas replicas = start;
        struct progress_state at = {0};
        const int64_t batch = own->config.train.global_batch;
        CHECK(world, stepper_step(&own->stepper, STEPS + 1, 0, &result[i]) == STATUS_OK);
        CHECK(world, replicas_check(&replicas, STEPS + 1) == STATUS_OK);
        CHECK(world, stepper_step(&own->stepper, STEPS + 2, batch, &result[i]) == STATUS_OK);
        axis_save(world, own, folder, i == 0 ? "late" : "behind", checkpoint, sizeof checkpoint);
        CHECK(world, stepper_step(&own->stepper, STEPS + 3, 0, &result[i]) == STATUS_OK);
        CHECK(world, state_load(&own->model, checkpoint, &at) == STATUS_OK);
        CHECK(world, stepper_step(&own->stepper, STEPS + 3, 0, &result[i]) == STATUS_OK);
        CHECK(world, step_evaluate(&own->model, &own->loader, 3, &loss[i], &labels) == STATUS_OK);
        arrival_finish(&own->model);
    }
    CHECK(world, result[0].loss == result[1].loss && result[0].grad_norm == result[1].grad_norm);
    CHECK(world, loss[0] == loss[1]);
    CHECK(world, same_state(&tiny[0], &tiny[1]));
    tiny_close(&tiny[0]);
    tiny_close(&tiny[1]);
    axis_folder_end(world, folder);
}

int main(void)
{
    const struct ranks_test tests[] = {RANKS_TEST(test_blocks), RANKS_TEST(test_layouts),
                                       RANKS_TEST(test_pipelines), RANKS_TEST(test_edges)};
    return RANKS_MAIN(tests);
}
