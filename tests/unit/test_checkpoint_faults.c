/* checkpoint: whatever happens to the disk or the process in the middle of a save, a whole
 * checkpoint is there afterwards: the one before or the new one. All of it twice: with saves that
 * the caller waits for, and with saves beside it, whose files are the thread's business alone while
 * the caller changes what is saved. Ends with a table of all trials.
 */
#define _GNU_SOURCE
#include "unit/scratch.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>

#include "checkpoints/background.h"
#include "checkpoints/verify.h"

/* Tensor "a" has SMALL elements, or WIDE: several blocks, which a thread of their own writes. */
enum { SMALL = 3000, WIDE = 2100000, OLD = 10, NEW = 20 };

static struct comm self;
static bool beside;              /* how is saved */
static int64_t elements = SMALL; /* of "a" */
static int64_t operations;       /* of saving NEW beside OLD */

/* Trials of one kind: `old` ended with the checkpoint before as the newest, `new` with the new one.
 */
static struct row {
    const char *what;
    bool beside;
    int64_t tried, old, new;
} rows[32];
static int row_count;
static int64_t tried, newer; /* of the kind on its way */

static void end_row(const char *what)
{
    assert_true(row_count < (int)(sizeof rows / sizeof rows[0]));
    rows[row_count++] = (struct row){what, beside, tried, tried - newer, newer};
    tried = newer = 0;
}

/* A trial that lost the checkpoint before has failed its test: none gets here. */
static void print_rows(void)
{
    for (int i = 0; i < row_count; i++) {
        const struct row *row = &rows[i];
        if (i == 0 || row->beside != row[-1].beside) {
            printf("%-38s %6s %9s %9s %9s %5s\n",
                   row->beside ? "... of a save beside the training"
                               : "at every operation of a save",
                   "tried", "survived", "with old", "with new", "lost");
        }
        printf("%-38s %6lld %9lld %9lld %9lld %5d\n", row->what, (long long)row->tried,
               (long long)(row->old + row->new), (long long)row->old, (long long)row->new, 0);
    }
}

/* Two tensors; the value of an element says its step. */
static void describe(struct checkpoint_slice slices[2], float *a, uint16_t *b)
{
    slices[0] = (struct checkpoint_slice){.name = "layers.0.a",
                                          .dtype = DTYPE_F32,
                                          .ndim = 2,
                                          .shape = {elements / 3, 3},
                                          .count = elements,
                                          .data = a};
    slices[1] = (struct checkpoint_slice){
        .name = "b", .dtype = DTYPE_BF16, .ndim = 1, .shape = {7}, .count = 7, .data = b};
}

/* Step edges until a save by the threads has ended; training changes what is saved at once. */
static enum status save_beside(int64_t step, const char *text,
                               const struct checkpoint_slice slices[2])
{
    static struct background background;
    enum status status = background_init(&background, &self, slices, 2, NULL, false);
    assert_int_equal(status, STATUS_OK);
    status = background_start(&background, "root", step, strdup(text), 2);
    if (status == STATUS_OK) {
        background_hold(&background);
        memset(slices[0].data, 0x55, (size_t)elements * sizeof(float));
        while (!background_poll(&background, &status)) {
            nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
        }
    }
    background_free(&background);
    return status;
}

static enum status save(int64_t step)
{
    static float a[WIDE];
    static uint16_t b[7];
    struct checkpoint_slice slices[2];
    char state[32];
    const struct checkpoint_options options = {.keep_last = 2};
    for (int64_t i = 0; i < elements; i++) {
        a[i] = (float)(step * 10000 + i);
    }
    for (int i = 0; i < 7; i++) {
        b[i] = (uint16_t)(step * 100 + i);
    }
    describe(slices, a, b);
    snprintf(state, sizeof state, "{\"step\": %d}", (int)step);
    return beside ? save_beside(step, state, slices)
                  : checkpoint_save(&self, "root", step, state, slices, 2, &options);
}

static void warn(void *context, const char *message)
{
    (void)message;
    ++*(int *)context;
}

static void expect_whole(int64_t step)
{
    static float a[WIDE];
    static uint16_t b[7];
    struct checkpoint_slice slices[2];
    char path[64], expected[32], *state = NULL;
    memset(a, 0x77, sizeof a);
    describe(slices, a, b);
    snprintf(path, sizeof path, "root/%08d", (int)step);
    if (checkpoint_load(&self, path, slices, 2) != STATUS_OK) {
        fail_msg("%s", status_message());
    }
    for (int64_t i = 0; i < elements; i++) {
        assert_true(a[i] == (float)(step * 10000 + i));
    }
    for (int i = 0; i < 7; i++) {
        assert_int_equal(b[i], step * 100 + i);
    }
    assert_int_equal(checkpoint_state(path, &state), STATUS_OK);
    snprintf(expected, sizeof expected, "{\"step\": %d}", (int)step);
    assert_string_equal(state, expected);
    free(state);
}

/* The newest valid checkpoint's step; it is whole, and so is the one before. */
static int64_t expect_resumable(void)
{
    char *path = NULL;
    int64_t step = 0;
    int skipped = 0;
    io_fault_arm(IO_FAULT_NONE, 0, false);
    io_fault_arm_reads(IO_FAULT_NONE, 0, false);
    assert_int_equal(checkpoint_newest(&self, "root", INT64_MAX, &path, &step, warn, &skipped),
                     STATUS_OK);
    assert_non_null(path);
    assert_int_equal(skipped, 0); /* nothing half-made has a checkpoint's name */
    free(path);
    assert_true(step == OLD || step == NEW);
    expect_whole(step);
    expect_whole(OLD);
    tried++;
    newer += step == NEW;
    return step;
}

/* Entries of `root` that begin with `start`. */
static int entries(const char *start)
{
    int count = 0;
    DIR *dir = opendir("root");
    assert_non_null(dir);
    for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir)) {
        count += strncmp(entry->d_name, start, strlen(start)) == 0;
    }
    closedir(dir);
    return count;
}

/* Back to the old checkpoint alone. */
static void forget_new(void)
{
    io_fault_arm(IO_FAULT_NONE, 0, false);
    io_fault_arm_reads(IO_FAULT_NONE, 0, false);
    assert_int_equal(io_remove_tree("root/00000020"), STATUS_OK);
    assert_int_equal(checkpoint_clean("root"), STATUS_OK);
    assert_int_equal(entries(".tmp-") + entries(".trash-"), 0);
}

/* Operations of the caller's own thread. */
static pthread_t caller;
static int64_t own;

static void count_own(void *context, const struct io_event *event)
{
    (void)context;
    (void)event;
    own += pthread_equal(pthread_self(), caller) != 0;
}

static int enter(void **state)
{
    if (scratch_enter(state) != 0 || comm_open(&self, "self") != STATUS_OK ||
        save(OLD) != STATUS_OK) {
        return 1;
    }
    caller = pthread_self();
    own = tried = newer = 0;
    io_fault_arm(IO_FAULT_NONE, 0, false);
    io_observe(count_own, NULL);
    const enum status status = save(NEW);
    io_observe(NULL, NULL);
    operations = io_operations();
    return status != STATUS_OK || own != (beside ? 0 : operations) ||
           io_remove_tree("root") != STATUS_OK;
}

static int enter_beside(void **state)
{
    beside = true;
    return enter(state);
}

static int enter_wide(void **state)
{
    elements = WIDE;
    return enter_beside(state);
}

static int leave(void **state)
{
    comm_close(&self);
    elements = SMALL;
    beside = false;
    return scratch_leave(state);
}

/* The text of a fault's error, which every message has; NULL: not the kind that fails. */
static const char *text_of(enum io_fault fault)
{
    switch (fault) {
    case IO_FAULT_EIO:
        return "Input/output error";
    case IO_FAULT_ENOSPC:
        return "No space left on device";
    case IO_FAULT_EDQUOT:
        return "Disk quota exceeded";
    default:
        return NULL;
    }
}

static const char *const error_rows[3][2] = {
    {"EIO, once", "EIO, from there on"},
    {"ENOSPC, once", "ENOSPC, from there on"},
    {"EDQUOT, once", "EDQUOT, from there on"},
};

static void expect_error(enum io_fault fault)
{
    if (strstr(status_message(), text_of(fault)) == NULL) {
        expect_message(text_of(IO_FAULT_EIO)); /* of an operation that needs no space */
    }
    expect_message("root");
}

/* One save of NEW whose k-th operation fails; *published counts those that are there after all. */
static enum status save_with_fault(enum io_fault fault, int64_t k, bool sticky, int64_t *published)
{
    forget_new();
    io_fault_arm(fault, k, sticky);
    const enum status status = save(NEW);
    assert_true(status == STATUS_OK || status == STATUS_IO);
    if (status != STATUS_OK) {
        expect_error(fault);
    }
    const bool there = expect_resumable() == NEW;
    assert_true(there || status != STATUS_OK);
    *published += there;
    assert_true(sticky || entries(".tmp-") == 0); /* cleared at once, if it can be */
    if (status != STATUS_OK && !sticky) {
        assert_int_equal(save(NEW), STATUS_OK); /* a later save goes through */
        assert_int_equal(expect_resumable(), NEW);
        tried--; /* it is no trial of its own */
        newer--;
    }
    assert_int_equal(io_remove_tree("root/LATEST"), STATUS_OK);
    return status;
}

/* Every operation of a save, close among them, fails once or for good. */
static void test_disk_errors(void **state)
{
    (void)state;
    for (int fault = IO_FAULT_EIO; fault <= IO_FAULT_EDQUOT; fault++) {
        for (int sticky = 0; sticky < 2; sticky++) {
            int64_t k = 1, published = 0, failures = 0, good = 0;
            assert_int_equal(save(OLD), STATUS_OK);
            for (enum status status = STATUS_IO; k <= operations; k++) {
                status = save_with_fault((enum io_fault)fault, k, sticky != 0, &published);
                failures += status != STATUS_OK;
                good += status == STATUS_OK; /* it stands; what comes behind that is only told */
            }
            assert_true(failures + good == operations && published > good && good > 1);
            end_row(error_rows[fault - IO_FAULT_EIO][sticky]);
            assert_int_equal(save_with_fault((enum io_fault)fault, k, sticky != 0, &published),
                             STATUS_OK);
            assert_int_equal(io_remove_tree("root"), STATUS_OK);
            tried = newer = 0;
        }
    }
}

/* What could not be deleted behind a save goes with the next one. */
static void test_leftovers(void **state)
{
    enum { LATER = NEW + 10 };
    (void)state;
    int left = 0;
    for (int64_t k = 1; k <= 2 * operations; k++) {
        assert_int_equal(save(5), STATUS_OK);
        assert_int_equal(save(OLD), STATUS_OK);
        io_fault_arm(IO_FAULT_EIO, k, false);
        const enum status status = save(NEW); /* takes 5 away */
        io_fault_arm(IO_FAULT_NONE, 0, false);
        assert_true(status == STATUS_OK || status == STATUS_IO);
        left += entries(".trash-");
        assert_int_equal(save(LATER), STATUS_OK);
        assert_int_equal(entries(".trash-"), 0);
        assert_int_equal(io_remove_tree("root"), STATUS_OK);
    }
    assert_true(left > 1);
}

/* Signals and short writes are no errors, at any operation or at all. */
static void test_interruptions(void **state)
{
    (void)state;
    assert_int_equal(save(OLD), STATUS_OK);
    for (int64_t k = 0; k <= operations; k++) {
        for (int fault = IO_FAULT_EINTR; fault <= IO_FAULT_SHORT; fault++) {
            forget_new();
            assert_int_equal(io_remove_tree("root/LATEST"), STATUS_OK);
            io_fault_arm((enum io_fault)fault, k > 0 ? k : 1, k == 0);
            io_fault_arm_reads((enum io_fault)fault, k > 0 ? k : 1, k == 0);
            assert_int_equal(save(NEW), STATUS_OK);
            assert_int_equal(io_operations(), operations);
            assert_int_equal(expect_resumable(), NEW);
        }
    }
    end_row("a signal, a short transfer");
}

/* Errors of reading: the save does not trust what it cannot read back; a load says so. */
static void test_read_errors(void **state)
{
    (void)state;
    int64_t k = 1, reads = 0;
    assert_int_equal(save(OLD), STATUS_OK);
    for (enum status status = STATUS_IO; status != STATUS_OK; k++) {
        forget_new();
        io_fault_arm_reads(IO_FAULT_EIO, k, false);
        status = save(NEW);
        assert_true(status == STATUS_OK || status == STATUS_IO);
        (void)expect_resumable();
        assert_int_equal(entries(".tmp-"), 0);
    }
    assert_true(k > 8);
    end_row("EIO of a read");
    static float a[WIDE];
    static uint16_t b[7];
    struct checkpoint_slice slices[2];
    describe(slices, a, b);
    for (enum status status = STATUS_IO; status != STATUS_OK; reads++) {
        io_fault_arm_reads(IO_FAULT_EIO, reads + 1, false);
        status = checkpoint_load(&self, "root/00000020", slices, 2);
        assert_true(status == STATUS_OK || status == STATUS_IO || status == STATUS_DATA);
    }
    assert_true(reads > 4);
    printf("  %lld reads of a save, %lld of a load\n", (long long)k - 1, (long long)reads - 1);
}

static void ignore_line(void *context, const char *line)
{
    (void)line;
    ++*(int *)context;
}

/* `ckpt verify --deep`, whose reads are HDF5's too: what cannot be read is no whole checkpoint, and
 * is told; what is interrupted is read on. */
static void test_verify_errors(void **state)
{
    (void)state;
    static const enum io_fault kinds[] = {IO_FAULT_EIO, IO_FAULT_CUT, IO_FAULT_EINTR,
                                          IO_FAULT_SHORT};
    assert_int_equal(save(OLD), STATUS_OK);
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
        const bool fails = kinds[kind] == IO_FAULT_EIO || kinds[kind] == IO_FAULT_CUT;
        int64_t k = 1, failures = 0;
        for (bool met = true; met; k++) {
            struct verify_result result;
            int lines = 0;
            io_fault_arm_reads(kinds[kind], k, false);
            const enum status status =
                verify_checkpoint("root/00000010", true, &result, ignore_line, &lines);
            met = io_reads() >= k;
            io_fault_arm_reads(IO_FAULT_NONE, 0, false);
            assert_true(status == STATUS_OK || (fails && lines > 0));
            assert_true((status == STATUS_OK) == (result.problems == 0 && lines == 0));
            failures += status != STATUS_OK;
        }
        /* of 3 files: opened, sized, read; once more by HDF5 and for the tensors. No bytes, no cut
         */
        assert_true(k > 20 && (failures > 0) == fails);
        assert_true(kinds[kind] != IO_FAULT_EIO || failures == k - 2);
    }
}

/* One wrong bit in any read of a load: found, or of what nobody asked for; the state is the one
 * saved. */
static void test_flipped_reads(void **state)
{
    (void)state;
    static float a[SMALL];
    static uint16_t b[7];
    struct checkpoint_slice slices[2];
    int64_t found = 0;
    bool met = true;
    assert_int_equal(save(OLD), STATUS_OK);
    describe(slices, a, b);
    for (int64_t k = 1; met; k++) {
        char *text = NULL;
        io_fault_arm_reads(IO_FAULT_FLIP, k, false);
        enum status status = checkpoint_load(&self, "root/00000010", slices, 2);
        status = status == STATUS_OK ? checkpoint_state("root/00000010", &text) : status;
        met = io_reads() >= k;
        io_fault_arm_reads(IO_FAULT_NONE, 0, false);
        if (status == STATUS_OK) {
            assert_string_equal(text, "{\"step\": 10}");
            for (int64_t i = 0; i < SMALL; i++) {
                assert_true(a[i] == (float)(OLD * 10000 + i));
            }
            for (int i = 0; i < 7; i++) {
                assert_int_equal(b[i], OLD * 100 + i);
            }
        } else {
            assert_int_equal(status, STATUS_DATA);
            found++;
        }
        free(text);
    }
    assert_true(found >= 4); /* two manifests, a shard, the state */
    printf("  %lld of them found\n", (long long)found);
}

#define WIDE_NAME "3 blocks: "

static enum status save_new(void)
{
    return save(NEW);
}

static void test_kills(void **state)
{
    (void)state;
    static const enum io_fault kinds[] = {IO_FAULT_KILL_BEFORE, IO_FAULT_KILL_TORN,
                                          IO_FAULT_KILL_AFTER};
    static const char *const names[] = {WIDE_NAME "SIGKILL before it",
                                        WIDE_NAME "SIGKILL in the middle of it",
                                        WIDE_NAME "SIGKILL after it"};
    assert_int_equal(save(5), STATUS_OK); /* pruned by the new one: that is met, too */
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
        /* Every operation, pruning included; thin: every third, another one of each kind. */
        const int64_t stride = counts_thin() ? 3 : 1;
        int64_t k = counts_thin() ? 1 + (int64_t)kind : 1, published = 0;
        assert_int_equal(save(OLD), STATUS_OK);
        for (; killed(save_new, kinds[kind], k); k += stride) {
            published += expect_resumable() == NEW;
            forget_new();
            if (!io_exists("root/00000005/manifest.json")) {
                assert_int_equal(save(5), STATUS_OK);
            }
        }
        assert_true(k > 20 && published > (counts_thin() ? 0 : 1));
        end_row(names[kind] + (elements == WIDE ? 0 : sizeof WIDE_NAME - 1));
        assert_int_equal(expect_resumable(), NEW);
        forget_new();
        tried = newer = 0;
    }
}

/* The same step saved again over a whole checkpoint, as after an error behind the publication. */
static void test_kills_while_replacing(void **state)
{
    (void)state;
    int64_t k = 1;
    assert_int_equal(save(OLD), STATUS_OK);
    assert_int_equal(save(NEW), STATUS_OK);
    for (; killed(save_new, IO_FAULT_KILL_BEFORE, k); k += counts_thin() ? 3 : 1) {
        (void)expect_resumable();
        if (!io_exists("root/00000020")) {
            assert_int_equal(save(NEW), STATUS_OK);
        }
        assert_int_equal(checkpoint_clean("root"), STATUS_OK);
    }
    assert_true(k > 20);
    end_row("SIGKILL before it, replacing a step");
    assert_int_equal(expect_resumable(), NEW);
}

#define FAULTS_TEST(name, enter) cmocka_unit_test_setup_teardown(name, enter, leave)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FAULTS_TEST(test_disk_errors, enter),
        FAULTS_TEST(test_leftovers, enter),
        FAULTS_TEST(test_interruptions, enter),
        FAULTS_TEST(test_read_errors, enter),
        FAULTS_TEST(test_verify_errors, enter),
        FAULTS_TEST(test_flipped_reads, enter),
        FAULTS_TEST(test_kills, enter),
        FAULTS_TEST(test_kills_while_replacing, enter),
        FAULTS_TEST(test_disk_errors, enter_beside),
        FAULTS_TEST(test_leftovers, enter_beside),
        FAULTS_TEST(test_interruptions, enter_beside),
        FAULTS_TEST(test_read_errors, enter_beside),
        FAULTS_TEST(test_kills, enter_beside),
        FAULTS_TEST(test_kills_while_replacing, enter_beside),
    };
    const struct CMUnitTest wide[] = {FAULTS_TEST(test_kills, enter_wide)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    if (counts_full()) {
        failed += cmocka_run_group_tests(wide, NULL, NULL);
    }
    print_rows();
    return failed;
}
