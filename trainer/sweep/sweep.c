#define _POSIX_C_SOURCE 200809L
#include "trainer/sweep/sweep.h"
#include "trainer/figures.h"

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "kernels/base/io.h"
#include "trainer/signals.h"
#include "trainer/step.h"
#include "trainer/sweep/launch.h"

enum { MAX_PATH = 4096, POLL_MS = 200, PATIENCE_S = 60, EXIT_USAGE = 64, EXIT_SAVED = 85 };

enum status sweep_open(struct sweep *sweep, const char *path)
{
    *sweep = (struct sweep){0};
    TRY(sweep_plan_load(&sweep->plan, path));
    sweep->trial = calloc((size_t)sweep->plan.trials, sizeof *sweep->trial);
    if (sweep->trial == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for %lld trials",
                           (long long)sweep->plan.trials);
    }
    for (int64_t i = 0; i < sweep->plan.trials; i++) {
        TRY(trial_open(&sweep->trial[i], &sweep->plan, i));
    }
    return STATUS_OK;
}

void sweep_close(struct sweep *sweep)
{
    for (int64_t i = 0; sweep->trial != NULL && i < sweep->plan.trials; i++) {
        trial_close(&sweep->trial[i]);
    }
    free(sweep->trial);
    sweep_plan_free(&sweep->plan);
    *sweep = (struct sweep){0};
}

/* --- Which one next --- */

/* Whether a process trains it that is none of ours, such as one that a killed sweep left behind:
 * status_message() names it. */
static bool is_taken(const struct sweep *sweep, const struct sweep_trial *trial)
{
    char path[MAX_PATH];
    struct io_file lock = {.fd = -1};
    trial_path(&sweep->plan, trial->index, "/lock", path, sizeof path);
    if (!io_exists(path)) {
        return false;
    }
    const enum status status = io_lock(&lock, path);
    if (status == STATUS_OK) {
        io_unlock(&lock);
    }
    return status == STATUS_USAGE;
}

/* Left to begin again. */
static bool is_interrupted(const struct sweep_trial *trial)
{
    return trial->state == TRIAL_RUNNING && trial->pid == 0;
}

static double value_at(const struct sweep_trial *trial, int rung)
{
    return isnan(trial->rung_value[rung]) ? (double)INFINITY : trial->rung_value[rung];
}

/* The value that a trial must not exceed to go on from rung `rung`: that of the best `keep` of all
 * that reached it. NAN: too few have for one to be chosen. */
static double bar_of(const struct sweep *sweep, int rung, double *value)
{
    int64_t reached = 0;
    for (int64_t i = 0; i < sweep->plan.trials; i++) {
        const struct sweep_trial *trial = &sweep->trial[i];
        if (trial->rungs > rung) {
            value[reached++] = value_at(trial, rung);
        }
    }
    figure_sort(value, reached);
    const int64_t chosen = (int64_t)floor((double)reached * sweep->plan.keep + 1e-9);
    return chosen > 0 ? value[chosen - 1] : (double)NAN;
}

/* A paused trial that goes on, of the highest rung that has one. */
static struct sweep_trial *promotable(struct sweep *sweep)
{
    struct sweep_trial *found = NULL;
    double *value = malloc(SWEEP_TRIALS * sizeof *value);
    for (int rung = sweep->plan.rungs - 1; rung >= 0 && found == NULL && value != NULL; rung--) {
        const double bar = bar_of(sweep, rung, value);
        for (int64_t i = 0; i < sweep->plan.trials; i++) {
            struct sweep_trial *trial = &sweep->trial[i];
            if (trial->state == TRIAL_PAUSED && trial->rungs == rung + 1 &&
                trial->rung_value[rung] <= bar &&
                (found == NULL || trial->rung_value[rung] < found->rung_value[rung])) {
                found = trial;
            }
        }
    }
    free(value);
    return found;
}

/* Where the best share of a few is none, the best of the highest rung goes on all the same, so that
 * a sweep ends with a trial that was trained to its end. */
static struct sweep_trial *winner(struct sweep *sweep)
{
    struct sweep_trial *best = NULL;
    for (int64_t i = 0; i < sweep->plan.trials; i++) {
        struct sweep_trial *trial = &sweep->trial[i];
        if (trial->state == TRIAL_DONE || trial->state == TRIAL_RUNNING) {
            return NULL;
        }
        if (trial->state == TRIAL_PAUSED &&
            (best == NULL || trial->rungs > best->rungs ||
             (trial->rungs == best->rungs &&
              value_at(trial, trial->rungs - 1) < value_at(best, best->rungs - 1)))) {
            best = trial;
        }
    }
    return best;
}

/* Interrupted ones, then those that were chosen, then new ones. */
static struct sweep_trial *next_trial(struct sweep *sweep)
{
    for (int64_t i = 0; i < sweep->plan.trials; i++) {
        struct sweep_trial *trial = &sweep->trial[i];
        if (is_interrupted(trial)) {
            return trial;
        }
    }
    struct sweep_trial *chosen = promotable(sweep);
    for (int64_t i = 0; i < sweep->plan.trials && chosen == NULL; i++) {
        chosen = sweep->trial[i].state == TRIAL_WAITING ? &sweep->trial[i] : NULL;
    }
    return chosen != NULL ? chosen : winner(sweep);
}

/* --- Running --- */

/* One sweep_run. */
struct driver {
    struct sweep *sweep;
    bool quiet, stopping;
    double stopped; /* when, by step_clock */
    bool waiting;   /* for trials that others train */
    int running;
    bool *busy; /* [slots] owned */
};

static void say(const struct driver *driver, const struct sweep_trial *trial, const char *what)
{
    if (driver->quiet) {
        return;
    }
    printf("trial %04lld  %-8s step %lld", (long long)trial->index, what, (long long)trial->step);
    if (!isnan(trial->value)) {
        printf("  %s %.4f", driver->sweep->plan.metric, trial->value);
    }
    for (int i = driver->sweep->plan.fixed_count; i < trial->values.count; i++) {
        printf("  %s", trial->values.text[i]);
    }
    printf(trial->state == TRIAL_FAILED ? "  (%d: %.120s)\n" : "\n", trial->exit_code, trial->why);
    fflush(stdout);
}

/* The steps at which the trial pauses next; 0: it runs to its end. */
static int64_t next_rung(const struct sweep *sweep, const struct sweep_trial *trial)
{
    return trial->rungs < sweep->plan.rungs ? sweep->plan.rung[trial->rungs] : 0;
}

/* The rungs that it has come to. */
static void record_rungs(const struct sweep *sweep, struct sweep_trial *trial)
{
    const int64_t step = trial->step;
    while (next_rung(sweep, trial) > 0 && next_rung(sweep, trial) <= step) {
        trial_look(trial, &sweep->plan, next_rung(sweep, trial));
        trial->rung_value[trial->rungs++] = trial->value;
    }
    trial_look(trial, &sweep->plan, 0);
}

/* Whether one that an earlier sweep left behind has come to its rung since. */
static bool paused_alone(const struct sweep *sweep, struct sweep_trial *trial)
{
    const int rungs = trial->rungs;
    if (is_interrupted(trial)) {
        trial_look(trial, &sweep->plan, 0);
        record_rungs(sweep, trial);
    }
    return trial->rungs > rungs;
}

static enum status start(struct driver *driver, struct sweep_trial *trial)
{
    const struct sweep_plan *plan = &driver->sweep->plan;
    int slot = 0;
    if (paused_alone(driver->sweep, trial)) {
        trial->state = TRIAL_PAUSED;
        return trial_keep(trial, plan);
    }
    while (driver->busy[slot]) {
        slot++;
    }
    trial->state = TRIAL_RUNNING;
    trial->pause_at = next_rung(driver->sweep, trial);
    TRY(trial_keep(trial, plan)); /* first: one that is interrupted now resumes */
    TRY(launch_start(trial, plan, slot));
    driver->busy[slot] = true;
    driver->running++;
    say(driver, trial, "begins");
    return STATUS_OK;
}

/* Asks a trial to save and end, once. A launcher that is still starting its ranks would lose the
 * signal, or die of it: the trial is asked when its record shows that all of its ranks listen. One
 * that shows nothing for long has done nothing that could be saved, and is ended. */
static void ask(struct driver *driver, struct sweep_trial *trial)
{
    const bool listens = trial_record(trial, &driver->sweep->plan) != trial->record_before;
    const bool overdue = step_clock() - driver->stopped > PATIENCE_S;
    if (!trial->asked && (listens || overdue)) {
        trial->asked = true;
        kill(trial->pid, listens ? SIGUSR1 : SIGTERM);
    }
}

static enum status ended(struct driver *driver, struct sweep_trial *trial, int how)
{
    const struct sweep_plan *plan = &driver->sweep->plan;
    trial->exit_code = WIFEXITED(how) ? WEXITSTATUS(how) : 128 + WTERMSIG(how);
    trial->pid = 0;
    driver->busy[trial->slot] = false;
    driver->running--;
    trial_look(trial, plan, 0);
    record_rungs(driver->sweep, trial);
    const bool at_rung = trial->pause_at > 0 && trial->step >= trial->pause_at;
    if (trial->exit_code == 0) {
        trial->state = TRIAL_DONE;
    } else if (trial->exit_code == EXIT_SAVED) {
        /* without a rung behind it: preempted, by us or from outside, and resumes */
        trial->state = at_rung ? TRIAL_PAUSED : TRIAL_RUNNING;
    } else if (driver->stopping ||
               (trial->exit_code == EXIT_USAGE && is_taken(driver->sweep, trial))) {
        trial->state = TRIAL_RUNNING; /* it did not save in time: its last checkpoint resumes */
    } else {
        trial->state = TRIAL_FAILED;
        trial_read_why(trial, plan);
    }
    say(driver, trial,
        trial->exit_code == EXIT_SAVED && !at_rung ? "saved" : trial_state_name(trial->state));
    return trial_keep(trial, plan);
}

static enum status look(struct driver *driver)
{
    for (int64_t i = 0; i < driver->sweep->plan.trials; i++) {
        struct sweep_trial *trial = &driver->sweep->trial[i];
        int how = 0;
        if (trial->pid == 0) {
            continue;
        }
        if (waitpid(trial->pid, &how, WNOHANG) == trial->pid) {
            TRY(ended(driver, trial, how));
        } else if (driver->stopping) {
            ask(driver, trial);
        }
    }
    return STATUS_OK;
}

/* An error of ours: nobody would look after those that run. */
static void end_all(const struct driver *driver)
{
    for (int64_t i = 0; i < driver->sweep->plan.trials; i++) {
        if (driver->sweep->trial[i].pid > 0) {
            kill(driver->sweep->trial[i].pid, SIGTERM);
        }
    }
}

/* Those that wait at a rung when nothing is left to begin. */
static enum status stop_paused(struct driver *driver)
{
    for (int64_t i = 0; i < driver->sweep->plan.trials; i++) {
        struct sweep_trial *trial = &driver->sweep->trial[i];
        if (trial->state == TRIAL_PAUSED) {
            trial->state = TRIAL_STOPPED;
            say(driver, trial, "stopped");
            TRY(trial_keep(trial, &driver->sweep->plan));
        }
    }
    return STATUS_OK;
}

/* Trials that others train, on cores of a slot that nobody knows: said once, and waited for before
 * anything begins. */
static bool waits(struct driver *driver)
{
    bool any = false;
    for (int64_t i = 0; i < driver->sweep->plan.trials && !driver->stopping; i++) {
        const struct sweep_trial *trial = &driver->sweep->trial[i];
        const bool taken = is_interrupted(trial) && is_taken(driver->sweep, trial);
        if (taken && !driver->waiting) {
            fprintf(stderr,
                    "switchyard: warning: trial %04lld is trained already, waiting for it: %s\n",
                    (long long)trial->index, status_message());
        }
        any = any || taken;
    }
    driver->waiting = any;
    return any;
}

static enum status drive(struct driver *driver)
{
    const struct timespec pause = {0, 1000000L * POLL_MS};
    for (;;) {
        if (signals_caught() != 0 && !driver->stopping) {
            driver->stopping = true;
            driver->stopped = step_clock();
        }
        const bool waiting = waits(driver);
        while (!waiting && !driver->stopping && driver->running < driver->sweep->plan.slots) {
            struct sweep_trial *trial = next_trial(driver->sweep);
            if (trial == NULL) {
                break;
            }
            TRY(start(driver, trial));
        }
        if (driver->running == 0 && !waiting) {
            break;
        }
        nanosleep(&pause, NULL);
        TRY(look(driver));
    }
    return driver->stopping ? status_fail(STATUS_PREEMPTED, "sweep: stopped by a signal; the same "
                                                            "command goes on")
                            : stop_paused(driver);
}

static void retry_failed(struct sweep *sweep)
{
    for (int64_t i = 0; i < sweep->plan.trials; i++) {
        struct sweep_trial *trial = &sweep->trial[i];
        if (trial->state == TRIAL_FAILED) {
            trial->state = TRIAL_RUNNING;
            trial->exit_code = 0;
            trial->why[0] = '\0';
        }
    }
}

enum status sweep_run(struct sweep *sweep, bool quiet, bool retry)
{
    struct driver driver = {.sweep = sweep, .quiet = quiet};
    struct io_file lock = {.fd = -1};
    char path[MAX_PATH];
    driver.busy = calloc((size_t)sweep->plan.slots, sizeof *driver.busy);
    enum status status =
        driver.busy != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory");
    snprintf(path, sizeof path, "%.4000s/lock", sweep->plan.dir);
    status = status == STATUS_OK ? io_make_dir(sweep->plan.dir) : status;
    status = status == STATUS_OK ? io_lock(&lock, path) : status;
    if (status == STATUS_OK) {
        signals_install();
        if (retry) {
            retry_failed(sweep);
        }
        status = drive(&driver);
        if (status != STATUS_OK && driver.running > 0) {
            end_all(&driver);
        }
        io_unlock(&lock);
    }
    free(driver.busy);
    return status;
}

int64_t sweep_failed(const struct sweep *sweep)
{
    int64_t failed = 0;
    for (int64_t i = 0; i < sweep->plan.trials; i++) {
        failed += sweep->trial[i].state == TRIAL_FAILED;
    }
    return failed;
}

/* The status that ends a training with `code`; STATUS_INTERNAL where none does: 1 is launchers'. */
static enum status status_of_exit(int code)
{
    for (int s = STATUS_USAGE; s <= STATUS_PREEMPTED; s++) {
        if (status_exit_code((enum status)s) == code) {
            return (enum status)s;
        }
    }
    return STATUS_INTERNAL;
}

enum status sweep_outcome(const struct sweep *sweep)
{
    const struct sweep_trial *first = &sweep->trial[0];
    bool alike = true;
    if (sweep_failed(sweep) < sweep->plan.trials) {
        return STATUS_OK;
    }
    for (int64_t i = 0; i < sweep->plan.trials; i++) {
        alike = alike && sweep->trial[i].exit_code == first->exit_code;
    }
    return status_fail(alike ? status_of_exit(first->exit_code) : STATUS_INTERNAL,
                       "sweep: every trial failed; the first with exit code %d: %.200s",
                       first->exit_code, first->why[0] != '\0' ? first->why : "it said nothing");
}

enum status sweep_exec(struct sweep *sweep, int64_t index)
{
    struct launch launch;
    if (index < 0 || index >= sweep->plan.trials) {
        return status_fail(STATUS_USAGE, "--trial %lld: there are trials 0 to %lld",
                           (long long)index, (long long)sweep->plan.trials - 1);
    }
    TRY(io_make_dir(sweep->plan.dir));
    enum status status = launch_init(&launch, &sweep->plan, &sweep->trial[index], 0);
    if (status == STATUS_OK) {
        fflush(NULL);
        execvp(launch.word[0], launch.word);
        status =
            status_fail(STATUS_RESOURCE, "%s: cannot be run: %s", launch.word[0], strerror(errno));
    }
    launch_free(&launch);
    return status;
}
