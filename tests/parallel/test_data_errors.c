/* A token file that one rank cannot read: every rank is told so, with the same words, at the step
 * that needs it, and in evaluation; before that, steps are those of a run that read it well. */
#include <unistd.h>

#include "data/token_writer.h"
#include "ranks.h"
#include "tiny_model.h"

enum { MOST_PATH = 512 };

/* The tokens of a tiny model as a file, which the model takes them from. */
static void move_to_file(struct comm *world, struct tiny *tiny, const char *path)
{
    if (world->rank == 0) {
        const struct token_writer_options options = {.vocab_size = tiny->config.model.vocab_size,
                                                     .eos_id = -1,
                                                     .tokenizer = "none",
                                                     .tokenizer_hash = "none"};
        struct token_writer *writer = NULL;
        CHECK_EQUAL(world, token_writer_open(&writer, path, &options), STATUS_OK);
        CHECK_EQUAL(world,
                    token_writer_add(writer, (const uint32_t *)tiny->tokens, NULL, TINY_TOKENS),
                    STATUS_OK);
        CHECK_EQUAL(world, token_writer_close(writer), STATUS_OK);
    }
    comm_barrier(world);
    CHECK_EQUAL(world, token_store_open(&tiny->store, path), STATUS_OK);
}

/* The same status and words everywhere. */
static void expect_told(struct comm *world, enum status status)
{
    char first[1024] = "";
    snprintf(first, sizeof first, "%s", status_message());
    comm_broadcast(world, first, sizeof first, 0);
    CHECK_EQUAL(world, status, STATUS_IO);
    CHECK_MESSAGE(world, "data.h5: cannot read: Input/output error");
    CHECK_MESSAGE(world, first);
}

static void make_folder(struct comm *world, char folder[MOST_PATH])
{
    if (world->rank == 0) {
        snprintf(folder, MOST_PATH, "%s/switchyard-test-XXXXXX",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
        CHECK(world, mkdtemp(folder) != NULL);
    }
    comm_broadcast(world, folder, MOST_PATH, 0);
}

static void drop_folder(struct comm *world, const char *folder)
{
    comm_barrier(world);
    if (world->rank == 0) {
        CHECK_EQUAL(world, io_remove_tree(folder), STATUS_OK);
    }
    comm_barrier(world);
}

/* Of one rank the first read of the tokens fails: the step, or the evaluation, of all. */
static void check_rank(struct comm *world, const char *path, int rank, bool evaluates)
{
    static const char *const overrides[TINY_OVERRIDES] = {"train.micro_batch=1", NULL};
    static struct tiny tiny;
    struct step_result result;
    double loss = 0;
    int64_t labels = 0;
    CHECK_EQUAL(world, tiny_open(&tiny, world, TINY_MIXTRAL, overrides), STATUS_OK);
    move_to_file(world, &tiny, path);
    io_fault_arm_reads(world->rank == rank ? IO_FAULT_EIO : IO_FAULT_NONE, 1, false);
    expect_told(world, evaluates ? step_evaluate(&tiny.model, &tiny.loader, 0, NULL, &loss, &labels)
                                 : stepper_step(&tiny.stepper, 1, 0, &result));
    io_fault_arm_reads(IO_FAULT_NONE, 0, false);
    tiny_close(&tiny);
    token_store_close(&tiny.store);
    comm_barrier(world);
}

static void test_one_rank_fails(struct comm *world)
{
    char folder[MOST_PATH], path[2 * MOST_PATH];
    make_folder(world, folder);
    snprintf(path, sizeof path, "%s/data.h5", folder);
    for (int rank = 0; rank < world->size; rank++) {
        check_rank(world, path, rank, false);
        check_rank(world, path, rank, true);
    }
    drop_folder(world, folder);
}

/* From a file as from memory. */
static void test_the_same_steps(struct comm *world)
{
    static const char *const overrides[TINY_OVERRIDES] = {"train.micro_batch=1", NULL};
    static struct tiny tiny;
    double losses[2][3];
    char folder[MOST_PATH], path[2 * MOST_PATH];
    make_folder(world, folder);
    snprintf(path, sizeof path, "%s/data.h5", folder);
    for (int run = 0; run < 2; run++) {
        CHECK_EQUAL(world, tiny_open(&tiny, world, TINY_MIXTRAL, overrides), STATUS_OK);
        if (run == 1) {
            move_to_file(world, &tiny, path);
        }
        for (int64_t step = 1; step <= 3; step++) {
            struct step_result result;
            CHECK_EQUAL(world, stepper_step(&tiny.stepper, step, 8 * (step - 1), &result),
                        STATUS_OK);
            losses[run][step - 1] = result.loss;
        }
        tiny_close(&tiny);
    }
    token_store_close(&tiny.store);
    CHECK(world, memcmp(losses[0], losses[1], sizeof losses[0]) == 0);
    drop_folder(world, folder);
}

int main(void)
{
    static const struct ranks_test tests[] = {
        RANKS_TEST(test_one_rank_fails),
        RANKS_TEST(test_the_same_steps),
    };
    return RANKS_MAIN(tests);
}
