#include <stdio.h>

#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/verify.h"

static enum status verify(const struct session *session, bool json)
{
    struct verify_report report;
    TRY(verify_run(session, &report));
    if (session_main_rank(session)) {
        (json ? verify_print_json : verify_print)(stdout, &report);
        fflush(stdout);
    }
    const bool good = !session_main_rank(session) || report.good;
    return comm_agree((struct comm *)&session->world,
                      good ? STATUS_OK : status_fail(STATUS_DIFFERENT, "%s", ""), NULL);
}

enum status command_verify(int argc, char **argv)
{
    struct option_result options;
    struct session session;
    bool json = false;
    const struct option_spec specs[] = {{"--json", OPTION_FLAG, &json, NULL, "print JSON"}, {0}};
    TRY(options_parse(&options, argc, argv, specs, "verify CONFIG [key=value ...]",
                      "Checks the layout before a long run: under the mpirun of the run, one step "
                      "over random tokens\non all ranks and on one: losses, routing, every "
                      "gradient, weights, a checkpoint's way back.\nExit code 1 when they differ.",
                      1, 1));
    if (options.help) {
        return STATUS_OK;
    }
    enum status status = session_open(&session, SESSION_TRAIN, options.words[0], options.overrides,
                                      options.override_count);
    if (status == STATUS_OK) {
        status = verify(&session, json);
    }
    return session_close(&session, status);
}
