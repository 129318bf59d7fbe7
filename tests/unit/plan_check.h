/* plan_check: configs small enough to plan by hand, and a comparison. */
#ifndef TESTS_PLAN_CHECK_H
#define TESTS_PLAN_CHECK_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "trainer/plan/search.h"

enum { MOST_OVERRIDES = 24 };

static inline void expect_near(double value, double expected, double tolerance, const char *what)
{
    if (!(fabs(value - expected) <= tolerance * fabs(expected))) {
        fail_msg("%s: %.9g, expected %.9g within %g", what, value, expected, tolerance);
    }
}

/* A small Mixtral of one MoE block, planned here without measuring the machine. */
static inline void open_small(struct config *config, struct hardware *hardware,
                              const char *const *more)
{
    static const char *const usual[] = {"model.num_hidden_layers=2", "cluster.peak_tflops=1",
                                        "run.device=cpu", "train.global_batch=64",
                                        "train.micro_batch=1"};
    char *list[MOST_OVERRIDES];
    int count = 0;
    for (size_t i = 0; i < sizeof usual / sizeof usual[0]; i++) {
        list[count++] = (char *)(uintptr_t)usual[i];
    }
    for (; *more != NULL; more++) {
        list[count++] = (char *)(uintptr_t)*more;
    }
    config_init(config);
    config->planning = true;
    if (config_load(config, SOURCE_DIR "/configs/quickstart.yaml", list, count) != STATUS_OK) {
        fail_msg("%s", status_message());
    }
    assert_int_equal(hardware_init(hardware, config), STATUS_OK);
}

#endif
