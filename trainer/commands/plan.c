#include "trainer/plan/plan.h"

#include <stdio.h>
#include <stdlib.h>

#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/plan/compare.h"
#include "trainer/plan/search.h"

struct request {
    bool json, search, stages;
    int64_t rows;
    const char *tokens, *timeline;
    double budget, price;
};

enum { USUAL_ROWS = 12 };

/* "14.8T", "300B", "5e9". */
static bool read_tokens(const char *text, double *tokens)
{
    char *end = NULL;
    const double value = strtod(text, &end);
    const double unit = *end == 'T'   ? 1e12
                        : *end == 'B' ? 1e9
                        : *end == 'M' ? 1e6
                        : *end == 'K' ? 1e3
                                      : 1;
    end += unit > 1;
    *tokens = value * unit;
    return end != text && *end == '\0' && *tokens > 0 && *tokens < 1e30;
}

static enum status run_search(const struct request *request, const struct config *config,
                              const struct hardware *hardware)
{
    struct search search;
    const enum status status =
        search_run(&search, config, hardware, request->stages || config->parallel.pp > 1);
    if (status == STATUS_OK && request->json) {
        search_print_json(&search);
        printf("\n");
    } else if (status == STATUS_OK) {
        search_print_text(&search, request->rows);
    }
    search_free(&search);
    return status;
}

static enum status run_plan(const struct request *request, const struct config *config,
                            const struct hardware *hardware)
{
    struct plan *plan = malloc(sizeof *plan);
    enum status status =
        plan != NULL ? STATUS_OK : status_fail(STATUS_RESOURCE, "out of memory for a plan");
    struct comparison comparison;
    if (status == STATUS_OK) {
        status = plan_trace(plan, config, hardware, request->timeline);
    }
    if (status == STATUS_OK) {
        status = compare_make(&comparison, plan);
    }
    if (status == STATUS_OK) {
        const double whole = plan->tokens_per_step * (double)config->run.steps;
        (request->json ? plan_print_json : plan_print_text)(
            plan, &comparison, request->budget > 0 ? request->budget : whole, request->price);
        printf(request->json ? "\n" : "");
    }
    free(plan);
    return status;
}

enum status command_plan(int argc, char **argv)
{
    struct option_result options;
    struct config config;
    struct hardware hardware = {0};
    struct request request = {.rows = USUAL_ROWS};
    const struct option_spec specs[] = {
        {"--search", OPTION_FLAG, &request.search, NULL,
         "try every layout; the best ones, and why not the others"},
        {"--stages", OPTION_FLAG, &request.stages, NULL, "search: pipelines too"},
        {"--rows", OPTION_INT, &request.rows, "N", "search: layouts shown (default 12)"},
        {"--tokens", OPTION_TEXT, &request.tokens, "14.8T",
         "budget of GPU-hours and cost (default: that of run.steps)"},
        {"--price", OPTION_REAL, &request.price, "P", "of a GPU-hour"},
        {"--timeline", OPTION_TEXT, &request.timeline, "FILE",
         "write the step as a Chrome trace: what each rank of the pipeline does when"},
        {"--json", OPTION_FLAG, &request.json, NULL, "print JSON"},
        {0}};
    TRY(options_parse(&options, argc, argv, specs, "plan CONFIG [key=value ...]",
                      "What a run will need and take on a cluster, without one: memory of a rank, "
                      "messages, step time,\n"
                      "MFU, GPU-hours, checkpoints. The cluster: keys cluster.* (nodes, gpu, ...).",
                      1, 1));
    if (options.help) {
        return STATUS_OK;
    }
    if (request.rows < 1 || request.price < 0) {
        return status_fail(STATUS_USAGE, "plan: --rows must be at least 1, --price not negative");
    }
    if (request.tokens != NULL && !read_tokens(request.tokens, &request.budget)) {
        return status_fail(STATUS_USAGE,
                           "plan: --tokens needs a number such as 14.8T, 300B or 5e9, not '%s'",
                           request.tokens);
    }
    if (request.search ? request.tokens != NULL || request.price > 0 || request.timeline != NULL
                       : request.stages || request.rows != USUAL_ROWS) {
        return status_fail(
            STATUS_USAGE,
            request.search
                ? "plan: --tokens, --price and --timeline are of one plan, not of --search"
                : "plan: --stages and --rows are of --search");
    }
    config_init(&config);
    config.planning = true;
    enum status status =
        config_load(&config, options.words[0], options.overrides, options.override_count);
    if (status == STATUS_OK) {
        status = hardware_init(&hardware, &config);
    }
    if (status == STATUS_OK) {
        status = (request.search ? run_search : run_plan)(&request, &config, &hardware);
    }
    hardware_free(&hardware);
    config_free(&config);
    return status;
}
