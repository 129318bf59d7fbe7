#define _GNU_SOURCE
#include "trainer/sweep/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_PATH = 4096 };

static const char default_command[] = "mpirun -np {ranks} --bind-to none";

static bool add(struct launch *launch, const char *text, size_t bytes)
{
    if (launch->words + 1 == LAUNCH_WORDS) {
        return false;
    }
    launch->word[launch->words] = strndup(text, bytes);
    return launch->word[launch->words++] != NULL;
}

/* A word of the launcher, {ranks} in it filled in. */
static bool add_word(struct launch *launch, const char *text, size_t length, int64_t ranks)
{
    static const char name[] = "{ranks}";
    char *word = strndup(text, length), *whole = NULL;
    char *at = word != NULL ? strstr(word, name) : NULL;
    const bool good =
        word != NULL && (at == NULL || asprintf(&whole, "%.*s%lld%s", (int)(at - word), word,
                                                (long long)ranks, at + sizeof name - 1) >= 0);
    const char *filled = at != NULL ? whole : word;
    const bool added = good && add(launch, filled, strlen(filled));
    free(good ? whole : NULL);
    free(word);
    return added;
}

static bool add_launcher(struct launch *launch, const struct sweep_plan *plan)
{
    const char *text = plan->command != NULL ? plan->command : default_command;
    bool good = true;
    if (plan->command == NULL && plan->ranks == 1) {
        return true;
    }
    while (good && *(text += strspn(text, " \t")) != '\0') {
        const size_t length = strcspn(text, " \t");
        good = add_word(launch, text, length, plan->ranks);
        text += length;
    }
    return good;
}

/* Whether the sweep itself sets the key. */
static bool has_key(const struct sweep_trial *trial, const char *key)
{
    const size_t length = strlen(key);
    bool has = false;
    for (int i = 0; i < trial->values.count; i++) {
        const char *text = trial->values.text[i];
        has = has || (strncmp(text, key, length) == 0 && text[length] == '=');
    }
    return has;
}

enum status launch_init(struct launch *launch, const struct sweep_plan *plan,
                        const struct sweep_trial *trial, int threads)
{
    char self[MAX_PATH] = "", dir[MAX_PATH], text[MAX_PATH];
    *launch = (struct launch){0};
    if (readlink("/proc/self/exe", self, sizeof self - 1) <= 0) {
        return status_fail(STATUS_INTERNAL, "/proc/self/exe: cannot find this program");
    }
    trial_path(plan, trial->index, "", dir, sizeof dir);
    bool good = add_launcher(launch, plan);
    good = good && add(launch, self, strlen(self)) && add(launch, "train", 5) &&
           add(launch, plan->base, strlen(plan->base));
    for (int i = 0; i < trial->values.count; i++) {
        good = good && add(launch, trial->values.text[i], strlen(trial->values.text[i]));
    }
    snprintf(text, sizeof text, "run.dir=%.4000s", dir);
    good = good && add(launch, text, strlen(text));
    if (trial->pause_at > 0) {
        snprintf(text, sizeof text, "run.pause_at=%lld", (long long)trial->pause_at);
        good = good && add(launch, text, strlen(text));
    }
    if (threads > 0 && !has_key(trial, "run.threads")) {
        snprintf(text, sizeof text, "run.threads=%d", threads);
        good = good && add(launch, text, strlen(text));
    }
    if (threads > 0 && !has_key(trial, "run.pin")) {
        good = good && add(launch, "run.pin=false", 13);
    }
    return good ? STATUS_OK
                : status_fail(STATUS_USAGE, "launch.command: more than %d words", LAUNCH_WORDS);
}

void launch_free(struct launch *launch)
{
    for (int i = 0; i < launch->words; i++) {
        free(launch->word[i]);
    }
    *launch = (struct launch){0};
}

/* The slot's share of the cores this process may use; returns how many, 0: fewer cores than slots,
 * which then share them all. */
static int slot_cores(const struct sweep_plan *plan, int slot, cpu_set_t *share)
{
    cpu_set_t all;
    CPU_ZERO(share);
    if (sched_getaffinity(0, sizeof all, &all) != 0) {
        return 0;
    }
    const int cores = CPU_COUNT(&all), each = cores / (int)plan->slots;
    int seen = 0, taken = 0;
    for (size_t c = 0; c < CPU_SETSIZE && each > 0; c++) {
        if (CPU_ISSET(c, &all)) {
            if (seen / each == slot) {
                CPU_SET(c, share);
                taken++;
            }
            seen++;
        }
    }
    return taken;
}

/* A trial does not outlive its sweep: the kernel asks it to save and end, as `ask` of the sweep
 * does, when the thread that forked is gone, and the launcher inherits that. */
static void end_with(pid_t sweep)
{
    signal(SIGUSR1, SIG_DFL); /* from here to the launcher it ends the child */
    (void)prctl(PR_SET_PDEATHSIG, SIGUSR1);
    if (getppid() != sweep) { /* gone before the kernel knew */
        _exit(127);
    }
}

/* The child, until it is the launcher. Whatever fails here is its exit code and the log's line. */
static void become(const struct launch *launch, const char *log, int cores, const cpu_set_t *share)
{
    const int out = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644),
              in = open("/dev/null", O_RDONLY);
    setpgid(0, 0); /* signals of the terminal come to the sweep, which passes on what it means */
    if (out >= 0 && in >= 0 && dup2(in, STDIN_FILENO) >= 0 && dup2(out, STDOUT_FILENO) >= 0 &&
        dup2(out, STDERR_FILENO) >= 0) {
        if (cores > 0) {
            (void)sched_setaffinity(0, sizeof *share, share);
        }
        execvp(launch->word[0], launch->word);
        dprintf(STDERR_FILENO, "switchyard: %s: cannot be run: %s\n", launch->word[0],
                strerror(errno));
    }
    _exit(127);
}

enum status launch_start(struct sweep_trial *trial, const struct sweep_plan *plan, int slot)
{
    struct launch launch;
    cpu_set_t share;
    struct stat about;
    char log[MAX_PATH];
    const int cores = slot_cores(plan, slot, &share),
              threads = cores > plan->ranks ? cores / (int)plan->ranks : 1;
    trial_path(plan, trial->index, ".log", log, sizeof log);
    enum status status = launch_init(&launch, plan, trial, threads);
    trial->asked = false;
    trial->record_before = trial_record(trial, plan);
    trial->log_before = stat(log, &about) == 0 ? (int64_t)about.st_size : 0;
    if (status == STATUS_OK) {
        const pid_t sweep = getpid();
        fflush(NULL);
        trial->pid = fork();
        if (trial->pid == 0) {
            end_with(sweep);
            become(&launch, log, cores, &share);
        }
        if (trial->pid < 0) {
            trial->pid = 0;
            status = status_fail(STATUS_RESOURCE, "cannot start a process: %s", strerror(errno));
        }
    }
    launch_free(&launch);
    trial->slot = slot;
    return status;
}
