#define _GNU_SOURCE
#include "trainer/watchdog.h"

#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "kernels/base/io.h"
#include "parallel/activity.h"
#include "trainer/figures.h"
#include "trainer/run_dir.h"
#include "trainer/step.h"

enum { MAX_PATH = 4096, TICK_MS = 100, LOOK_MS = 1500, STEPS = 31, FRAMES = 64 };
enum { EXIT_HANG = 76, EXIT_LOST = 70 };

static const char *const section_names[] = {
    [WATCHDOG_SETUP] = "setup",   [WATCHDOG_STEP] = "step", [WATCHDOG_EVALUATE] = "evaluation",
    [WATCHDOG_SAMPLE] = "sample", [WATCHDOG_SAVE] = "save", [WATCHDOG_END] = "end"};

/* What a rank tells of itself, in its file. */
struct beat {
    char host[64];
    char processes[64]; /* whose numbers pid is one of: a machine, and a namespace on it */
    int64_t pid;
    int64_t ticks;                 /* of its thread: stands still where the process does */
    _Atomic int64_t section, step; /* written as they change */
    int64_t layer;
    int64_t quiet_ms; /* since anything moved */
    char operation[24], group[16];
    int64_t bytes;
};

struct watchdog {
    char folder[MAX_PATH], checkpoints[MAX_PATH];
    int rank, size;
    const struct comm_activity *activity; /* borrowed */
    struct beat *beat;                    /* mapped, shared */
    pthread_t thread, main;
    double limit_s[WATCHDOG_END]; /* of sections; a step's: at least */
    bool automatic;               /* a step's limit grows with the steps */
    double step_s[STEPS];         /* of the last steps */
    int64_t steps;
    double section_began;
    _Atomic int64_t saved;   /* newest checkpoint; -1: none */
    _Atomic int64_t moves;   /* sections entered */
    _Atomic int64_t slow_ms; /* ten times the median step */
    _Atomic bool ending;
    int stack_fd; /* where a signal writes the main thread's calls */
    void *before_end_context;
    void (*_Atomic before_end)(void *context); /* or NULL; set behind its context */
    atomic_bool said;                          /* it has returned */
};

/* A handler can reach nothing else. */
static struct watchdog *watched;

static void sleep_ms(int ms)
{
    const struct timespec pause = {ms / 1000, 1000000L * (ms % 1000)};
    nanosleep(&pause, NULL);
}

/* --- Words --- */

/* "step 7, layer 3, all_to_all of ep, 1.2 MiB". */
static void place_text(char *out, size_t bytes, const struct beat *beat)
{
    const int64_t said = beat->section, section = said >= 0 && said <= WATCHDOG_END ? said : 0;
    int used = snprintf(out, bytes, "%s", section_names[section]);
    if (section != WATCHDOG_SETUP) {
        used += snprintf(out + used, bytes - (size_t)used, "%s %lld",
                         section == WATCHDOG_STEP ? "" : " behind step", (long long)beat->step);
    }
    if (beat->layer >= 0) {
        used += snprintf(out + used, bytes - (size_t)used, ", layer %lld", (long long)beat->layer);
    }
    if (beat->operation[0] != '\0') {
        const bool small = beat->bytes < 1024 * 1024;
        snprintf(out + used, bytes - (size_t)used, ", in %.23s of %.15s (%.4g %s)", beat->operation,
                 beat->group[0] != '\0' ? beat->group : "a group",
                 (double)beat->bytes / (small ? 1 : 1024 * 1024), small ? "bytes" : "MiB");
    }
}

static void advice(const struct watchdog *w, char *out, size_t bytes)
{
    if (w->saved >= 0) {
        snprintf(out, bytes,
                 "  last checkpoint: step %lld in %.1000s; the same command resumes there\n",
                 (long long)w->saved, w->checkpoints);
    } else {
        snprintf(out, bytes, "  no checkpoint yet in %.1000s: the same command starts anew\n",
                 w->checkpoints);
    }
}

/* --- Beats of the others --- */

static bool read_beat(const struct watchdog *w, int rank, struct beat *beat)
{
    char path[MAX_PATH];
    snprintf(path, sizeof path, "%.4000s/%05d", w->folder, rank);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    const bool whole = fd >= 0 && pread(fd, beat, sizeof *beat, 0) == (ssize_t)sizeof *beat;
    if (fd >= 0) {
        close(fd);
    }
    beat->host[sizeof beat->host - 1] = beat->operation[sizeof beat->operation - 1] =
        beat->group[sizeof beat->group - 1] = '\0';
    return whole;
}

static bool same_processes(const struct watchdog *w, const struct beat *beat)
{
    return memcmp(beat->processes, w->beat->processes, sizeof beat->processes) == 0;
}

/* The first rank to ask is the one that speaks. */
static bool claim(const struct watchdog *w)
{
    char path[MAX_PATH];
    snprintf(path, sizeof path, "%.4000s/claim", w->folder);
    const int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd >= 0) {
        close(fd);
    }
    return fd >= 0;
}

static void print_row(FILE *out, int rank, const struct beat *beat, bool known, const char *silent)
{
    char place[256];
    if (!known) {
        fprintf(out, "  rank %d: no word of it\n", rank);
        return;
    }
    place_text(place, sizeof place, beat);
    fprintf(out, "  rank %d (%s, pid %lld): %s, for %.0f s%s\n", rank, beat->host,
            (long long)beat->pid, place, (double)beat->quiet_ms / 1e3, silent);
}

/* Where every rank stands, and which ones stand still: beats are read twice. */
static void print_hang(const struct watchdog *w, double limit_s)
{
    enum { MOST_ROWS = 64 };
    char *text = NULL, last[1200], place[256];
    size_t bytes = 0;
    struct beat *before = calloc((size_t)w->size, sizeof *before), after = {0};
    FILE *out = open_memstream(&text, &bytes);
    if (before == NULL || out == NULL) {
        return;
    }
    for (int r = 0; r < w->size; r++) {
        (void)read_beat(w, r, &before[r]);
    }
    sleep_ms(LOOK_MS);
    place_text(place, sizeof place, w->beat);
    fprintf(out, "switchyard: hang: nothing moved for %.0f s (rank %d: %s); every rank:\n", limit_s,
            w->rank, place);
    int missing = 0, rows = 0;
    for (int r = 0; r < w->size; r++) {
        const bool known = read_beat(w, r, &after);
        const bool answers = r == w->rank || (known && after.ticks != before[r].ticks);
        missing += !answers;
        if (rows < MOST_ROWS && (w->size <= MOST_ROWS || !answers)) {
            print_row(out, r, &after, known,
                      answers                     ? ""
                      : same_processes(w, &after) ? "   <- does not answer: stopped"
                                                  : "   <- does not answer: stopped, its machine "
                                                    "is gone, or run.dir shows its files late");
            rows++;
        }
    }
    fprintf(out, "  %d of %d ranks %s; calls of each: %s/*.stack\n", missing, w->size,
            missing > 0 ? "do not answer"
                        : "do not answer: all wait for each other, or for a device",
            w->folder);
    advice(w, last, sizeof last);
    fprintf(out, "%s", last);
    fclose(out);
    (void)!write(STDERR_FILENO, text, bytes);
}

/* --- The end --- */

/* Asks the main thread, wherever it is, to write down its calls. */
static void dump_stack(struct watchdog *w)
{
    char path[MAX_PATH];
    snprintf(path, sizeof path, "%.4000s/%05d.stack", w->folder, w->rank);
    w->stack_fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (w->stack_fd >= 0) {
        pthread_kill(w->main, SIGURG);
        sleep_ms(100);
    }
}

static void on_dump(int number)
{
    void *frame[FRAMES];
    const int saved = errno;
    (void)number;
    if (watched != NULL && watched->stack_fd >= 0) {
        backtrace_symbols_fd(frame, backtrace(frame, FRAMES), watched->stack_fd);
    }
    errno = saved;
}

static void call_before_end(const struct watchdog *w)
{
    void (*const call)(void *context) = w->before_end;
    if (call != NULL) {
        call(w->before_end_context);
    }
}

static void *last_words(void *context)
{
    struct watchdog *w = context;
    call_before_end(w);
    atomic_store(&w->said, true);
    return NULL;
}

/* What is left to write gets a thread and this long, however slow the disk is: the one that speaks
 * looks at the ticks of the others meanwhile. */
static void end_ticking(struct watchdog *w, bool speaks)
{
    pthread_t thread;
    const bool writes = pthread_create(&thread, NULL, last_words, w) == 0;
    for (int ms = 0; ms < 4 * LOOK_MS && !(speaks && (!writes || atomic_load(&w->said)));
         ms += TICK_MS) {
        sleep_ms(TICK_MS);
        w->beat->ticks++;
    }
}

static void end_hang(struct watchdog *w, double limit_s)
{
    dump_stack(w);
    const bool speaks = claim(w);
    if (speaks) {
        print_hang(w, limit_s);
    }
    end_ticking(w, speaks);
    _exit(EXIT_HANG);
}

/* A rank of this machine that is gone although it never said that it was done. */
static void end_lost(struct watchdog *w, int rank, const struct beat *beat)
{
    char place[256], text[2048], last[1200];
    if (!claim(w)) {
        call_before_end(w);
        sleep_ms(LOOK_MS);
        _exit(EXIT_LOST);
    }
    place_text(place, sizeof place, beat);
    advice(w, last, sizeof last);
    const int used = snprintf(
        text, sizeof text,
        "switchyard: rank %d of %d (%s, pid %lld) is gone: it was in %s; killed from outside (out "
        "of memory?) or crashed: see above\n%s",
        rank, w->size, beat->host, (long long)beat->pid, place, last);
    (void)!write(STDERR_FILENO, text, (size_t)used);
    call_before_end(w);
    _exit(EXIT_LOST);
}

static void look_for_dead(struct watchdog *w)
{
    struct beat beat;
    for (int r = 0; r < w->size; r++) {
        if (r != w->rank && read_beat(w, r, &beat) && beat.pid > 0 && same_processes(w, &beat) &&
            kill((pid_t)beat.pid, 0) != 0 && errno == ESRCH &&
            read_beat(w, r, &beat) && /* what it said last, now that it is gone */
            beat.section != WATCHDOG_END && !w->ending) {
            end_lost(w, r, &beat);
        }
    }
}

/* --- This rank --- */

static void copy_word(char *out, size_t bytes, const char *word)
{
    snprintf(out, bytes, "%s", word != NULL ? word : "");
}

static void refresh(struct watchdog *w, double quiet_s)
{
    struct beat *beat = w->beat;
    const struct comm_activity *activity = w->activity;
    copy_word(beat->operation, sizeof beat->operation, activity->operation);
    copy_word(beat->group, sizeof beat->group, activity->group);
    beat->bytes = activity->bytes;
    beat->layer = activity->layer;
    beat->quiet_ms = (int64_t)(1e3 * quiet_s);
    beat->ticks++;
}

static double limit_now(const struct watchdog *w, int64_t section)
{
    const double slow_s = (double)w->slow_ms / 1e3, least = w->limit_s[section],
                 first = w->limit_s[WATCHDOG_SETUP]; /* how slow steps are is not known yet */
    const double usual = slow_s > 0 ? slow_s : first;
    return section == WATCHDOG_STEP && w->automatic && usual > least ? usual : least;
}

/* Bytes that this process has written so far: what moves in a save. 0: not known here. */
static int64_t bytes_written(void)
{
    char text[512] = "";
    const int fd = open("/proc/self/io", O_RDONLY | O_CLOEXEC);
    const ssize_t got = fd >= 0 ? read(fd, text, sizeof text - 1) : 0;
    if (fd >= 0) {
        close(fd);
    }
    text[got > 0 ? got : 0] = '\0';
    const char *at = strstr(text, "wchar: ");
    return at != NULL ? strtoll(at + 7, NULL, 10) : 0;
}

static void *watch(void *context)
{
    struct watchdog *w = context;
    int64_t seen = -1, ticks = 0;
    double quiet_s = 0, last = step_clock();
    while (!w->ending) {
        sleep_ms(TICK_MS);
        const double now = step_clock(), passed = now - last;
        const int64_t section = w->beat->section;
        const int64_t moved =
            w->moves + w->activity->done + (section == WATCHDOG_SAVE ? bytes_written() : 0);
        last = now;
        /* a process that was stopped meanwhile has not hung meanwhile */
        quiet_s = moved != seen ? 0 : quiet_s + (passed < 1 ? passed : 1);
        seen = moved;
        refresh(w, quiet_s);
        if (section == WATCHDOG_END) {
            continue;
        }
        if (quiet_s > limit_now(w, section)) {
            end_hang(w, quiet_s);
        }
        if (ticks++ % 10 == 0) {
            look_for_dead(w);
        }
    }
    return NULL;
}

/* Keeps the duration of the step that ends; ten times the median is when one is overdue. */
static void keep_step(struct watchdog *w, double seconds)
{
    double sorted[STEPS];
    w->step_s[w->steps++ % STEPS] = seconds;
    const int64_t held = w->steps < STEPS ? w->steps : STEPS;
    memcpy(sorted, w->step_s, (size_t)held * sizeof sorted[0]);
    figure_sort(sorted, held);
    w->slow_ms = (int64_t)(1e4 * sorted[held / 2]);
}

void watchdog_enter(struct watchdog *watchdog, enum watchdog_section section, int64_t step)
{
    if (watchdog == NULL) {
        return;
    }
    const double now = step_clock();
    if (watchdog->beat->section == WATCHDOG_STEP) {
        keep_step(watchdog, now - watchdog->section_began);
    }
    watchdog->section_began = now;
    watchdog->beat->step = step;
    watchdog->beat->section = section;
    watchdog->moves++;
}

void watchdog_saved(struct watchdog *watchdog, int64_t step)
{
    if (watchdog != NULL) {
        watchdog->saved = step;
    }
}

/* --- Signals that end a rank --- */

/* One write, and the calls; no memory is taken. The process is lost anyway. */
static void on_crash(int number)
{
    static const char *const names[] = {[SIGSEGV] = "segmentation fault",
                                        [SIGBUS] = "bus error",
                                        [SIGFPE] = "arithmetic error",
                                        [SIGILL] = "illegal instruction",
                                        [SIGABRT] = "abort"};
    void *frame[FRAMES];
    char text[1024], place[256];
    if (watched != NULL) {
        refresh(watched, 0);
        const struct beat beat = *watched->beat;
        place_text(place, sizeof place, &beat);
        const int used = snprintf(text, sizeof text,
                                  "switchyard: rank %d of %d (%s, pid %lld): signal %d (%s) in %s; "
                                  "its calls:\n",
                                  watched->rank, watched->size, beat.host, (long long)beat.pid,
                                  number, names[number], place);
        (void)!write(STDERR_FILENO, text, (size_t)used);
        backtrace_symbols_fd(frame, backtrace(frame, FRAMES), STDERR_FILENO);
    }
    raise(number); /* the handler is gone: the process ends as it would have */
}

/* A rank that leaves by exit() has said why. */
static void on_exit_say_end(void)
{
    if (watched != NULL) {
        watched->beat->section = WATCHDOG_END;
    }
}

static void install(int number, void (*handler)(int), int flags)
{
    struct sigaction action = {0};
    action.sa_handler = handler;
    action.sa_flags = flags;
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, NULL);
}

static void install_handlers(void)
{
#ifdef __SANITIZE_ADDRESS__
    static const int crashes[] = {SIGABRT}; /* the sanitizer knows more of the others */
#else
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
#endif
    void *frame[1];
    (void)backtrace(frame, 1); /* loads what the handlers need */
    install(SIGURG, on_dump, SA_RESTART);
    for (size_t i = 0; i < sizeof crashes / sizeof crashes[0]; i++) {
        install(crashes[i], on_crash, (int)SA_RESETHAND);
    }
}

/* --- Start and stop --- */

/* Two machines, or containers of one, may have the same name and other processes of these numbers.
 */
static void name_processes(char *out, size_t bytes)
{
    char boot[40] = "";
    struct stat space = {0};
    const int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        (void)!read(fd, boot, 36);
        close(fd);
    }
    (void)!stat("/proc/self/ns/pid", &space);
    snprintf(out, bytes, "%s %llu", boot, (unsigned long long)space.st_ino);
}

/* A mapped file whose blocks are there: writing it can't fail later. */
static struct beat *map_beat(const struct watchdog *w)
{
    char path[MAX_PATH];
    snprintf(path, sizeof path, "%.4000s/%05d", w->folder, w->rank);
    const int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    void *map = MAP_FAILED;
    if (fd >= 0 && posix_fallocate(fd, 0, sizeof(struct beat)) == 0) {
        map = mmap(NULL, sizeof(struct beat), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    if (fd >= 0) {
        close(fd);
    }
    return map != MAP_FAILED ? map : NULL;
}

static enum status make_folder(const char *folder)
{
    TRY(io_remove_tree(folder));
    return io_make_dir(folder);
}

static enum status begin(struct watchdog *w, const struct session *session)
{
    w->beat = map_beat(w);
    if (w->beat == NULL) {
        return status_fail(STATUS_IO, "%s: no room for the watchdog", w->folder);
    }
    gethostname(w->beat->host, sizeof w->beat->host - 1);
    name_processes(w->beat->processes, sizeof w->beat->processes);
    w->beat->pid = getpid();
    w->activity = session->world.activity;
    w->main = pthread_self();
    refresh(w, 0);
    install_handlers();
    watched = w;
    (void)atexit(on_exit_say_end);
    return pthread_create(&w->thread, NULL, watch, w) == 0
               ? STATUS_OK
               : status_fail(STATUS_RESOURCE, "cannot start the watchdog's thread");
}

static void release(struct watchdog *w)
{
    watched = NULL;
    if (w->beat != NULL) {
        munmap(w->beat, sizeof *w->beat);
    }
    free(w);
}

enum status watchdog_start(struct watchdog **watchdog, const struct session *session)
{
    struct comm *world = (struct comm *)&session->world;
    const struct config *config = &session->config;
    const double setup = config->watchdog.setup_seconds, step = config->watchdog.step_seconds,
                 save = config->watchdog.save_seconds;
    *watchdog = NULL;
    if (!config->watchdog.enabled) {
        return STATUS_OK;
    }
    struct watchdog *w = calloc(1, sizeof *w);
    TRY(comm_agree(world, w != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory"),
                   NULL));
    *w = (struct watchdog){.rank = world->rank,
                           .size = world->size,
                           .limit_s = {[WATCHDOG_SETUP] = setup,
                                       [WATCHDOG_STEP] = step > 0 ? step : 60,
                                       [WATCHDOG_EVALUATE] = setup,
                                       [WATCHDOG_SAMPLE] = setup,
                                       [WATCHDOG_SAVE] = save},
                           .automatic = !(step > 0),
                           .saved = -1,
                           .stack_fd = -1};
    run_dir_path(session, "health", w->folder, sizeof w->folder);
    run_dir_path(session, "checkpoints", w->checkpoints, sizeof w->checkpoints);
    enum status status =
        comm_agree(world, world->rank == 0 ? make_folder(w->folder) : STATUS_OK, NULL);
    status = status == STATUS_OK ? comm_agree(world, begin(w, session), NULL) : status;
    if (status != STATUS_OK) {
        if (world->rank == 0) {
            fprintf(stderr, "switchyard: warning: %s: hangs will not be noticed\n",
                    status_message());
        }
        w->ending = true; /* a thread that did start leaves the record alone from now on */
        if (w->thread != 0) {
            pthread_join(w->thread, NULL);
        }
        release(w);
        return STATUS_OK;
    }
    *watchdog = w;
    return STATUS_OK;
}

void watchdog_before_end(struct watchdog *watchdog, void (*call)(void *context), void *context)
{
    if (watchdog != NULL) {
        watchdog->before_end_context = context;
        watchdog->before_end = call;
    }
}

void watchdog_stop(struct watchdog *watchdog)
{
    if (watchdog == NULL) {
        return;
    }
    watchdog_enter(watchdog, WATCHDOG_END, watchdog->beat->step);
    watchdog->ending = true;
    (void)pthread_kill(watchdog->thread, SIGURG); /* out of its sleep */
    pthread_join(watchdog->thread, NULL);
    release(watchdog);
}
