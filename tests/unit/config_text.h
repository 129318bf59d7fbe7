/* config_text: configs as tests write them, and tables of refusals. */
#ifndef TESTS_UNIT_CONFIG_TEXT_H
#define TESTS_UNIT_CONFIG_TEXT_H

#include "unit/scratch.h"

#include "trainer/config/config_table.h"

static const char BASE[] = "run: {steps: 300}\n"
                           "model:\n"
                           "  vocab_size: 257\n"
                           "  hidden_size: 64\n"
                           "  intermediate_size: 96\n"
                           "  num_hidden_layers: 2\n"
                           "  num_attention_heads: 4\n"
                           "train: {sequence_length: 32}\n";

static inline enum status parse(struct config *config, const char *text, size_t bytes)
{
    config_init(config);
    return config_parse(config, "t.yaml", text, bytes);
}

enum { PARTS = 6, OVERRIDES = 4 };

struct bad {
    const char *text;
    const char *parts[PARTS];
};

static inline void expect_refused(const struct bad *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        struct config config;
        const enum status status = parse(&config, cases[i].text, strlen(cases[i].text));
        config_free(&config);
        if (status != STATUS_USAGE) {
            fail_msg("status %d for\n%s", status, cases[i].text);
        }
        expect_parts(cases[i].parts, PARTS, cases[i].text);
    }
}

#define EXPECT_REFUSED(cases) expect_refused(cases, sizeof(cases) / sizeof((cases)[0]))

static inline enum status load(struct config *config, const char *const overrides[OVERRIDES])
{
    char *list[OVERRIDES];
    int count = 0;
    for (; count < OVERRIDES && overrides[count] != NULL; count++) {
        list[count] = (char *)(uintptr_t)overrides[count];
    }
    config_init(config);
    return config_load(config, "base.yaml", list, count);
}

#endif
