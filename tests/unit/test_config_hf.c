/* config: a model's config.json is taken or refused. */
#define _GNU_SOURCE
#include "unit/config_back.h"
#include "unit/config_text.h"

static void test_hf_config_is_taken(void **state)
{
    (void)state;
    static const char *const places[] = {"hf", "hf/config.json"};
    assert_int_equal(io_make_dir("hf"), STATUS_OK);
    put("hf/config.json", MIXTRAL);
    for (int i = 0; i < 2; i++) {
        char text[256];
        struct config config;
        snprintf(text, sizeof text, "model: {hf_config: %s, num_hidden_layers: 4}\n", places[i]);
        assert_int_equal(parse(&config, text, strlen(text)), STATUS_OK);
        assert_int_equal(config.model.vocab_size, 32000);
        assert_int_equal(config.model.hidden_size, 4096);
        assert_int_equal(config.model.intermediate_size, 14336);
        assert_int_equal(config.model.num_hidden_layers, 4); /* written beside it */
        assert_int_equal(config.model.num_attention_heads, 32);
        assert_int_equal(config.model.num_key_value_heads, 8);
        assert_int_equal(config.model.sliding_window, 0);
        assert_true(config.model.rms_norm_eps == 1e-5);
        assert_true(config.model.router_aux_loss_coef == 0.002);
        assert_non_null(strstr(config.model.hf_ignored, "bos_token_id"));
        assert_null(strstr(config.model.hf_ignored, "hidden_size"));
        expect_reads_back(&config);
        config_free(&config);
    }
}

static void test_hf_config_variants(void **state)
{
    (void)state;
    static const char text[] = "model: {hf_config: config.json}\n";
    struct config config;
    put("config.json", "{\"model_type\": \"mixtral\", \"vocab_size\": 100, \"hidden_size\": 64, "
                       "\"intermediate_size\": 32, \"num_hidden_layers\": 1, "
                       "\"num_attention_heads\": 4, \"num_key_value_heads\": null, \"head_dim\": "
                       "null, \"sliding_window\": 4096, \"rope_scaling\": null, "
                       "\"rope_parameters\": {\"rope_theta\": 5000}}");
    assert_int_equal(parse(&config, text, sizeof text - 1), STATUS_OK);
    assert_int_equal(config.model.num_key_value_heads, 4);
    assert_int_equal(config.model.sliding_window, 4096);
    assert_true(config.model.rope_theta == 5000.0);
    assert_true(config.model.router_aux_loss_coef == 0.001); /* silent: the class's default */
    assert_string_equal(config.model.hf_ignored, "");
    config_free(&config);
}

/* MIXTRAL with one text put in place of another. */
static void put_mixtral(const char *from, const char *to)
{
    char text[4096];
    const char *at = strstr(MIXTRAL, from);
    assert_non_null(at);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - MIXTRAL), MIXTRAL, to, at + strlen(from));
    put("config.json", text);
}

static void test_hf_config_is_refused(void **state)
{
    (void)state;
    static const char text[] = "model: {hf_config: config.json}\n";
    static const struct {
        const char *from, *to;
        const char *parts[PARTS];
    } cases[] = {
        {"\"tie_word_embeddings\": false",
         "\"tie_word_embeddings\": true",
         {"config.json", "tie_word_embeddings"}},
        {"\"use_cache\": true", "\"attention_bias\": true", {"config.json", "attention_bias"}},
        {"\"mixtral\"", "\"llama\"", {"config.json: model_type 'llama' is not built"}},
        {"\"model_type\"", "\"model\"", {"model_type '(none)'"}},
        {"\"silu\"", "\"gelu\"", {"hidden_act 'gelu' is not built"}},
        {"\"use_cache\": true", "\"rope_scaling\": {\"type\": \"yarn\"}", {"scaled rotary"}},
        {"\"use_cache\": true",
         "\"rope_parameters\": {\"rope_type\": \"yarn\"}",
         {"scaled rotary"}},
        {"\"attention_dropout\": 0.0", "\"attention_dropout\": 0.1", {"attention_dropout"}},
        {"\"vocab_size\": 32000", "\"vocabulary\": 32000", {"key 'vocab_size' is missing"}},
        {"32000", "\"many\"", {"key 'vocab_size'", "is text"}},
        {"32000", "1.5", {"key 'vocab_size'", "is not a whole number"}},
        {"32000", "0", {"key 'vocab_size'", "outside"}},
        {"32000", "null", {"key 'vocab_size': null is not a value here"}},
        {"\"num_key_value_heads\": 8", "\"num_key_value_heads\": 5", {"does not divide"}},
        {"\"bos_token_id\"", "\"vocab_size\"", {"config.json: line", "duplicate"}},
        {"32000\n", "32000,,\n", {"config.json: line 24"}},
        {"{\n", "", {"config.json"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        put_mixtral(cases[i].from, cases[i].to);
        assert_int_equal(parse(&config, text, sizeof text - 1), STATUS_USAGE);
        expect_parts(cases[i].parts, PARTS, cases[i].to);
        config_free(&config);
    }
    const struct bad gone = {"model: {hf_config: gone.json}\n", {"gone.json"}};
    expect_refused(&gone, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_hf_config_is_taken),
        SCRATCH_TEST(test_hf_config_variants),
        SCRATCH_TEST(test_hf_config_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
