#define _DEFAULT_SOURCE
#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/report/panel.h"
#include "trainer/session.h"

enum { DEFAULT_COLUMNS = 80, LEAST_COLUMNS = 50 };

static int columns_of_terminal(void)
{
    struct winsize size;
    const bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    const int columns = known ? size.ws_col : DEFAULT_COLUMNS;
    return columns < LEAST_COLUMNS ? LEAST_COLUMNS : columns;
}

/* Steps of the run; 0: its config cannot be read, as while it is being written. */
static int64_t steps_of(const char *run)
{
    struct config config;
    config_init(&config);
    config.stored = true;
    const bool read = session_read_config(&config, run, NULL, 0) == STATUS_OK;
    const int64_t steps = read ? config.run.steps : 0;
    config_free(&config);
    return steps;
}

static double quiet_seconds(const struct history *history)
{
    struct stat about;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return stat(history->path, &about) == 0 ? (double)(now.tv_sec - about.st_mtim.tv_sec) : 0;
}

/* Whether the process that held the run's lock last is gone, which is known on its own host only.
 */
static bool is_stopped(const char *run)
{
    char path[4096], held[256] = "", host[256] = "";
    long pid = 0;
    snprintf(path, sizeof path, "%.4000s/lock", run);
    FILE *lock = fopen(path, "r");
    const bool read = lock != NULL && fscanf(lock, "host %255[^,], pid %ld", held, &pid) == 2;
    if (lock != NULL) {
        fclose(lock);
    }
    gethostname(host, sizeof host - 1);
    return read && strcmp(host, held) == 0 && pid > 0 && kill((pid_t)pid, 0) != 0 && errno == ESRCH;
}

static void draw(struct panel *panel, const struct history *history, bool terminal)
{
    panel->columns = columns_of_terminal();
    panel->quiet_s = quiet_seconds(history);
    panel->stopped = is_stopped(panel->name);
    if (terminal) {
        printf("\033[H\033[J");
    }
    panel_draw(stdout, panel, history);
    fflush(stdout);
}

/* Until the run is done, or the user has seen enough. On a terminal the panel is drawn again and
 * again; into a file goes a line for every look that found a new step. */
static enum status follow(struct panel *panel, struct history *history, double interval)
{
    const bool terminal = isatty(STDOUT_FILENO) == 1;
    const struct timespec pause = {(time_t)interval,
                                   (long)(1e9 * (interval - (double)(time_t)interval))};
    for (int64_t shown = -1;;) {
        const int64_t step = history->count > 0 ? history->step[history->count - 1] : 0;
        if (terminal) {
            draw(panel, history, true);
        } else if (step != shown) {
            panel_line(stdout, panel, history);
            printf("\n");
            fflush(stdout);
        }
        shown = step;
        if (panel_done(panel, history)) {
            return STATUS_OK;
        }
        nanosleep(&pause, NULL);
        panel->steps = steps_of(panel->name); /* it may have been resumed with more */
        TRY(history_follow(history));
    }
}

enum status command_watch(int argc, char **argv)
{
    struct option_result options;
    bool once = false, ascii = false;
    double interval = 2;
    const struct option_spec specs[] = {
        {"--interval", OPTION_REAL, &interval, "SECONDS", "between two looks (2)"},
        {"--once", OPTION_FLAG, &once, NULL, "show the panel once and end"},
        {"--ascii", OPTION_FLAG, &ascii, NULL, "no characters beyond ASCII"},
        {0},
    };
    TRY(options_parse(&options, argc, argv, specs, "watch RUN_DIR",
                      "Follows a run in the terminal until it is done; reads its files only, from "
                      "any machine that sees them.\nWhere output is no terminal: a line for every "
                      "look that finds a new step.",
                      1, 1));
    if (options.help) {
        return STATUS_OK;
    }
    if (!(interval >= 0.05 && interval <= 86400)) {
        return status_fail(STATUS_USAGE, "--interval %g: give 0.05 to 86400 seconds", interval);
    }
    setlocale(LC_CTYPE, "");
    struct panel panel = {.name = options.words[0],
                          .steps = steps_of(options.words[0]),
                          .ascii = ascii || strcmp(nl_langinfo(CODESET), "UTF-8") != 0};
    struct history history;
    enum status status = history_open(&history, options.words[0]);
    if (status == STATUS_OK && once) {
        draw(&panel, &history, false);
    } else if (status == STATUS_OK) {
        status = follow(&panel, &history, interval);
    }
    history_close(&history);
    return status;
}
