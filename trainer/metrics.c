#define _GNU_SOURCE /* memmem */
#include "trainer/metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "kernels/base/aside.h"
#include "kernels/base/io.h"
#include "kernels/base/json_out.h"
#include "trainer/figures.h"

enum { MAX_PATH = 4096 };
static const size_t MAX_LOG_BYTES = (size_t)1 << 32;

/* Bytes of the leading whole lines whose step is at most `step`; *last: that of the last of them.
 */
static size_t kept_bytes(const char *text, size_t bytes, int64_t step, int64_t *last)
{
    static const char field[] = "\"step\":";
    size_t kept = 0;
    while (kept < bytes) {
        const char *line = text + kept, *end = memchr(line, '\n', bytes - kept);
        const char *at =
            end != NULL ? memmem(line, (size_t)(end - line), field, sizeof field - 1) : NULL;
        const int64_t one = at != NULL ? strtoll(at + sizeof field - 1, NULL, 10) : INT64_MAX;
        if (one > step) {
            break;
        }
        *last = one;
        kept = (size_t)(end + 1 - text);
    }
    return kept;
}

static const char no_valid[] = "\"valid_loss\":null";

/* What metrics.pending has of `step`. Of another step it is of no use: that one is trained again.
 */
static void read_pending(struct metrics *metrics, int64_t step)
{
    char *text = NULL;
    size_t bytes = 0;
    int64_t of = -1;
    if (io_exists(metrics->pending_path) &&
        io_read_file(metrics->pending_path, &text, &bytes, MAX_LOG_BYTES) == STATUS_OK &&
        bytes > 0 && kept_bytes(text, bytes, step, &of) == bytes && of == step &&
        strstr(text, no_valid) != NULL) {
        metrics->pending = text;
        return;
    }
    free(text);
    io_discard(metrics->pending_path);
}

/* Lines of later steps go. *last: the step of the last line. */
static enum status cut_to(struct line_log *log, int64_t step, int64_t *last)
{
    char *text = NULL;
    size_t bytes = 0;
    *last = 0;
    TRY(io_read_file(log->path, &text, &bytes, MAX_LOG_BYTES));
    const size_t whole = (int64_t)bytes < log->whole ? bytes : (size_t)log->whole,
                 kept = kept_bytes(text, whole, step, last);
    free(text);
    return kept < whole ? line_log_cut(log, (int64_t)kept) : STATUS_OK;
}

/* Columns of the terminal that standard output ends in, 0: none. mpirun gives its ranks a terminal
 * of its own whatever its output goes to, so under it the launcher's is looked at. */
static int terminal_columns(void)
{
    enum { DEFAULT_COLUMNS = 80 };
    char path[64];
    struct winsize size;
    const bool launched = getenv("OMPI_COMM_WORLD_SIZE") != NULL;
    snprintf(path, sizeof path, "/proc/%ld/fd/1", (long)getppid());
    const int fd = launched ? open(path, O_WRONLY | O_NOCTTY | O_CLOEXEC) : dup(STDOUT_FILENO);
    if (fd < 0) {
        return 0;
    }
    int columns = isatty(fd) == 1 ? DEFAULT_COLUMNS : 0;
    if (columns > 0 && ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
        columns = size.ws_col;
    }
    close(fd);
    return columns;
}

/* What a run wrote that left no checkpoint to go on from is kept beside. */
static enum status keep_old(struct metrics *metrics, const char *path)
{
    char old[ASIDE_PATH_BYTES];
    line_log_close(&metrics->jsonl);
    TRY(aside_move(path, old));
    metrics_say(metrics, "%s: of a run that left no checkpoint: kept as %s; steps begin with 1",
                path, old);
    return line_log_open(&metrics->jsonl, path);
}

enum status metrics_open(struct metrics *metrics, const char *run_dir, int64_t step)
{
    char path[MAX_PATH];
    int64_t last = 0;
    metrics->columns = terminal_columns();
    metrics->step = step;
    metrics->line = open_memstream(&metrics->text, &metrics->bytes);
    if (metrics->line == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a line of metrics.jsonl");
    }
    snprintf(path, sizeof path, "%s/log.txt", run_dir);
    TRY(line_log_open(&metrics->log, path));
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    TRY(line_log_open(&metrics->jsonl, path));
    if (step == 0 && metrics->jsonl.whole > 0) {
        TRY(keep_old(metrics, path));
    }
    TRY(cut_to(&metrics->jsonl, step, &last));
    if (asprintf(&metrics->pending_path, "%s/metrics.pending", run_dir) < 0) {
        metrics->pending_path = NULL;
        return status_fail(STATUS_RESOURCE, "out of memory for metrics.pending");
    }
    read_pending(metrics, step);
    const int64_t there = metrics->pending != NULL ? step - 1 : step;
    if (last < there) {
        metrics_say(metrics, "%s: the lines of steps %lld to %lld are not there", path,
                    (long long)last + 1, (long long)there);
    }
    snprintf(path, sizeof path, "%s/tensorboard", run_dir);
    return metrics->tensorboard ? events_open(&metrics->events, path, step + 1) : STATUS_OK;
}

void metrics_close(struct metrics *metrics)
{
    line_log_close(&metrics->jsonl);
    line_log_close(&metrics->log);
    events_close(&metrics->events);
    if (metrics->line != NULL) {
        fclose(metrics->line);
    }
    free(metrics->text);
    free(metrics->pending_path);
    free(metrics->pending);
    *metrics = (struct metrics){0};
}

/* Tells once that a file cannot be written, and once that it can again. */
static void watch(struct metrics *metrics, const struct line_log *log, bool *fails,
                  enum status status)
{
    const bool failed = status != STATUS_OK;
    if (failed == *fails) {
        return;
    }
    *fails = failed;
    if (failed) {
        fprintf(stderr,
                "switchyard: warning: %s: its lines are kept in memory until they can be written; "
                "training goes on\n",
                status_message());
    } else {
        metrics_say(metrics, "%s: written again; %lld lines are lost", log->path,
                    (long long)log->lost);
    }
}

void metrics_say(struct metrics *metrics, const char *format, ...)
{
    char line[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line - 1, format, args);
    va_end(args);
    printf("%s%s\n", metrics->columns > 0 ? "\r\033[K" : "", line);
    fflush(stdout);
    if (metrics->log.path != NULL) {
        strcat(line, "\n");
        watch(metrics, &metrics->log, &metrics->log_fails,
              line_log_add(&metrics->log, line, strlen(line), metrics->step));
    }
}

/* Takes out what a step back left in the file; until that works it is held. */
static void take_out(struct metrics *metrics)
{
    int64_t last = 0;
    const enum status status = cut_to(&metrics->jsonl, metrics->back, &last);
    metrics->jsonl.held = status != STATUS_OK;
    if (status != STATUS_OK) {
        watch(metrics, &metrics->jsonl, &metrics->jsonl_fails, status);
    }
}

void metrics_rewind(struct metrics *metrics, int64_t step, int64_t tokens)
{
    struct line_log *log = &metrics->jsonl;
    int64_t last = 0;
    line_log_drop(log, kept_bytes(log->kept, log->kept_bytes, step, &last));
    metrics->back = log->held && metrics->back < step ? metrics->back : step;
    take_out(metrics);
    events_restart(&metrics->events, step + 1);
    metrics->tokens = metrics->tokens_done + tokens;
}

enum status metrics_finish(struct metrics *metrics, bool done)
{
    if (metrics->jsonl.held) {
        take_out(metrics);
    }
    const enum status log = line_log_settle(&metrics->log);
    (void)log; /* the terminal had it */
    const enum status status = line_log_settle(&metrics->jsonl);
    const int64_t lines = metrics->jsonl.kept_lines;
    if (status == STATUS_OK) {
        return STATUS_OK;
    }
    const enum status told =
        lines == 0 ? status
                   : status_fail(status,
                                 "%s: its last %lld lines are lost; the checkpoint of step %lld is "
                                 "whole",
                                 status_message(), (long long)lines, (long long)metrics->step);
    if (!done) {
        fprintf(stderr, "switchyard: warning: %s\n", status_message());
    }
    return told;
}

/* Part of a step that all-to-alls took; NAN where the host does not see them. */
static double exchange_of(const struct step_result *result)
{
    return result->phase_ms.exchange / result->step_ms;
}

static double rate_of(const struct step_result *result)
{
    return (double)result->tokens / (result->step_ms / 1e3);
}

/* A bar that is overwritten at every step, cut to the terminal's width. */
static void show_bar(const struct metrics *metrics, int64_t step, const struct step_result *result,
                     double load, const char *eta)
{
    enum { WIDTH = 20 };
    char line[512];
    const int done = (int)(WIDTH * step / metrics->steps);
    snprintf(line, sizeof line, "[%.*s%*s] %lld/%lld loss %.4f %.0f tok/s load %.2f ETA %s", done,
             "====================", WIDTH - done, "", (long long)step, (long long)metrics->steps,
             result->loss, rate_of(result), load, eta);
    printf("\r\033[K%.*s", metrics->columns - 1, line);
    fflush(stdout);
}

/* " a2a 12% mfu 31%", where known. */
static const char *shares(char out[64], const struct step_result *result, double mfu)
{
    const double exchange = exchange_of(result);
    const int used = isnan(exchange) ? 0 : snprintf(out, 64, " a2a %.0f%%", 100 * exchange);
    out[used] = '\0';
    if (!isnan(mfu)) {
        snprintf(out + used, 64 - (size_t)used, " mfu %.1f%%", 100 * mfu);
    }
    return out;
}

static void show(struct metrics *metrics, int64_t step, const struct step_result *result,
                 double valid_loss, double mfu, int64_t memory, double load)
{
    char eta[FIGURE_BYTES], bytes[FIGURE_BYTES], share[64], valid[32] = "";
    metrics->tokens_done += result->tokens;
    figure_duration(eta, (step_clock() - metrics->started) / (double)metrics->tokens_done *
                             (double)(metrics->tokens - metrics->tokens_done));
    if (!isnan(valid_loss)) {
        snprintf(valid, sizeof valid, " valid %.4f", valid_loss);
    }
    if (step % metrics->every == 0 || step == metrics->steps || !isnan(valid_loss)) {
        metrics_say(metrics,
                    "step %lld/%lld loss %.4f%s grad %.2f lr %.2e %.0f tok/s load %.2f dropped "
                    "%.1f%%%s mem %sB ETA %s",
                    (long long)step, (long long)metrics->steps, result->loss, valid,
                    result->grad_norm, result->lr, rate_of(result), load,
                    100 * result->dropped_fraction, shares(share, result, mfu),
                    figure_short(bytes, (double)memory), eta);
    }
    if (metrics->columns > 0 && step < metrics->steps) {
        show_bar(metrics, step, result, load, eta);
    }
}

int64_t metrics_memory(const struct device *device)
{
    struct rusage usage;
    const struct device_info *info = device_info(device);
    getrusage(RUSAGE_SELF, &usage);
    return info->memory_bytes > 0 ? (int64_t)info->memory_used : (int64_t)usage.ru_maxrss * 1024;
}

/* ,"NAME":{"activations":A,"gradients":G,"weights":W} */
static void print_kinds(FILE *out, const char *name, const double value[LINEAR_KINDS])
{
    static const char *const kinds[] = {[LINEAR_ACTIVATIONS] = "{\"activations\":",
                                        [LINEAR_GRADIENTS] = ",\"gradients\":",
                                        [LINEAR_WEIGHTS] = ",\"weights\":"};
    fprintf(out, ",\"%s\":", name);
    for (int k = 0; k < LINEAR_KINDS; k++) {
        json_out_number(out, kinds[k], value[k], 6);
    }
    fputc('}', out);
}

/* Of runs in FP8: largest values, and the share of values that became 0 or were cut off; what
 * gradients were multiplied by. */
static void print_fp8(FILE *out, const struct fp8_counters fp8[LINEAR_KINDS], double unit)
{
    double amax[LINEAR_KINDS], underflow[LINEAR_KINDS], saturated[LINEAR_KINDS];
    if (fp8[LINEAR_WEIGHTS].values == 0) {
        return;
    }
    for (int k = 0; k < LINEAR_KINDS; k++) {
        const double values = (double)fp8[k].values;
        amax[k] = (double)fp8_from_bits(fp8[k].amax);
        underflow[k] = values > 0 ? (double)fp8[k].underflows / values : 0;
        saturated[k] = values > 0 ? (double)fp8[k].saturated / values : 0;
    }
    print_kinds(out, "fp8_amax", amax);
    print_kinds(out, "fp8_underflow", underflow);
    print_kinds(out, "fp8_saturated", saturated);
    json_out_number(out, ",\"fp8_unit\":", unit, 17);
}

/* Tokens of each expert over their mean, block by block. */
static void tell_loads(struct metrics *metrics, int64_t step, const struct stepper *stepper)
{
    enum { BUCKETS = 20 };
    const int64_t experts = stepper->model->arch.experts;
    double *share = calloc((size_t)experts, sizeof *share);
    for (int64_t b = 0; b < stepper->moe_blocks && share != NULL; b++) {
        const int64_t *load = stepper->load + b * experts;
        char tag[64];
        double sum = 0;
        for (int64_t e = 0; e < experts; e++) {
            sum += (double)load[e];
        }
        for (int64_t e = 0; e < experts; e++) {
            share[e] = sum > 0 ? (double)load[e] * (double)experts / sum : 0;
        }
        snprintf(tag, sizeof tag, "expert_load/block_%03lld", (long long)b);
        events_histogram(&metrics->events, tag, step, share, experts, BUCKETS);
    }
    free(share);
}

/* Scalars of every step, distributions of a hundred of the run; a run goes on without them. */
static void tell_events(struct metrics *metrics, int64_t step, const struct step_result *result,
                        double valid_loss, double mfu, int64_t memory, double load,
                        const struct stepper *stepper)
{
    enum { DISTRIBUTIONS = 100 };
    const struct guard_state *guard = stepper->guard->state;
    if (metrics->events.file == NULL) {
        return;
    }
    const struct {
        const char *tag;
        double value;
    } scalars[] = {
        {"loss/train", result->loss},
        {"loss/valid", valid_loss},
        {"loss/balance", result->aux_loss},
        {"loss/mtp", result->mtp_loss},
        {"optimizer/grad_norm", result->grad_norm},
        {"optimizer/lr", result->lr},
        {"speed/tokens_per_s", rate_of(result)},
        {"speed/mfu", mfu},
        {"speed/step_ms", result->step_ms},
        {"speed/all_to_all_fraction", exchange_of(result)},
        {"memory/bytes", (double)memory},
        {"experts/dropped_fraction", result->dropped_fraction},
        {"experts/extra_rounds", (double)result->extra_rounds},
        {"experts/largest_load", load},
        {"guard/skipped", (double)guard->skipped},
        {"guard/rollbacks", (double)guard->rollbacks},
    };
    const int64_t every = (metrics->steps + DISTRIBUTIONS - 1) / DISTRIBUTIONS;
    for (size_t i = 0; i < sizeof scalars / sizeof scalars[0]; i++) {
        events_scalar(&metrics->events, scalars[i].tag, step, scalars[i].value);
    }
    if (step % every == 0 || step == metrics->steps) {
        tell_loads(metrics, step, stepper);
    }
    if (events_flush(&metrics->events) != STATUS_OK) {
        metrics_say(metrics, "%s; no more events are written", status_message());
        events_close(&metrics->events);
    }
}

/* They add up to the step: all-to-alls are taken out of the phase they lie in. */
static void print_phases(FILE *out, const struct phase_ms *phase)
{
    const double exchange = isnan(phase->exchange) ? 0 : phase->exchange;
    fprintf(out, ",\"phase_ms\":{\"data\":%.4g,\"data_wait\":%.4g,\"forward_backward\":%.6g",
            phase->data, phase->data_wait, phase->forward_backward - exchange);
    json_out_number(out, ",\"exchange\":", phase->exchange, 6);
    fprintf(out, ",\"reduce\":%.6g,\"optimizer\":%.6g,\"save\":%.4g}", phase->reduce,
            phase->optimizer, phase->save);
}

static double mfu_of(const struct metrics *metrics, const struct step_result *result)
{
    return metrics->peak_flops > 0
               ? rate_of(result) * metrics->flops_per_token / metrics->peak_flops
               : (double)NAN;
}

/* metrics->text: the line of a step. */
static void compose(struct metrics *metrics, int64_t step, const struct step_result *result,
                    double valid_loss, int64_t memory, const struct stepper *stepper)
{
    FILE *out = metrics->line;
    const struct guard_state *guard = stepper->guard->state;
    rewind(out);
    fprintf(out, "{\"step\":%lld,\"tokens\":%lld", (long long)step, (long long)result->tokens);
    json_out_number(out, ",\"loss\":", result->loss, 17);
    fprintf(out, isfinite(result->loss) ? ",\"loss_hex\":\"%a\"" : ",\"loss_hex\":null",
            result->loss);
    json_out_number(out, ",\"aux_loss\":", result->aux_loss, 17);
    json_out_number(out, ",\"mtp_loss\":", result->mtp_loss, 17);
    json_out_number(out, ",\"valid_loss\":", valid_loss, 17);
    json_out_number(out, ",\"grad_norm\":", result->grad_norm, 17);
    json_out_number(out, ",\"lr\":", result->lr, 17);
    json_out_number(out, ",\"tokens_per_s\":", rate_of(result), 6);
    json_out_number(out, ",\"mfu\":", mfu_of(metrics, result), 17);
    fprintf(out,
            ",\"step_ms\":%.6g,\"memory_bytes\":%lld,\"dropped_fraction\":%.9g,\"extra_rounds\":%"
            "lld,\"expert_load\":[",
            result->step_ms, (long long)memory, result->dropped_fraction,
            (long long)result->extra_rounds);
    for (int64_t l = 0; l < stepper->moe_blocks; l++) {
        fprintf(out, "%s%.6g", l > 0 ? "," : "", stepper->expert_load[l]);
    }
    fprintf(out, "]");
    print_fp8(out, result->fp8, result->unit);
    print_phases(out, &result->phase_ms);
    fprintf(out, ",\"skipped\":%lld,\"rollbacks\":%lld}\n", (long long)guard->skipped,
            (long long)guard->rollbacks);
    fflush(out);
}

/* A line of metrics.jsonl. */
static void add_line(struct metrics *metrics, const char *line, size_t bytes)
{
    if (metrics->jsonl.held) {
        take_out(metrics);
    }
    watch(metrics, &metrics->jsonl, &metrics->jsonl_fails,
          line_log_add(&metrics->jsonl, line, bytes, metrics->step));
}

void metrics_step(struct metrics *metrics, int64_t step, const struct step_result *result,
                  double valid_loss, const struct stepper *stepper)
{
    const double mfu = mfu_of(metrics, result);
    const int64_t memory = metrics_memory(metrics->device);
    double most = 0;
    for (int64_t l = 0; l < stepper->moe_blocks; l++) {
        most = fmax(most, stepper->expert_load[l]);
    }
    metrics->step = step;
    compose(metrics, step, result, valid_loss, memory, stepper);
    add_line(metrics, metrics->text, metrics->bytes);
    tell_events(metrics, step, result, valid_loss, mfu, memory, most, stepper);
    show(metrics, step, result, valid_loss, mfu, memory, most);
}

/* --- evaluations that may not come to their end --- */

void metrics_begin_evaluation(struct metrics *metrics, int64_t step,
                              const struct step_result *result, const struct stepper *stepper)
{
    compose(metrics, step, result, (double)NAN, metrics_memory(metrics->device), stepper);
    FILE *out = fopen(metrics->pending_path, "we");
    bool written = out != NULL && fwrite(metrics->text, metrics->bytes, 1, out) == 1;
    written = out != NULL && fclose(out) == 0 && written;
    if (!written && !metrics->pending_fails) {
        fprintf(stderr,
                "switchyard: warning: %s: cannot write: %s: an evaluation that is broken off now "
                "is not made up for; training goes on\n",
                metrics->pending_path, strerror(errno));
    }
    metrics->pending_fails = !written;
}

void metrics_end_evaluation(struct metrics *metrics)
{
    io_discard(metrics->pending_path);
}

void metrics_make_up(struct metrics *metrics, double valid_loss)
{
    FILE *out = metrics->line;
    const char *at = strstr(metrics->pending, no_valid), *behind = at + sizeof no_valid - 1;
    rewind(out);
    fwrite(metrics->pending, (size_t)(at - metrics->pending), 1, out);
    json_out_number(out, "\"valid_loss\":", valid_loss, 17);
    fputs(behind, out);
    fflush(out);
    metrics->back = metrics->step - 1; /* of an evaluation that was left the line is there */
    take_out(metrics);
    add_line(metrics, metrics->text, metrics->bytes);
    metrics_end_evaluation(metrics);
    free(metrics->pending);
    metrics->pending = NULL;
    events_scalar(&metrics->events, "loss/valid", metrics->step, valid_loss);
    if (!isnan(valid_loss)) {
        metrics_say(metrics, "step %lld/%lld valid %.4f, its evaluation made up for",
                    (long long)metrics->step, (long long)metrics->steps, valid_loss);
    }
}
