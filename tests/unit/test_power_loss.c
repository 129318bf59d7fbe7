/* checkpoint: power lost at any moment of a save. The operations of three saves are recorded; then
 * states of the disk are made in which what was not synced is lost, torn or done out of order, and
 * in each the newest checkpoint that was published must load. Once with saves that the caller waits
 * for; once with saves beside it, while it writes files of its own as steps do: between the
 * beginning and the end of a save the operations of both are mixed anew in every state, each
 * thread's own in their order.
 *
 * What a disk promises here is as little as POSIX does: the contents of a file survive when it was
 * synced after them; a name survives when its folder was synced after it; everything else may be
 * there or not, in any combination, writes in sectors of 512 bytes. Folders and files are nodes,
 * as in a file system: a renamed folder keeps its contents, synced or not.
 *
 * SWITCHYARD_FULL=1: 500 states; SWITCHYARD_STATES=N: N.
 */
#define _GNU_SOURCE
#include "unit/scratch.h"

#include <time.h>

#include "checkpoints/background.h"
#include "kernels/base/rng.h"

enum { SECTOR = 512, MOST_OPS = 2000, MOST_NODES = 400, MOST_NAME = 256, ELEMENTS = 3000 };

/* --- the log --- */

struct operation {
    enum io_kind kind;
    char path[MOST_NAME], to[MOST_NAME];
    char *data; /* owned */
    int64_t bytes, offset;
    int published; /* newest step whose save had returned before it; 0: none */
    bool beside;   /* not the caller's own */
    int part;      /* operations of one part may have come in any order of the threads */
};

static struct {
    struct operation op[MOST_OPS];
    int count, published, part;
    bool begins; /* the next operation of a save's threads is its first */
    pthread_t caller;
} log_;

static void record(void *context, const struct io_event *event)
{
    (void)context;
    assert_true(log_.count < MOST_OPS);
    struct operation *op = &log_.op[log_.count++];
    const bool beside = pthread_equal(pthread_self(), log_.caller) == 0;
    log_.part += beside && log_.begins;
    log_.begins = log_.begins && !beside;
    *op = (struct operation){.kind = event->kind,
                             .bytes = event->bytes,
                             .offset = event->offset,
                             .published = log_.published,
                             .beside = beside,
                             .part = log_.part};
    assert_true(snprintf(op->path, MOST_NAME, "%s", event->path) < MOST_NAME);
    if (event->to != NULL) {
        assert_true(snprintf(op->to, MOST_NAME, "%s", event->to) < MOST_NAME);
    }
    if (event->kind == IO_WRITE) {
        op->data = malloc((size_t)event->bytes + 1);
        assert_non_null(op->data);
        memcpy(op->data, event->data, (size_t)event->bytes);
    }
}

/* --- saves --- */

static struct comm self;

static void describe(struct checkpoint_slice *slice, float *values)
{
    *slice = (struct checkpoint_slice){.name = "layers.0.a",
                                       .dtype = DTYPE_F32,
                                       .ndim = 2,
                                       .shape = {ELEMENTS / 3, 3},
                                       .count = ELEMENTS,
                                       .data = values};
}

/* What steps write beside a save. */
static void write_line(int step)
{
    struct io_file file;
    const char line[] = "{\"loss\": 1}\n";
    assert_int_equal(io_open_append(&file, "run/metrics.jsonl"), STATUS_OK);
    assert_int_equal(io_write(&file, line, sizeof line - 1), STATUS_OK);
    assert_int_equal(io_sync(&file), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
    put(step % 20 == 0 ? "run/report.html" : "run/run.json", line);
    assert_int_equal(io_sync_dir("run"), STATUS_OK);
}

static void save_beside(int step, struct checkpoint_slice *slice)
{
    enum { LINES = 4 };
    static struct background background;
    enum status status = background_init(&background, &self, slice, 1, NULL, false);
    assert_int_equal(status, STATUS_OK);
    log_.begins = true;
    assert_int_equal(background_start(&background, "run/checkpoints", step, strdup("{}"), 2),
                     STATUS_OK);
    background_hold(&background);
    memset(slice->data, 0x55, ELEMENTS * sizeof(float));
    for (int line = 0; !background_poll(&background, &status); line++) {
        if (line < LINES) {
            write_line(step);
        }
        nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    }
    assert_int_equal(status, STATUS_OK);
    background_free(&background);
    log_.part++;
}

static void save(int step, bool beside)
{
    static float values[ELEMENTS];
    struct checkpoint_slice slice;
    const struct checkpoint_options options = {.keep_last = 2};
    for (int i = 0; i < ELEMENTS; i++) {
        values[i] = (float)(step * 10000 + i);
    }
    describe(&slice, values);
    if (beside) {
        save_beside(step, &slice);
    } else {
        assert_int_equal(checkpoint_save(&self, "run/checkpoints", step, "{}", &slice, 1, &options),
                         STATUS_OK);
    }
    log_.published = step;
}

/* --- a file system that was cut off --- */

struct node {
    bool folder;
    char *durable, *live; /* contents of a file, owned: on the disk; as programs see it */
    int64_t durable_bytes, live_bytes;
    char name[MOST_NAME]; /* in its folder, as programs see it; "" when unlinked */
    int parent;
    char durable_name[MOST_NAME]; /* on the disk; "" when not there */
    int durable_parent;
};

static struct {
    struct node node[MOST_NODES];
    int count;
    uint64_t key, draws;
} disk;

static bool coin(void)
{
    return rng_uniform(disk.key, disk.draws++) < 0.5;
}

static int child(int parent, const char *name)
{
    for (int i = 1; i < disk.count; i++) {
        if (disk.node[i].parent == parent && strcmp(disk.node[i].name, name) == 0) {
            return i;
        }
    }
    return -1;
}

/* The folder of a path, and its last part. */
static int walk(const char *path, char last[MOST_NAME])
{
    char copy[MOST_NAME], *rest = copy;
    int at = 0;
    snprintf(copy, sizeof copy, "%s", path);
    for (char *slash = strchr(rest, '/'); slash != NULL; slash = strchr(rest, '/')) {
        *slash = '\0';
        if (rest[0] != '\0' && strcmp(rest, ".") != 0) {
            at = child(at, rest);
            assert_true(at >= 0);
        }
        rest = slash + 1;
    }
    snprintf(last, MOST_NAME, "%s", rest);
    return at;
}

static int find(const char *path)
{
    char last[MOST_NAME];
    const int parent = walk(path, last);
    return last[0] == '\0' || strcmp(last, ".") == 0 ? parent : child(parent, last);
}

static int make(const char *path, bool folder)
{
    char last[MOST_NAME];
    const int parent = walk(path, last), known = child(parent, last);
    if (known >= 0) {
        return known;
    }
    assert_true(disk.count < MOST_NODES);
    struct node *node = &disk.node[disk.count];
    *node = (struct node){.folder = folder, .parent = parent, .durable_parent = -1};
    snprintf(node->name, MOST_NAME, "%s", last);
    return disk.count++;
}

static void resize(char **data, int64_t *bytes, int64_t to)
{
    *data = realloc(*data, (size_t)to + 1);
    assert_non_null(*data);
    if (to > *bytes) {
        memset(*data + *bytes, 0, (size_t)(to - *bytes));
    }
    *bytes = to;
}

static void write_at(char **data, int64_t *bytes, const struct operation *op)
{
    if (op->offset + op->bytes > *bytes) {
        resize(data, bytes, op->offset + op->bytes);
    }
    memcpy(*data + op->offset, op->data, (size_t)op->bytes);
}

/* Some sectors of what programs see reach the disk by themselves; so does the size, or not. */
static void leak_contents(struct node *node)
{
    if (coin()) {
        resize(&node->durable, &node->durable_bytes, node->live_bytes);
    }
    for (int64_t at = 0; at < node->durable_bytes && at < node->live_bytes; at += SECTOR) {
        const int64_t end = at + SECTOR < node->durable_bytes ? at + SECTOR : node->durable_bytes;
        const int64_t last = end < node->live_bytes ? end : node->live_bytes;
        if (coin()) {
            memcpy(node->durable + at, node->live + at, (size_t)(last - at));
        }
    }
}

static void sync_contents(struct node *node)
{
    resize(&node->durable, &node->durable_bytes, node->live_bytes);
    memcpy(node->durable, node->live, (size_t)node->live_bytes);
}

/* One name reaches the disk as it is now. What had the same name there loses it. */
static void settle(int index)
{
    struct node *node = &disk.node[index];
    for (int i = 1; i < disk.count; i++) {
        struct node *other = &disk.node[i];
        if (i != index && node->name[0] != '\0' && other->durable_parent == node->parent &&
            strcmp(other->durable_name, node->name) == 0) {
            other->durable_name[0] = '\0';
        }
    }
    memcpy(node->durable_name, node->name, MOST_NAME);
    node->durable_parent = node->parent;
}

static void sync_names(int folder)
{
    for (int i = 1; i < disk.count; i++) {
        if (disk.node[i].parent == folder || disk.node[i].durable_parent == folder) {
            settle(i);
        }
    }
}

static void unlink_node(int index)
{
    if (index > 0) {
        disk.node[index].name[0] = '\0';
    }
}

static void move(const struct operation *op)
{
    char last[MOST_NAME];
    const int from = find(op->path), parent = walk(op->to, last);
    assert_true(from > 0);
    unlink_node(child(parent, last));
    disk.node[from].parent = parent;
    snprintf(disk.node[from].name, MOST_NAME, "%s", last);
}

static void apply(const struct operation *op)
{
    struct node *node = NULL;
    switch (op->kind) {
    case IO_CREATE:
        node = &disk.node[make(op->path, false)];
        resize(&node->live, &node->live_bytes, 0);
        break;
    case IO_OPEN_OR_CREATE:
        make(op->path, false);
        break;
    case IO_WRITE:
        node = &disk.node[find(op->path)];
        write_at(&node->live, &node->live_bytes, op);
        break;
    case IO_TRUNCATE:
        node = &disk.node[find(op->path)];
        resize(&node->live, &node->live_bytes, op->bytes);
        break;
    case IO_SYNC:
        sync_contents(&disk.node[find(op->path)]);
        break;
    case IO_MAKE_DIR:
        make(op->path, true);
        break;
    case IO_SYNC_DIR:
        sync_names(find(op->path));
        break;
    case IO_RENAME:
        move(op);
        break;
    case IO_REMOVE:
    case IO_REMOVE_DIR:
        unlink_node(find(op->path));
        break;
    case IO_OPEN:
    case IO_CLOSE:
        break;
    }
}

/* Between operations the system may write anything back. */
static void leak(void)
{
    for (int i = 1; i < disk.count; i++) {
        struct node *node = &disk.node[i];
        if (!node->folder && coin() && coin()) {
            leak_contents(node);
        }
        if (coin() && coin()) {
            settle(i);
        }
    }
}

/* What is on the disk under node `folder`, as real files in `path`. */
static void restore(int folder, const char *path)
{
    char inside[2 * MOST_NAME];
    assert_int_equal(io_make_dir(path), STATUS_OK);
    for (int i = 1; i < disk.count; i++) {
        const struct node *node = &disk.node[i];
        if (node->durable_parent != folder || node->durable_name[0] == '\0') {
            continue;
        }
        assert_true(snprintf(inside, sizeof inside, "%s/%s", path, node->durable_name) <
                    (int)sizeof inside);
        if (node->folder) {
            restore(i, inside);
        } else {
            FILE *out = fopen(inside, "w");
            assert_non_null(out);
            fwrite(node->durable_bytes > 0 ? node->durable : "", 1, (size_t)node->durable_bytes,
                   out);
            fclose(out);
        }
    }
}

static void disk_free(void)
{
    for (int i = 0; i < disk.count; i++) {
        free(disk.node[i].durable);
        free(disk.node[i].live);
    }
    memset(&disk, 0, sizeof disk);
}

/* --- the check --- */

static void ignore(void *context, const char *message)
{
    (void)context;
    (void)message;
}

/* The newest checkpoint that loads, older ones tried in turn; 0: none. */
static int64_t newest_that_loads(const char *root)
{
    static float values[ELEMENTS];
    struct checkpoint_slice slice;
    describe(&slice, values);
    for (int64_t before = INT64_MAX;;) {
        char *path = NULL;
        int64_t step = 0;
        const enum status found =
            checkpoint_newest(&self, root, before, &path, &step, ignore, NULL);
        if (found != STATUS_OK || path == NULL) {
            return 0;
        }
        memset(values, 0x77, sizeof values);
        const enum status status = checkpoint_load(&self, path, &slice, 1);
        free(path);
        if (status == STATUS_OK) {
            for (int i = 0; i < ELEMENTS; i++) {
                assert_true(values[i] == (float)(step * 10000 + i));
            }
            return step;
        }
        assert_int_equal(status, STATUS_DATA);
        before = step;
    }
}

/* The next operation of a part: the first that is left of either thread, by chance. */
static int draw_next(const bool *done, int first)
{
    int next[2] = {-1, -1};
    for (int i = first; i < log_.count && log_.op[i].part == log_.op[first].part; i++) {
        int *own = &next[log_.op[i].beside];
        *own = *own < 0 && !done[i] ? i : *own;
    }
    const bool beside = next[0] < 0 || (next[1] >= 0 && coin());
    return next[beside];
}

/* An order in which the operations may have come. */
static void draw_order(int *order)
{
    bool done[MOST_OPS] = {false};
    for (int i = 0, first = 0; i < log_.count; i++) {
        while (done[first]) {
            first++;
        }
        order[i] = draw_next(done, first);
        done[order[i]] = true;
    }
}

/* Power lost after `count` operations, those of the kind `skipped` (-1: none) taken as not done;
 * returns the step that survived. */
static int64_t cut_off(uint64_t trial, int count, int skipped)
{
    int order[MOST_OPS];
    disk_free();
    disk.count = 1; /* the folder that all is in */
    disk.node[0].folder = true;
    disk.key = rng_key(trial, "power");
    draw_order(order);
    for (int i = 0; i < count; i++) {
        const struct operation *op = &log_.op[order[i]];
        if ((int)op->kind != skipped) {
            apply(op);
        }
        if (coin() && coin()) {
            leak();
        }
    }
    leak();
    restore(0, "after");
    const int64_t step = newest_that_loads("after/run/checkpoints");
    assert_int_equal(io_remove_tree("after"), STATUS_OK);
    return step;
}

static int64_t state_count(void)
{
    const char *full = getenv("SWITCHYARD_FULL"), *count = getenv("SWITCHYARD_STATES");
    if (count != NULL) {
        return strtoll(count, NULL, 10);
    }
    return full != NULL && strcmp(full, "1") == 0 ? 500 : 200;
}

/* Published checkpoints that are lost in so many states; *newer: times that one on its way was
 * whole already. */
static int64_t count_lost(int64_t states, int skipped, int64_t *newer)
{
    int64_t lost = 0;
    *newer = 0;
    for (int64_t i = 0; i < states; i++) {
        const int count = (int)(i % (log_.count + 1));
        const int published = count < log_.count ? log_.op[count].published : log_.published;
        const int64_t step = cut_off((uint64_t)i, count, skipped);
        lost += step < published;
        *newer += step > published;
    }
    return lost;
}

static void test_power_loss(void **state)
{
    (void)state;
    const int64_t states = state_count();
    int64_t newer = 0;
    const int64_t lost = count_lost(states, -1, &newer);
    printf("  %lld states of %d operations: %lld published checkpoints lost; %lld times the one "
           "on its way was whole already\n",
           (long long)states, log_.count, (long long)lost, (long long)newer);
    assert_int_equal(lost, 0);
    assert_true(newer > 0); /* not always behind: the states differ */
}

/* The states are cruel enough: without either kind of sync checkpoints are lost. */
static void test_syncs_are_needed(void **state)
{
    (void)state;
    int64_t newer = 0;
    assert_true(count_lost(200, IO_SYNC, &newer) > 10);
    assert_true(count_lost(200, IO_SYNC_DIR, &newer) > 10);
}

static int record_saves(void **state, bool beside)
{
    if (scratch_enter(state) != 0 || comm_open(&self, "self") != STATUS_OK) {
        return 1;
    }
    log_.caller = pthread_self();
    io_observe(record, NULL);
    save(10, beside);
    save(20, beside);
    save(30, beside); /* the first one is pruned */
    io_observe(NULL, NULL);
    return 0;
}

static int enter(void **state)
{
    return record_saves(state, false);
}

static int enter_beside(void **state)
{
    return record_saves(state, true);
}

static int leave(void **state)
{
    io_observe(NULL, NULL);
    disk_free();
    for (int i = 0; i < log_.count; i++) {
        free(log_.op[i].data);
    }
    log_.count = log_.published = log_.part = 0;
    comm_close(&self);
    return scratch_leave(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_power_loss, enter, leave),
        cmocka_unit_test_setup_teardown(test_syncs_are_needed, enter, leave),
        cmocka_unit_test_setup_teardown(test_power_loss, enter_beside, leave),
        cmocka_unit_test_setup_teardown(test_syncs_are_needed, enter_beside, leave),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
