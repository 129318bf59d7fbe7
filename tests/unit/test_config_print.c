/* config: a printed config reads back the same, help covers every key, and mangled files never
 * crash. */
#define _GNU_SOURCE
#include "unit/config_back.h"
#include "unit/config_text.h"

#include <stdio.h>

#include "kernels/base/rng.h"

/* --- printing --- */

/* Every key, at another value than its default. */
static const char *const values[] = {
    "run.dir=a \"b\" \\ c: # 'd' {e}",
    "run.seed=8999999999999999",
    "run.steps=1000000000",
    "run.device=cuda",
    "run.comm=nccl",
    "run.threads=3",
    "run.pin=false",
    "run.verify=true",
    "run.time_limit=2h",
    "run.pause_at=40",
    "run.deterministic=off",
    "model.hf_config=config.json",
    "model.vocab_size=16777216",
    "model.hidden_size=128",
    "model.intermediate_size=98",
    "model.num_hidden_layers=3",
    "model.num_attention_heads=6",
    "model.num_key_value_heads=3",
    "model.head_dim=22",
    "model.num_local_experts=12",
    "model.num_experts_per_tok=5",
    "model.max_position_embeddings=999999999",
    "model.sliding_window=77",
    "model.rms_norm_eps=1.2345678901234567e-6",
    "model.rope_theta=12345.678901234567",
    "model.initializer_range=0.1",
    "model.router_aux_loss_coef=0.3333333333333333",
    "model.router_jitter_noise=5e-324",
    "train.sequence_length=33",
    "train.micro_batch=7",
    "train.global_batch=21",
    "train.batch_ramp.start=7",
    "train.batch_ramp.increment=14",
    "train.batch_ramp.tokens=8999999999999999",
    "train.precision=fp32",
    "train.recompute=block",
    "train.mtp_loss_weight=0.2",
    "train.mtp_loss_weight_late=0",
    "train.mtp_loss_weight_switch=0.625",
    "optimizer.name=muon",
    "optimizer.lr=2.2250738585072014e-308",
    "optimizer.beta1=0.91",
    "optimizer.beta2=0.999",
    "optimizer.eps=1e-7",
    "optimizer.weight_decay=0.7",
    "optimizer.decay=all",
    "optimizer.momentum=0.9",
    "optimizer.clip_norm=0",
    "optimizer.moments=bf16",
    "optimizer.ema=0.9999",
    "optimizer.offload=true",
    "optimizer.freeze=a \"b\"*,\x01 [x],\xc3\xa9t\xc3\xa9,null",
    "schedule.kind=wsd",
    "schedule.warmup_steps=21",
    "schedule.final_lr_ratio=0.30000000000000004",
    "schedule.decay_start=0.1",
    "schedule.decay_end=0.30000000000000004",
    "schedule.decay_shape=cosine",
    "schedule.milestones=0, 1e-300, 0.30000000000000004,1",
    "schedule.milestone_factor=0.3333333333333333",
    "router.batch_loss_coef=0",
    "router.sequence_loss_coef=0.25",
    "router.sequence_loss_counts=scores",
    "router.z_loss_coef=1e-3",
    "router.capacity_factor=1.25",
    "router.buffer_factor=1.0000000000000002",
    "router.bias_update_until=0.5",
    "parallel.ep=4",
    "parallel.etp=2",
    "parallel.zero=2",
    "parallel.overlap=off",
    "parallel.node_dispatch=hierarchical",
    "parallel.ranks_per_node=2",
    "data.train=[{path: \"null \xc3\xa9 \\\" void\", weight: [0.1, 5e-324], epochs: 0.5}, {path: "
    "b, "
    "weight: [0, 1], fim: 0.25}]",
    "data.stages.tokens=8999999999999999",
    "data.fim.rate=0.30000000000000004",
    "data.fim.prefix=257",
    "data.fim.middle=<fim_middle>",
    "data.fim.suffix=null x",
    "parallel.pp=2",
    "parallel.tp=3",
    "cluster.nodes=3",
    "cluster.gpus_per_node=5",
    "cluster.gpu=custom",
    "cluster.peak_tflops=1.5",
    "cluster.peak_fp8_tflops=2.5",
    "cluster.memory_gb=0.3333333333333333",
    "cluster.memory_gb_s=7",
    "cluster.nvlink_gb_s=8",
    "cluster.network_gb_s=9",
    "cluster.host_gb_s=10",
    "cluster.disk_gb_s=11",
    "parallel.schedule=1f1b",
    "parallel.virtual_stages=4",
    "parallel.stages=3,4",
    "cluster.exchange=direct",
    "data.valid=~home",
    "data.shuffle=false",
    "data.mask_documents=true",
    "eval.every_steps=5",
    "eval.batches=6",
    "checkpoint.every_steps=0",
    "checkpoint.every_minutes=0.1",
    "checkpoint.mtbf_hours=12.5",
    "checkpoint.async=false",
    "checkpoint.keep_last=9",
    "checkpoint.init_from=- x",
    "checkpoint.resize_vocab=true",
    "log.every_steps=0",
    "log.tensorboard=false",
    "sample.every_steps=8",
    "sample.prompt=line\nbreak \x01\x7f\ttab\r trailing ",
    "sample.tokens=9",
    "sample.temperature=0",
    "watchdog.enabled=false",
    "watchdog.setup_seconds=61",
    "watchdog.step_seconds=62",
    "watchdog.save_seconds=63",
    "watchdog.straggler_every_steps=64",
    "watchdog.straggler_ratio=1.75",
    "guard.on_nonfinite=skip",
    "guard.on_spike=stop",
    "guard.spike_factor=7.5",
    "guard.spike_window=65",
    "guard.tries=4",
    "guard.replicas_every_steps=66",
    "debug.fault=io:eio:3",
    "debug.profile=trace.json",
    "debug.profile_from=67",
    "debug.profile_steps=68",
    "debug.trace=t.h5",
    "debug.trace_from=2",
    "debug.trace_steps=3",
    "debug.trace_values=all",
    "debug.trace_mib=7",
};

/* Keys of the other families. */
static const char *const latent_values[] = {
    "model.family=deepseek_v3",
    "parallel.cp=2",
    "model.moe_intermediate_size=48",
    "model.n_routed_experts=24",
    "model.n_shared_experts=3",
    "model.first_k_dense_replace=1",
    "model.q_lora_rank=20",
    "model.kv_lora_rank=24",
    "model.qk_nope_head_dim=12",
    "model.qk_rope_head_dim=6",
    "model.v_head_dim=10",
    "model.n_group=6",
    "model.topk_group=3",
    "model.topk_method=noaux_tc",
    "model.scoring_func=sigmoid",
    "model.norm_topk_prob=true",
    "model.routed_scaling_factor=2.25",
    "model.aux_loss_alpha=0.001",
    "model.seq_aux=false",
    "model.rope_interleave=false",
    "model.num_nextn_predict_layers=2",
    "model.rope_scaling.type=yarn",
    "model.rope_scaling.factor=40",
    "model.rope_scaling.beta_fast=31",
    "model.rope_scaling.beta_slow=1.5",
    "model.rope_scaling.original_max_position_embeddings=2048",
    "model.rope_scaling.mscale=0.707",
    "model.rope_scaling.mscale_all_dim=0.5",
    "model.rope_scaling.attention_factor=1.25",
    "router.dispatch=padded",
    "data.packing=best_fit",
    "data.stages.steps=3, 8999999999999999",
    "router.device_loss_coef=0.05",
    "router.communication_loss_coef=0.02",
    "router.bias_update_speed=0.001",
};

/* Keys of a precision, whose widths the others do not have. */
static const char *const fp8_values[] = {
    "model.hidden_size=64",      "model.intermediate_size=96", "model.num_attention_heads=4",
    "model.num_hidden_layers=3", "train.precision=fp8",        "fp8.scales=amax",
    "fp8.accumulate=promoted",   "fp8.first_bf16=1",           "fp8.last_bf16=1",
};

/* Loads the base with a list of overrides, marks the keys that left their defaults, and reads the
 * printed config back. */
static void expect_list_reads_back(const char *const *texts, int count, bool *moved)
{
    char *list[160];
    struct config config, initial;
    assert_true(count <= 160);
    memcpy(list, texts, (size_t)count * sizeof list[0]);
    config_init(&initial);
    config_init(&config);
    config.planning = true; /* parallel.pp */
    if (config_load(&config, "base.yaml", list, count) != STATUS_OK) {
        fail_msg("%s", status_message());
    }
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        char value[SHOWN], first[SHOWN];
        moved[i] =
            moved[i] || strcmp(shown(first, &initial, field), shown(value, &config, field)) != 0;
    }
    expect_reads_back(&config);
    config_free(&config);
    config_free(&initial);
}

static void test_print_reads_back(void **state)
{
    (void)state;
    bool *moved = calloc((size_t)config_field_count, sizeof *moved);
    assert_non_null(moved);
    put("base.yaml", BASE);
    put("config.json", MIXTRAL);
    expect_list_reads_back(values, sizeof values / sizeof values[0], moved);
    expect_list_reads_back(latent_values, sizeof latent_values / sizeof latent_values[0], moved);
    expect_list_reads_back(fp8_values, sizeof fp8_values / sizeof fp8_values[0], moved);
    for (int i = 0; i < config_field_count; i++) { /* the lists must keep up with the table */
        const struct field *field = &config_fields[i];
        const bool single = (field->kind == FIELD_ENUM && field->names[1] == NULL) ||
                            (field->kind != FIELD_ENUM && field->low == field->high &&
                             field->kind != FIELD_TEXT && field->kind != FIELD_BOOL);
        if (!single && !moved[i]) {
            fail_msg("%s never left its default: add it to this test", field->key);
        }
    }
    free(moved);
}

static void test_defaults_read_back(void **state)
{
    (void)state;
    static const char *const cases[][OVERRIDES] = {
        {NULL},
        {"run.steps=1"}, /* fewer than the default warm-up */
        {"run.steps=10", "schedule.warmup_steps=10"},
    };
    put("base.yaml", BASE);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct config config;
        assert_int_equal(load(&config, cases[i]), STATUS_OK);
        expect_reads_back(&config);
        char *later[] = {(char *)(uintptr_t) "run.seed=7"}; /* as eval RUN_DIR key=value does */
        assert_int_equal(config_override(&config, later, 1), STATUS_OK);
        config_free(&config);
    }
}

static void test_any_text_reads_back(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        "null",
        "~",
        "true",
        "1e6",
        " ",
        "'",
        "\"",
        "\\",
        "%TAG",
        "a\\x41b",
        "\xc3\xa9t\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80",
        "\xc2\x80 \xc2\x85 \xe2\x80\xa8 \xe2\x80\xa9 \xef\xbb\xbf", /* C1, NEL, LS, PS, BOM */
        "\xef\xbf\xbe\xef\xbf\xbf",                                 /* not characters */
        "\x1f\x1b[0m\x7f",
    };
    struct config config;
    put("base.yaml", BASE);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        char override[256];
        snprintf(override, sizeof override, "sample.prompt=%s", texts[i]);
        const char *const overrides[OVERRIDES] = {override};
        assert_int_equal(load(&config, overrides), STATUS_OK);
        assert_string_equal(config.sample.prompt, texts[i]);
        expect_reads_back(&config);
        config_free(&config);
    }
}

/* Text is never cut: it reads back whole, or it was refused when it came in. */
static void test_long_text(void **state)
{
    (void)state;
    static const size_t lengths[] = {100, 4096, 4097, 9000, 100000};
    struct config config;
    put("base.yaml", BASE);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        const char start[] = "sample.prompt=";
        char *override = calloc(1, sizeof start + lengths[i]);
        assert_non_null(override);
        memset(override, 1, sizeof start - 1 + lengths[i]); /* \x01: printed longest */
        memcpy(override, start, sizeof start - 1);
        const char *const overrides[OVERRIDES] = {override};
        if (load(&config, overrides) == STATUS_OK) {
            assert_int_equal(strlen(config.sample.prompt), lengths[i]);
            expect_reads_back(&config);
        } else {
            assert_true(lengths[i] > 4096);
            expect_message("longer than");
        }
        config_free(&config);
        free(override);
    }
}

static void test_help_covers_every_key(void **state)
{
    (void)state;
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    config_help(out);
    config_markdown(out);
    fclose(out);
    for (int i = 0; i < config_field_count; i++) {
        const struct field *field = &config_fields[i];
        char line[256];
        assert_non_null(field->help);
        assert_true(strlen(field->help) >= 5);
        assert_null(strchr(field->help, '|')); /* would break the table of the docs */
        snprintf(line, sizeof line, "%s\n", field->key);
        assert_non_null(strstr(text, line));
        snprintf(line, sizeof line, "| `%s` |", field->key);
        assert_non_null(strstr(text, line));
        assert_ptr_equal(config_find(field->key), field); /* no key stands twice */
    }
    free(text);
}

/* --- mutations --- */

enum { MOST_TEXT = 8192, MUTATIONS = 4000 };

/* Overwrites, inserts, doubles or removes a few bytes. */
static size_t mutate(char *text, size_t bytes, uint64_t key)
{
    static const char *const pieces[] = {"{",  "}", "[", "]",    ":",  ",",   "\n",   "  ",
                                         "\"", "'", "&", "*a",   "!!", "---", "|",    ">",
                                         "#",  "?", "%", "null", "~",  "1e9", "\x00", "\xc3\xa9"};
    uint32_t bits[4];
    rng_bits(key, 0, bits);
    const int changes = 1 + (int)(bits[0] % 4);
    for (int i = 1; i <= changes; i++) {
        rng_bits(key, (uint64_t)i, bits);
        const size_t at = bits[0] % bytes, length = bits[2] % 20;
        const char *piece = pieces[bits[1] % (sizeof pieces / sizeof pieces[0])];
        const size_t size = piece[0] == '\0' ? 1 : strlen(piece);
        if (bits[3] % 3 == 0) {
            text[at] = (char)bits[1];
        } else if (bits[3] % 3 == 1 && bytes + size < MOST_TEXT) {
            memmove(text + at + size, text + at, bytes - at);
            memcpy(text + at, piece, size);
            bytes += size;
        } else if (at + length < bytes && bytes - length > 1) {
            memmove(text + at, text + at + length, bytes - at - length);
            bytes -= length;
        }
    }
    return bytes;
}

static void test_mutations_never_crash(void **state)
{
    (void)state;
    char *base = NULL, text[MOST_TEXT];
    size_t bytes = 0;
    int accepted = 0;
    assert_int_equal(
        io_read_file(SOURCE_DIR "/configs/quickstart.yaml", &base, &bytes, MOST_TEXT / 2),
        STATUS_OK);
    for (uint64_t i = 0; i < MUTATIONS; i++) {
        struct config config;
        memcpy(text, base, bytes);
        const size_t length = mutate(text, bytes, i);
        char *exact = malloc(length); /* reading past its end is found */
        assert_non_null(exact);
        memcpy(exact, text, length);
        const enum status status = parse(&config, exact, length);
        if (status == STATUS_OK) {
            expect_reads_back(&config);
            accepted++;
        } else {
            assert_int_equal(status, STATUS_USAGE);
            expect_message("t.yaml");
        }
        config_free(&config);
        free(exact);
    }
    assert_true(accepted > MUTATIONS / 20 && accepted < MUTATIONS); /* both ways are tried */
    free(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH_TEST(test_print_reads_back),          SCRATCH_TEST(test_defaults_read_back),
        SCRATCH_TEST(test_any_text_reads_back),       SCRATCH_TEST(test_long_text),
        cmocka_unit_test(test_help_covers_every_key), cmocka_unit_test(test_mutations_never_crash),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
