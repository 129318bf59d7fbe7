/* config_back: a config printed and read again is the same, key by key; a config.json. Its users
 * define _GNU_SOURCE. */
#ifndef TESTS_UNIT_CONFIG_BACK_H
#define TESTS_UNIT_CONFIG_BACK_H

#include "unit/scratch.h"

#include "trainer/config/config_table.h"

/* As published with Mixtral-8x7B, but for router_aux_loss_coef. */
static const char MIXTRAL[] = "{\n"
                              "  \"architectures\": [\"MixtralForCausalLM\"],\n"
                              "  \"attention_dropout\": 0.0,\n"
                              "  \"bos_token_id\": 1,\n"
                              "  \"hidden_act\": \"silu\",\n"
                              "  \"hidden_size\": 4096,\n"
                              "  \"initializer_range\": 0.02,\n"
                              "  \"intermediate_size\": 14336,\n"
                              "  \"max_position_embeddings\": 32768,\n"
                              "  \"model_type\": \"mixtral\",\n"
                              "  \"num_attention_heads\": 32,\n"
                              "  \"num_experts_per_tok\": 2,\n"
                              "  \"num_hidden_layers\": 32,\n"
                              "  \"num_key_value_heads\": 8,\n"
                              "  \"num_local_experts\": 8,\n"
                              "  \"output_router_logits\": false,\n"
                              "  \"rms_norm_eps\": 1e-05,\n"
                              "  \"rope_theta\": 1000000.0,\n"
                              "  \"router_aux_loss_coef\": 0.002,\n"
                              "  \"sliding_window\": null,\n"
                              "  \"tie_word_embeddings\": false,\n"
                              "  \"torch_dtype\": \"bfloat16\",\n"
                              "  \"use_cache\": true,\n"
                              "  \"vocab_size\": 32000\n"
                              "}\n";

enum { SHOWN = 32768 };

static inline const char *shown(char text[SHOWN], const struct config *config,
                                const struct field *field)
{
    config_show(config, field, text, SHOWN);
    return text;
}

static inline char *printed(const struct config *config)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    config_print(config, out);
    fclose(out);
    return text;
}

static inline void expect_reads_back(const struct config *config)
{
    struct config again;
    char *text = printed(config);
    config_init(&again);
    again.planning = config->planning;
    if (config_parse(&again, "t.yaml", text, strlen(text)) != STATUS_OK) {
        fail_msg("%s\nin\n%s", status_message(), text);
    }
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        const void *a = (const char *)config + field->offset,
                   *b = (const char *)&again + field->offset;
        static const size_t bytes[] = {[FIELD_BOOL] = sizeof(bool),
                                       [FIELD_INT] = 8,
                                       [FIELD_UINT] = 8,
                                       [FIELD_REAL] = 8,
                                       [FIELD_TEXT] = sizeof(char *),
                                       [FIELD_ENUM] = sizeof(int),
                                       [FIELD_TEXTS] = 8, /* the counts, here and of sources */
                                       [FIELD_REALS] = sizeof(struct config_reals),
                                       [FIELD_SOURCES] = 8};
        const char *s = field->kind == FIELD_TEXT ? *(char *const *)a : NULL,
                   *t = field->kind == FIELD_TEXT ? *(char *const *)b : NULL;
        const bool same = field->kind != FIELD_TEXT ? memcmp(a, b, bytes[field->kind]) == 0
                                                    : s == t || (s && t && strcmp(s, t) == 0);
        char value[SHOWN], back[SHOWN];
        /* Every key that config.json set is printed: the file is not needed again. */
        const bool resolved = strcmp(field->key, "model.hf_config") == 0 && t == NULL;
        const bool shown_same =
            strcmp(shown(value, config, field), shown(back, &again, field)) == 0;
        if ((!same || !shown_same) && !resolved) {
            fail_msg("%s printed as %s reads back differently", field->key,
                     shown(value, config, field));
        }
    }
    config_free(&again);
    free(text);
}

#endif
