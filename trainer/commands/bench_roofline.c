#include "trainer/commands/bench_roofline.h"

#include <math.h>
#include <stdio.h>

#include "kernels/base/json_out.h"

void roofline_ceilings(struct roofline *roofline, struct session *session, enum dtype act)
{
    struct device_ceilings *ceiling = &roofline->ceiling;
    comm_barrier(&session->world); /* all ranks at once: they share what is measured */
    roofline->there = roofline->there && device_ceilings(session->device, act, ceiling);
    ceiling->fma_flops = fmax(ceiling->fma_flops, device_peak_flops(session->device, act));
    roofline->world_flops = ceiling->fma_flops;
    comm_all_reduce(&session->world, &roofline->world_flops, 1, DTYPE_F64, REDUCE_SUM);
}

void roofline_take(struct roofline *roofline, const struct meter *meter,
                   const struct phase_ms *phase, int64_t steps, double flops)
{
    for (int i = 0; i < METER_FAMILIES; i++) {
        const struct meter_line *from = &meter->line[i];
        roofline->line[i] = (struct meter_line){.calls = from->calls / steps,
                                                .seconds = from->seconds / (double)steps,
                                                .flops = from->flops / (double)steps,
                                                .bytes = from->bytes / (double)steps};
    }
    roofline->flops = flops;
    roofline->step_seconds = 1e-3 * (phase->data + phase->data_wait + phase->forward_backward +
                                     phase->reduce + phase->optimizer);
}

/* The least seconds a family could take. */
static double bound(const struct roofline *roofline, const struct meter_line *line)
{
    return fmax(line->flops / roofline->ceiling.fma_flops,
                line->bytes / roofline->ceiling.copy_bytes);
}

static bool by_flops(const struct roofline *roofline, const struct meter_line *line)
{
    return line->flops / roofline->ceiling.fma_flops > line->bytes / roofline->ceiling.copy_bytes;
}

static double rest(const struct roofline *roofline)
{
    double seconds = roofline->step_seconds;
    for (int i = 0; i < METER_FAMILIES; i++) {
        seconds -= roofline->line[i].seconds;
    }
    return seconds;
}

void roofline_print(const struct roofline *r)
{
    if (!r->there) {
        return;
    }
    printf("\nroofline of a step with learned routing, rank 0: products %.0f GFLOP/s, copy %.1f "
           "GB/s; the step reaches %.0f %% of all ranks' products\n",
           r->ceiling.fma_flops / 1e9, r->ceiling.copy_bytes / 1e9,
           100 * r->flops / r->world_flops);
    printf("%-20s %7s %9s %6s %9s %9s  %-7s %9s %9s\n", "", "calls", "ms", "% step", "GFLOP", "MB",
           "bound", "% bound", "ms lost");
    for (int i = 0; i < METER_FAMILIES; i++) {
        const struct meter_line *line = &r->line[i];
        if (line->calls > 0) {
            const double least = bound(r, line);
            printf("%-20s %7lld %9.1f %6.1f %9.2f %9.1f  %-7s %9.0f %9.1f\n", meter_names[i],
                   (long long)line->calls, 1e3 * line->seconds,
                   100 * line->seconds / r->step_seconds, line->flops / 1e9, line->bytes / 1e6,
                   by_flops(r, line) ? "FLOP" : "memory", 100 * least / line->seconds,
                   1e3 * (line->seconds - least));
        }
    }
    printf("%-20s %7s %9.1f %6.1f\n", "rest", "", 1e3 * rest(r), 100 * rest(r) / r->step_seconds);
}

void roofline_json(const struct roofline *r)
{
    if (!r->there) {
        return;
    }
    json_out_number(stdout, ",\"roofline\":{\"fma_flops\":", r->ceiling.fma_flops, 6);
    json_out_number(stdout, ",\"copy_bytes_per_s\":", r->ceiling.copy_bytes, 6);
    json_out_number(stdout, ",\"share_of_fma\":", r->flops / r->world_flops, 4);
    json_out_number(stdout, ",\"rest_ms\":", 1e3 * rest(r), 6);
    for (int i = 0; i < METER_FAMILIES; i++) {
        const struct meter_line *line = &r->line[i];
        if (line->calls > 0) {
            printf(",\"%s\":{\"calls\":%lld", meter_names[i], (long long)line->calls);
            json_out_number(stdout, ",\"ms\":", 1e3 * line->seconds, 6);
            json_out_number(stdout, ",\"flops\":", line->flops, 6);
            json_out_number(stdout, ",\"bytes\":", line->bytes, 6);
            printf(",\"bound\":\"%s\"", by_flops(r, line) ? "flops" : "memory");
            json_out_number(stdout, ",\"share_of_bound\":", bound(r, line) / line->seconds, 4);
            printf("}");
        }
    }
    printf("}");
}
