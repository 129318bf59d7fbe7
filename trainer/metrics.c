#define _DEFAULT_SOURCE
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

#include "kernels/base/io.h"
#include "kernels/base/json_out.h"
#include "trainer/figures.h"

enum { MAX_PATH = 4096 };
static const size_t MAX_LOG_BYTES = (size_t)1 << 32;

/* Bytes of the leading whole lines whose step is at most `step`. */
static size_t kept_bytes(const char *text, int64_t step)
{
    size_t kept = 0;
    for (const char *line = text; *line != '\0';) {
        const char *end = strchr(line, '\n'), *field = strstr(line, "\"step\":");
        if (end == NULL || field == NULL || field > end || strtoll(field + 7, NULL, 10) > step) {
            break;
        }
        line = end + 1;
        kept = (size_t)(line - text);
    }
    return kept;
}

static enum status truncate_to(const char *path, int64_t step)
{
    char *text = NULL;
    size_t bytes = 0;
    if (!io_exists(path)) {
        return STATUS_OK;
    }
    TRY(io_read_file(path, &text, &bytes, MAX_LOG_BYTES));
    const size_t kept = kept_bytes(text, step);
    const enum status status = kept < bytes ? io_write_file(path, text, kept) : STATUS_OK;
    free(text);
    return status;
}

static enum status open_append(FILE **file, const char *path)
{
    *file = fopen(path, "a");
    return *file != NULL
               ? STATUS_OK
               : status_fail(STATUS_IO, "%s: cannot open for writing: %s", path, strerror(errno));
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

enum status metrics_open(struct metrics *metrics, const char *run_dir, int64_t step)
{
    char path[MAX_PATH];
    metrics->columns = terminal_columns();
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    TRY(truncate_to(path, step));
    TRY(open_append(&metrics->jsonl, path));
    snprintf(path, sizeof path, "%s/log.txt", run_dir);
    TRY(open_append(&metrics->log, path));
    snprintf(path, sizeof path, "%s/tensorboard", run_dir);
    return metrics->tensorboard ? events_open(&metrics->events, path, step + 1) : STATUS_OK;
}

void metrics_close(struct metrics *metrics)
{
    if (metrics->jsonl != NULL) {
        fclose(metrics->jsonl);
    }
    if (metrics->log != NULL) {
        fclose(metrics->log);
    }
    events_close(&metrics->events);
    *metrics = (struct metrics){0};
}

enum status metrics_rewind(struct metrics *metrics, const char *run_dir, int64_t step,
                           int64_t tokens)
{
    char path[MAX_PATH];
    snprintf(path, sizeof path, "%s/metrics.jsonl", run_dir);
    fclose(metrics->jsonl);
    metrics->jsonl = NULL;
    TRY(truncate_to(path, step));
    TRY(open_append(&metrics->jsonl, path));
    events_restart(&metrics->events, step + 1);
    metrics->tokens = metrics->tokens_done + tokens;
    return STATUS_OK;
}

void metrics_say(struct metrics *metrics, const char *format, ...)
{
    char line[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    printf("%s%s\n", metrics->columns > 0 ? "\r\033[K" : "", line);
    fflush(stdout);
    if (metrics->log != NULL) {
        fprintf(metrics->log, "%s\n", line);
        fflush(metrics->log);
    }
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

enum status metrics_step(struct metrics *metrics, int64_t step, const struct step_result *result,
                         double valid_loss, const struct stepper *stepper)
{
    FILE *out = metrics->jsonl;
    const double rate = rate_of(result), *load = stepper->expert_load;
    const double mfu = metrics->peak_flops > 0
                           ? rate * metrics->flops_per_token / metrics->peak_flops
                           : (double)NAN;
    const int64_t memory = metrics_memory(metrics->device);
    const struct guard_state *guard = stepper->guard->state;
    double most = 0;
    fprintf(out, "{\"step\":%lld,\"tokens\":%lld", (long long)step, (long long)result->tokens);
    json_out_number(out, ",\"loss\":", result->loss, 17);
    fprintf(out, isfinite(result->loss) ? ",\"loss_hex\":\"%a\"" : ",\"loss_hex\":null",
            result->loss);
    json_out_number(out, ",\"aux_loss\":", result->aux_loss, 17);
    json_out_number(out, ",\"mtp_loss\":", result->mtp_loss, 17);
    json_out_number(out, ",\"valid_loss\":", valid_loss, 17);
    json_out_number(out, ",\"grad_norm\":", result->grad_norm, 17);
    json_out_number(out, ",\"lr\":", result->lr, 17);
    json_out_number(out, ",\"tokens_per_s\":", rate, 6);
    json_out_number(out, ",\"mfu\":", mfu, 17);
    fprintf(out,
            ",\"step_ms\":%.6g,\"memory_bytes\":%lld,\"dropped_fraction\":%.9g,\"extra_rounds\":%"
            "lld,\"expert_load\":[",
            result->step_ms, (long long)memory, result->dropped_fraction,
            (long long)result->extra_rounds);
    for (int64_t l = 0; l < stepper->moe_blocks; l++) {
        fprintf(out, "%s%.6g", l > 0 ? "," : "", load[l]);
        most = load[l] > most ? load[l] : most;
    }
    fprintf(out, "]");
    print_fp8(out, result->fp8, result->unit);
    print_phases(out, &result->phase_ms);
    fprintf(out, ",\"skipped\":%lld,\"rollbacks\":%lld}\n", (long long)guard->skipped,
            (long long)guard->rollbacks);
    if (fflush(out) != 0) {
        return status_fail(STATUS_IO, "metrics.jsonl: cannot write step %lld: %s", (long long)step,
                           strerror(errno));
    }
    tell_events(metrics, step, result, valid_loss, mfu, memory, most, stepper);
    show(metrics, step, result, valid_loss, mfu, memory, most);
    return STATUS_OK;
}
