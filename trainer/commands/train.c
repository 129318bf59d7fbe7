#include <malloc.h>
#include <stdio.h>

#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/commands/output.h"
#include "trainer/session.h"
#include "trainer/training.h"

/* Large pieces of memory, such as the blocks of a save, go back to the system when they are freed,
 * and the threads of saves share one heap: what a process holds is what it uses, and what `plan`
 * says, however many saves there were. The step loop allocates nothing. */
static void keep_memory_small(void)
{
#ifdef __GLIBC__
    enum { LARGE = 1 << 20 };
    (void)mallopt(M_MMAP_THRESHOLD, LARGE);
    (void)mallopt(M_ARENA_MAX, 1);
#endif
}

enum status command_train(int argc, char **argv)
{
    bool fresh = false;
    struct option_result options;
    struct session session;
    const struct option_spec specs[] = {
        {"--fresh", OPTION_FLAG, &fresh, NULL,
         "rename run.dir to run.dir.old-N and start anew; nothing is deleted"},
        {0}};
    TRY(options_parse(
        &options, argc, argv, specs, "train CONFIG [--fresh] [key=value ...]",
        "Trains a model. The same command again resumes from the newest checkpoint of run.dir.", 1,
        1));
    if (options.help) {
        return STATUS_OK;
    }
    keep_memory_small();
    enum status status = session_open(&session, SESSION_TRAIN, options.words[0], options.overrides,
                                      options.override_count);
    if (status == STATUS_OK) {
        status = training_run(&session, fresh);
    }
    status = session_close(&session, status);
    if (output_lost()) { /* the run is in its folder all the same */
        fprintf(stderr, "switchyard: warning: standard output: cannot be written; the run's lines "
                        "are in log.txt\n");
    }
    return status;
}
