/* io: what a call does, what it says when it fails, and what each fault leaves behind. */
#define _GNU_SOURCE
#include "unit/scratch.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PATH_BYTES = 4096, LIMIT = 1 << 20 };

static void expect_text(const char *path, const char *text)
{
    char *data = NULL;
    size_t bytes = 0;
    assert_int_equal(io_read_file(path, &data, &bytes, LIMIT), STATUS_OK);
    assert_int_equal(bytes, strlen(text));
    assert_string_equal(data, text);
    free(data);
}

/* --- calls --- */

static void test_write_read_and_place(void **state)
{
    (void)state;
    struct io_file file;
    char text[8] = "";
    int64_t bytes = -1;
    assert_int_equal(io_create(&file, "a"), STATUS_OK);
    assert_int_equal(io_write(&file, "abc", 3), STATUS_OK);
    assert_int_equal(io_write(&file, "def", 3), STATUS_OK);
    assert_int_equal(io_pwrite(&file, "XY", 2, 1), STATUS_OK);
    assert_int_equal(io_write(&file, "", 0), STATUS_OK);
    assert_int_equal(io_sync(&file), STATUS_OK);
    assert_int_equal(io_pread(&file, text, 4, 2), STATUS_OK);
    assert_memory_equal(text, "Ydef", 4);
    assert_int_equal(io_size(&file, &bytes), STATUS_OK);
    assert_int_equal(bytes, 6);
    assert_int_equal(io_truncate(&file, 2), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
    expect_text("a", "aX");
}

static void test_open_kinds(void **state)
{
    (void)state;
    struct io_file file;
    put("a", "old");
    assert_int_equal(io_open_append(&file, "a"), STATUS_OK);
    assert_int_equal(io_write(&file, "+new", 4), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
    expect_text("a", "old+new");
    assert_int_equal(io_open_write(&file, "a"), STATUS_OK);
    assert_int_equal(io_pwrite(&file, "O", 1, 0), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
    expect_text("a", "Old+new");
    assert_int_equal(io_open_append(&file, "fresh"), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
    expect_text("fresh", "");
    assert_int_equal(io_create(&file, "a"), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
    expect_text("a", "");
}

static void test_missing_files_are_named(void **state)
{
    (void)state;
    struct io_file file;
    char *data = NULL;
    size_t bytes = 0;
    assert_int_equal(io_open_read(&file, "gone"), STATUS_IO);
    expect_message("gone");
    assert_int_equal(io_close(&file), STATUS_OK);
    assert_int_equal(io_open_write(&file, "gone"), STATUS_IO);
    assert_int_equal(io_create(&file, "no/folder"), STATUS_IO);
    expect_message("no/folder");
    assert_int_equal(io_read_file("gone", &data, &bytes, LIMIT), STATUS_IO);
    assert_null(data);
    assert_int_equal(io_rename("gone", "b"), STATUS_IO);
    assert_int_equal(io_sync_dir("gone"), STATUS_IO);
    assert_int_equal(io_remove("gone"), STATUS_OK);
    assert_int_equal(io_remove_tree("gone"), STATUS_OK);
    assert_false(io_exists("gone"));
}

static void test_short_file_is_bad_data(void **state)
{
    (void)state;
    struct io_file file;
    char text[8];
    put("a", "abc");
    assert_int_equal(io_open_read(&file, "a"), STATUS_OK);
    assert_int_equal(io_pread(&file, text, 3, 1), STATUS_DATA);
    expect_message("truncated");
    assert_int_equal(io_close(&file), STATUS_OK);
}

static void test_read_file_keeps_its_limit(void **state)
{
    (void)state;
    char *data = NULL;
    size_t bytes = 0;
    put("a", "abcd");
    assert_int_equal(io_read_file("a", &data, &bytes, 3), STATUS_DATA);
    assert_null(data);
    assert_int_equal(io_read_file("a", &data, &bytes, 4), STATUS_OK);
    free(data);
}

static void test_full_device(void **state)
{
    (void)state;
    struct io_file file;
    if (access("/dev/full", W_OK) != 0) {
        skip();
    }
    assert_int_equal(io_open_write(&file, "/dev/full"), STATUS_OK);
    assert_int_equal(io_write(&file, "x", 1), STATUS_IO);
    expect_message("/dev/full");
    expect_message("free space");
    assert_int_equal(io_close(&file), STATUS_OK);
}

static void test_folders(void **state)
{
    (void)state;
    assert_int_equal(io_make_dir("a/b//c/"), STATUS_OK);
    assert_int_equal(io_make_dir("a/b/c"), STATUS_OK);
    assert_true(io_exists("a/b/c"));
    put("a/b/c/file", "1");
    put("a/.hidden", "2");
    assert_int_equal(io_sync_dir("a"), STATUS_OK);
    put("plain", "3");
    assert_int_equal(io_make_dir("plain/x"), STATUS_IO);
    expect_message("plain");
    assert_int_equal(io_remove_tree("plain"), STATUS_OK);
    assert_int_equal(io_remove_tree("a"), STATUS_OK);
    assert_false(io_exists("a"));
}

static void test_file_in_place_of_a_folder(void **state)
{
    (void)state;
    put("plain", "1");
    assert_int_equal(io_make_dir("plain"), STATUS_IO);
    expect_message("plain");
}

/* A link inside a run directory may point at another run: the link goes, what it points at stays.
 */
static void test_remove_tree_does_not_follow_links(void **state)
{
    (void)state;
    assert_int_equal(io_make_dir("precious"), STATUS_OK);
    assert_int_equal(io_make_dir("trash"), STATUS_OK);
    put("precious/file", "keep");
    assert_int_equal(symlink("../precious", "trash/to_folder"), 0);
    assert_int_equal(symlink("../precious/file", "trash/to_file"), 0);
    assert_int_equal(symlink("nowhere", "trash/dangling"), 0);
    assert_int_equal(io_remove_tree("trash"), STATUS_OK);
    assert_false(io_exists("trash"));
    expect_text("precious/file", "keep");
    assert_int_equal(symlink("precious", "link"), 0);
    assert_int_equal(io_remove_tree("link"), STATUS_OK);
    assert_false(io_exists("link"));
    expect_text("precious/file", "keep");
}

/* A file comes in place of a file or of nothing. */
static void test_only_files_are_replaced(void **state)
{
    (void)state;
    struct stat info;
    assert_int_equal(io_make_dir("folder"), STATUS_OK);
    assert_int_equal(mkfifo("pipe", 0600), 0);
    put("file", "1");
    assert_int_equal(io_check_output("file"), STATUS_OK);
    assert_int_equal(io_check_output("none"), STATUS_OK);
    const char *const others[] = {"folder", "none/", "", "pipe"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        assert_int_equal(io_check_output(others[i]), STATUS_USAGE);
        expect_message("name a file to write");
    }
    assert_int_equal(io_write_file("pipe", "x", 1), STATUS_USAGE);
    assert_int_equal(io_rename("file", "pipe"), STATUS_IO);
    expect_message("a pipe or a device");
    assert_int_equal(stat("pipe", &info), 0);
    assert_true(S_ISFIFO(info.st_mode));
}

/* A path cut to a buffer's length would name another file. */
static void test_paths_are_never_cut(void **state)
{
    (void)state;
    char path[2 * PATH_BYTES];
    memset(path, '/', sizeof path);
    path[0] = '.';
    strcpy(path + PATH_BYTES - 2, "v"); /* fits, ".tmp" beside it does not */
    assert_int_equal(io_write_file(path, "x", 1), STATUS_IO);
    expect_message("too long");
    assert_false(io_exists("v"));
    assert_int_equal(io_make_dir("deep"), STATUS_OK);
    put("deep/filename", "1");
    memset(path, '/', sizeof path);
    memcpy(path, "./deep", 6);
    path[PATH_BYTES - 4] = '\0'; /* the folder opens, "/filename" no longer fits */
    assert_int_equal(io_remove_tree(path), STATUS_IO);
    expect_message("too long");
    expect_text("deep/filename", "1");
}

static void test_write_file_replaces_whole(void **state)
{
    (void)state;
    put("a", "a long first version");
    put("a", "second");
    expect_text("a", "second");
    assert_false(io_exists("a.tmp"));
}

/* --- locks --- */

static void test_lock_holds_others_off(void **state)
{
    (void)state;
    struct io_file lock, second;
    char pid[32];
    put("lock", "a stale holder with a much longer text than any living one could ever write here");
    assert_int_equal(io_lock(&lock, "lock"), STATUS_OK);
    assert_int_equal(io_lock(&second, "lock"), STATUS_USAGE);
    snprintf(pid, sizeof pid, "pid %ld, since 20", (long)getpid());
    expect_message(pid);
    expect_message("host ");
    io_unlock(&second); /* after a refusal: harmless */
    io_unlock(&lock);
    io_unlock(&lock);
    assert_int_equal(io_lock(&second, "lock"), STATUS_OK);
    io_unlock(&second);
}

static void test_lock_dies_with_its_process(void **state)
{
    (void)state;
    struct io_file lock;
    const pid_t child = fork();
    if (child == 0) {
        _exit(io_lock(&lock, "lock") == STATUS_OK ? 0 : 1);
    }
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_true(WIFEXITED(how) && WEXITSTATUS(how) == 0);
    assert_int_equal(io_lock(&lock, "lock"), STATUS_OK);
    io_unlock(&lock);
}

/* --- faults --- */

/* Every kind of modifying operation; `new` replaces "value" only at io_write_file's rename. */
static enum status work_inside(void)
{
    struct io_file file;
    TRY(io_make_dir("work/deep"));
    TRY(io_create(&file, "work/deep/a"));
    enum status status = io_write(&file, "0123456789", 10);
    status = status == STATUS_OK ? io_pwrite(&file, "abcd", 4, 2) : status;
    status = status == STATUS_OK ? io_truncate(&file, 8) : status;
    status = status == STATUS_OK ? io_sync(&file) : status;
    const enum status closed = io_close(&file);
    TRY(status);
    TRY(closed);
    TRY(io_rename("work/deep/a", "work/deep/b"));
    TRY(io_sync_dir("work/deep"));
    TRY(io_write_file("value", "new", 3));
    TRY(io_remove("work/deep/b"));
    return io_remove_tree("work");
}

static int64_t work_operations(void)
{
    io_fault_arm(IO_FAULT_NONE, 0, false);
    put("value", "old");
    io_fault_arm(IO_FAULT_NONE, 0, false);
    assert_int_equal(work_inside(), STATUS_OK);
    return io_operations();
}

static void expect_old_or_new(void)
{
    char *data = NULL;
    size_t bytes = 0;
    assert_int_equal(io_read_file("value", &data, &bytes, LIMIT), STATUS_OK);
    assert_true(strcmp(data, "old") == 0 || strcmp(data, "new") == 0);
    free(data);
}

static void test_operations_are_counted(void **state)
{
    (void)state;
    char *data = NULL;
    size_t bytes = 0;
    /* 2 folders and where they lie, create, 2 writes, truncate, sync, close, rename, sync_dir,
     * write_file's 5, remove, 2 folders */
    assert_int_equal(work_operations(), 20);
    io_fault_arm(IO_FAULT_NONE, 0, false);
    io_fault_arm_reads(IO_FAULT_NONE, 0, false);
    assert_int_equal(io_read_file("value", &data, &bytes, LIMIT), STATUS_OK);
    free(data);
    assert_int_equal(io_operations(), 0); /* reading modifies nothing */
    assert_int_equal(io_reads(), 3);      /* open, size, read */
}

static void test_errors_come_once_or_stay(void **state)
{
    (void)state;
    static const struct {
        enum io_fault fault;
        const char *text;
    } kinds[] = {{IO_FAULT_EIO, "Input/output error"},
                 {IO_FAULT_ENOSPC, "No space left on device"},
                 {IO_FAULT_EDQUOT, "Disk quota exceeded"}};
    int full = 0;
    const int64_t operations = work_operations();
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
        for (int64_t k = 1; k <= operations; k++) {
            io_fault_arm(IO_FAULT_NONE, 0, false);
            put("value", "old");
            io_fault_arm(kinds[kind].fault, k, false);
            assert_int_equal(work_inside(), STATUS_IO);
            assert_in_range(io_operations(), k, k + 1); /* what is open is closed */
            const bool as_said = strstr(status_message(), kinds[kind].text) != NULL;
            full += as_said && kind > 0;
            assert_true(as_said || strstr(status_message(), "Input/output error") != NULL);
            expect_old_or_new();
            assert_int_equal(work_inside(), STATUS_OK); /* a single fault is over */
            io_fault_arm(kinds[kind].fault, 1, true);
            assert_int_equal(work_inside(), STATUS_IO);
            assert_int_equal(work_inside(), STATUS_IO);
        }
    }
    assert_int_equal(full, 2 * (operations - 3)); /* removing 3 names needs no space */
    io_fault_arm(IO_FAULT_EIO, operations + 1, false);
    assert_int_equal(work_inside(), STATUS_OK); /* past the end: not met */
}

static void test_short_writes_are_finished(void **state)
{
    (void)state;
    static char data[10001];
    struct io_file file;
    memset(data, 'd', sizeof data - 1);
    io_fault_arm(IO_FAULT_SHORT, 1, true);
    put("a", data);
    assert_int_equal(io_open_write(&file, "a"), STATUS_OK);
    assert_int_equal(io_pwrite(&file, "12345", 5, 9997), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
    char *back = NULL;
    size_t bytes = 0;
    assert_int_equal(io_read_file("a", &back, &bytes, LIMIT), STATUS_OK);
    assert_int_equal(bytes, 10002);
    assert_memory_equal(back, data, 9997);
    assert_string_equal(back + 9997, "12345");
    free(back);
}

static void test_interruptions_are_not_errors(void **state)
{
    (void)state;
    const int64_t operations = work_operations();
    for (int64_t k = 0; k <= operations; k++) { /* 0: all of them */
        put("value", "old");
        io_fault_arm(IO_FAULT_EINTR, k > 0 ? k : 1, k == 0);
        assert_int_equal(work_inside(), STATUS_OK);
        assert_int_equal(io_operations(), operations);
        io_fault_arm(IO_FAULT_NONE, 0, false);
        expect_text("value", "new");
    }
}

static enum status count_name(void *context, const char *name)
{
    ++*(int *)context;
    return strcmp(name, "stop") == 0 ? status_fail(STATUS_DATA, "stop") : STATUS_OK;
}

static void test_list(void **state)
{
    (void)state;
    int count = 0;
    bool there = true;
    assert_int_equal(io_list("gone", &there, count_name, &count), STATUS_OK);
    assert_true(!there && count == 0);
    put("plain", "x");
    assert_int_equal(io_list("plain", &there, count_name, &count), STATUS_IO);
    expect_message("plain");
    assert_int_equal(io_make_dir("many/.hidden"), STATUS_OK);
    put("many/a", "x");
    put("many/b", "x");
    assert_int_equal(io_list("many", &there, count_name, &count), STATUS_OK);
    assert_true(there && count == 3);
    put("many/stop", "x");
    assert_int_equal(io_list("many", &there, count_name, &count), STATUS_DATA);
}

/* Faults of reading: an error is reported, an interruption or a short read is none. */
static void test_reads_fail_or_finish(void **state)
{
    (void)state;
    static const struct {
        enum io_fault fault;
        enum status status;
    } kinds[] = {
        {IO_FAULT_EIO, STATUS_IO}, {IO_FAULT_EINTR, STATUS_OK}, {IO_FAULT_SHORT, STATUS_OK}};
    char *data = NULL;
    size_t bytes = 0;
    bool there = false;
    int count = 0;
    put("value", "a text of some length");
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
        for (int64_t k = 1; k <= 4; k++) {
            io_fault_arm_reads(kinds[kind].fault, k, false);
            enum status status = io_read_file("value", &data, &bytes, LIMIT);
            if (status == STATUS_OK) {
                assert_string_equal(data, "a text of some length");
                status = io_list(".", &there, count_name, &count);
            }
            free(data);
            assert_int_equal(status, kinds[kind].status);
            assert_int_equal(io_reads(), status == STATUS_OK ? 4 : k);
        }
    }
    assert_true(count > 0);
    io_fault_arm_reads(IO_FAULT_NONE, 0, false);
}

/* Whole blocks go past the page cache where the file system can, the rest through it. */
static void test_direct_files(void **state)
{
    (void)state;
    enum { BLOCK = 3 * IO_ALIGNMENT, REST = 77 };
    struct io_file file;
    char *data = aligned_alloc(IO_ALIGNMENT, 2 * BLOCK);
    assert_non_null(data);
    for (int i = 0; i < 2 * BLOCK; i++) {
        data[i] = (char)(i * 7);
    }
    assert_int_equal(io_create_direct(&file, "a"), STATUS_OK);
    assert_int_equal(io_pwrite(&file, data, BLOCK, 0), STATUS_OK);
    assert_int_equal(io_pwrite(&file, data + BLOCK, REST, BLOCK), STATUS_OK);
    assert_int_equal(io_sync(&file), STATUS_OK);
    assert_int_equal(io_close(&file), STATUS_OK);
    for (int shorten = 0; shorten < 2; shorten++) {
        char *back = aligned_alloc(IO_ALIGNMENT, 2 * BLOCK);
        assert_non_null(back);
        assert_int_equal(io_open_read_direct(&file, "a"), STATUS_OK);
        io_fault_arm_reads(shorten ? IO_FAULT_SHORT : IO_FAULT_NONE, 1, true);
        assert_int_equal(io_pread(&file, back, BLOCK, 0), STATUS_OK);
        assert_int_equal(io_pread(&file, back + BLOCK, REST, BLOCK), STATUS_OK);
        assert_memory_equal(back, data, BLOCK + REST);
        assert_int_equal(io_pread(&file, back + 1, BLOCK, 5), STATUS_OK);
        assert_memory_equal(back + 1, data + 5, BLOCK);
        assert_int_equal(io_close(&file), STATUS_OK);
        io_fault_arm_reads(IO_FAULT_NONE, 0, false);
        free(back);
    }
    free(data);
}

struct seen {
    int count;
    enum io_kind kind[32];
    int64_t bytes, offset; /* of the last write */
};

static void see(void *context, const struct io_event *event)
{
    struct seen *seen = context;
    assert_true(seen->count < 32);
    seen->kind[seen->count++] = event->kind;
    if (event->kind == IO_WRITE) {
        seen->bytes = event->bytes;
        seen->offset = event->offset;
    }
}

static void test_operations_are_seen(void **state)
{
    (void)state;
    static const enum io_kind expected[] = {
        IO_MAKE_DIR, IO_SYNC_DIR, IO_MAKE_DIR, IO_SYNC_DIR, IO_CREATE,     IO_WRITE,     IO_WRITE,
        IO_TRUNCATE, IO_SYNC,     IO_CLOSE,    IO_RENAME,   IO_SYNC_DIR,   IO_CREATE,    IO_WRITE,
        IO_SYNC,     IO_CLOSE,    IO_RENAME,   IO_REMOVE,   IO_REMOVE_DIR, IO_REMOVE_DIR};
    struct seen seen = {0};
    struct io_file file;
    io_observe(see, &seen);
    assert_int_equal(work_inside(), STATUS_OK);
    assert_int_equal(seen.count, sizeof expected / sizeof expected[0]);
    assert_memory_equal(seen.kind, expected, sizeof expected);
    assert_int_equal(io_open_append(&file, "value"), STATUS_OK);
    assert_int_equal(io_write(&file, "12", 2), STATUS_OK);
    assert_int_equal(io_write(&file, "345", 3), STATUS_OK);
    assert_true(seen.bytes == 3 && seen.offset == 5); /* behind "new" and "12" */
    io_observe(NULL, NULL);
    assert_int_equal(io_close(&file), STATUS_OK);
}

static void test_kills_never_tear_a_value(void **state)
{
    (void)state;
    static const enum io_fault kinds[] = {IO_FAULT_KILL_BEFORE, IO_FAULT_KILL_TORN,
                                          IO_FAULT_KILL_AFTER};
    const int64_t operations = work_operations();
    for (size_t kind = 0; kind < sizeof kinds / sizeof kinds[0]; kind++) {
        for (int64_t k = 1; k <= operations; k++) {
            put("value", "old");
            assert_true(killed(work_inside, kinds[kind], k));
            expect_old_or_new();
            assert_int_equal(io_remove_tree("work"), STATUS_OK);
        }
        assert_false(killed(work_inside, kinds[kind], operations + 1));
    }
}

static enum status write_ten(void)
{
    struct io_file file;
    TRY(io_open_write(&file, "a"));
    const enum status status = io_pwrite(&file, "0123456789", 10, 1);
    const enum status closed = io_close(&file);
    return status != STATUS_OK ? status : closed;
}

static void test_kills_leave_what_they_say(void **state)
{
    (void)state;
    static const struct {
        enum io_fault fault;
        const char *left;
    } cases[] = {{IO_FAULT_KILL_BEFORE, "..."},
                 {IO_FAULT_KILL_TORN, ".01234"},
                 {IO_FAULT_KILL_AFTER, ".0123456789"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put("a", "...");
        assert_true(killed(write_ten, cases[i].fault, 2));
        expect_text("a", cases[i].left);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_write_read_and_place),
        SCRATCH_TEST(test_open_kinds),
        SCRATCH_TEST(test_missing_files_are_named),
        SCRATCH_TEST(test_short_file_is_bad_data),
        SCRATCH_TEST(test_read_file_keeps_its_limit),
        SCRATCH_TEST(test_full_device),
        SCRATCH_TEST(test_folders),
        SCRATCH_TEST(test_file_in_place_of_a_folder),
        SCRATCH_TEST(test_remove_tree_does_not_follow_links),
        SCRATCH_TEST(test_only_files_are_replaced),
        SCRATCH_TEST(test_paths_are_never_cut),
        SCRATCH_TEST(test_write_file_replaces_whole),
        SCRATCH_TEST(test_lock_holds_others_off),
        SCRATCH_TEST(test_lock_dies_with_its_process),
        SCRATCH_TEST(test_operations_are_counted),
        SCRATCH_TEST(test_errors_come_once_or_stay),
        SCRATCH_TEST(test_short_writes_are_finished),
        SCRATCH_TEST(test_interruptions_are_not_errors),
        SCRATCH_TEST(test_list),
        SCRATCH_TEST(test_reads_fail_or_finish),
        SCRATCH_TEST(test_direct_files),
        SCRATCH_TEST(test_operations_are_seen),
        SCRATCH_TEST(test_kills_never_tear_a_value),
        SCRATCH_TEST(test_kills_leave_what_they_say),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
