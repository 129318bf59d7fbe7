#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/base/io.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/run_dir.h"
#include "trainer/session.h"
#include "trainer/training.h"

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
    enum status status = session_open(&session, SESSION_TRAIN, options.words[0], options.overrides,
                                      options.override_count);
    if (status == STATUS_OK) {
        status = training_run(&session, fresh);
    }
    return session_close(&session, status);
}
