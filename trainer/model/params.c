#include "trainer/model/params.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64 };  /* elements: every tensor starts on a 128-byte line in bf16 */
enum { MOST_DENSE = 20 }; /* dense tensors of one block, at most */

/* What a family calls its router and the matrices of an expert. */
static const struct names {
    const char *gate, *expert_gate, *expert_up, *expert_down; /* printf: block, expert */
} family_names[CONFIG_FAMILIES] = {
    [CONFIG_MIXTRAL] = {"model.layers.%lld.block_sparse_moe.gate.weight",
                        "model.layers.%lld.block_sparse_moe.experts.%lld.w1.weight",
                        "model.layers.%lld.block_sparse_moe.experts.%lld.w3.weight",
                        "model.layers.%lld.block_sparse_moe.experts.%lld.w2.weight"},
#define DEEPSEEK                                                                                   \
    {                                                                                              \
        "model.layers.%lld.mlp.gate.weight",                                                       \
            "model.layers.%lld.mlp.experts.%lld.gate_proj.weight",                                 \
            "model.layers.%lld.mlp.experts.%lld.up_proj.weight",                                   \
            "model.layers.%lld.mlp.experts.%lld.down_proj.weight"                                  \
    }
    [CONFIG_DEEPSEEK_V2] = DEEPSEEK,
    [CONFIG_DEEPSEEK_V3] = DEEPSEEK,
#undef DEEPSEEK
};

static int64_t aligned(int64_t offset)
{
    return (offset + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* Which side of a matrix tp, or of an expert's etp, divides. */
enum divide { WHOLE, ROWS, COLUMNS };

/* Rows or columns of which parts are as even as can be: how many the `place`th of `ways` has, and
 * those before it. */
static int64_t part_of(int64_t size, int64_t ways, int64_t place)
{
    return size / ways + (place < size % ways ? 1 : 0);
}

static int64_t first_of(int64_t size, int64_t ways, int64_t place)
{
    const int64_t more = size % ways;
    return size / ways * place + (place < more ? place : more);
}

struct builder {
    struct params *params;
    const struct architecture *arch;
    const struct params_place *place;
    bool decay_all;
    int64_t next[PARAM_GROUPS];
    int64_t local_experts;
};

/* Appends a parameter of shape [rows, cols] (cols 0: a vector); `follow`: directly behind the one
 * before it, so that the two can be read as one matrix. Returns its offset. */
static int64_t append(struct builder *b, enum param_group group, enum divide divide, bool follow,
                      int64_t rows, int64_t cols, const char *format, va_list args)
{
    struct param *param = &b->params->table[b->params->count++];
    const int length = vsnprintf(param->name, sizeof param->name, format, args);
    assert(length > 0 && (size_t)length < sizeof param->name);
    param->group = group;
    param->ndim = cols > 0 ? 2 : 1;
    param->shape[0] = rows;
    param->shape[1] = cols > 0 ? cols : 1;
    const bool expert = group == PARAM_EXPERT;
    const int size = expert ? b->place->etp_size : b->place->tp_size,
              rank = expert ? b->place->etp_rank : b->place->tp_rank;
    int64_t most = 1; /* on the rank that has most */
    for (int i = 0; i < 2; i++) {
        const bool divided = divide == (i == 0 ? ROWS : COLUMNS);
        const int64_t ways = divided ? size : 1, place = divided ? rank : 0;
        param->part[i] = part_of(param->shape[i], ways, place);
        param->first[i] = first_of(param->shape[i], ways, place);
        most *= part_of(param->shape[i], ways, 0);
        assert(param->shape[i] % ways == 0 || rows == b->arch->vocab);
    }
    param->count = param->part[0] * param->part[1];
    param->offset = follow ? b->next[group] : aligned(b->next[group]);
    param->ones = cols == 0;
    param->decay = cols > 0 || b->decay_all;
    b->next[group] = param->offset + most;
    return param->offset;
}

#define FORMAT __attribute__((format(printf, 5, 6)))

static int64_t add_to(struct builder *b, enum param_group group, enum divide divide, int64_t rows,
                      int64_t cols, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int64_t offset = append(b, group, divide, false, rows, cols, format, args);
    va_end(args);
    return offset;
}

static FORMAT int64_t add(struct builder *b, enum divide divide, int64_t rows, int64_t cols,
                          const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int64_t offset = append(b, divide == WHOLE ? PARAM_DENSE : b->params->divided, divide,
                                  false, rows, cols, format, args);
    va_end(args);
    return offset;
}

/* Directly behind another matrix that tp divides. */
static FORMAT int64_t follow(struct builder *b, enum divide divide, int64_t rows, int64_t cols,
                             const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int64_t offset = append(b, b->params->divided, divide, true, rows, cols, format, args);
    va_end(args);
    return offset;
}

static int64_t add_expert(struct builder *b, enum divide divide, bool behind, int64_t rows,
                          int64_t cols, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    const int64_t offset = append(b, PARAM_EXPERT, divide, behind, rows, cols, format, args);
    va_end(args);
    return offset;
}

static void add_grouped_queries(struct builder *b, struct block_offsets *at, long long n)
{
    const struct architecture *arch = b->arch;
    const int64_t kv = arch->kv_heads * arch->qk_dim;
    at->qkv = add(b, ROWS, architecture_query_width(arch), arch->width,
                  "model.layers.%lld.self_attn.q_proj.weight", n);
    follow(b, ROWS, kv, arch->width, "model.layers.%lld.self_attn.k_proj.weight", n);
    follow(b, ROWS, kv, arch->width, "model.layers.%lld.self_attn.v_proj.weight", n);
}

static void add_latent(struct builder *b, struct block_offsets *at, long long n)
{
    const struct architecture *arch = b->arch;
    const int64_t query = architecture_query_width(arch);
    if (arch->q_rank > 0) {
        at->q_a = add(b, WHOLE, arch->q_rank, arch->width,
                      "model.layers.%lld.self_attn.q_a_proj.weight", n);
        at->q_a_norm =
            add(b, WHOLE, arch->q_rank, 0, "model.layers.%lld.self_attn.q_a_layernorm.weight", n);
        at->q_b =
            add(b, ROWS, query, arch->q_rank, "model.layers.%lld.self_attn.q_b_proj.weight", n);
    } else {
        at->q_b = add(b, ROWS, query, arch->width, "model.layers.%lld.self_attn.q_proj.weight", n);
    }
    at->kv_a = add(b, WHOLE, arch->kv_rank + arch->rope_dim, arch->width,
                   "model.layers.%lld.self_attn.kv_a_proj_with_mqa.weight", n);
    at->kv_a_norm =
        add(b, WHOLE, arch->kv_rank, 0, "model.layers.%lld.self_attn.kv_a_layernorm.weight", n);
    at->kv_b = add(b, ROWS, architecture_latent_width(arch), arch->kv_rank,
                   "model.layers.%lld.self_attn.kv_b_proj.weight", n);
}

/* A SwiGLU MLP of inner width `inner` under `model.layers.N.mlp.[shared_experts.]`. */
static void add_mlp(struct builder *b, struct block_offsets *at, long long n, int64_t inner,
                    const char *module)
{
    const int64_t width = b->arch->width;
    at->gate_up = add(b, ROWS, inner, width, "model.layers.%lld.%sgate_proj.weight", n, module);
    follow(b, ROWS, inner, width, "model.layers.%lld.%sup_proj.weight", n, module);
    at->down = add(b, COLUMNS, width, inner, "model.layers.%lld.%sdown_proj.weight", n, module);
}

/* The formats come from family_names, one table above. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
static void add_experts(struct builder *b, struct block_offsets *at, long long n)
{
    const struct names *names = &family_names[b->arch->family];
    const int64_t width = b->arch->width, inner = b->arch->expert_width;
    at->gate = add(b, WHOLE, b->arch->experts, width, names->gate, n);
    for (int64_t e = 0; e < b->local_experts; e++) {
        const long long name = (long long)(b->place->ep_rank * b->local_experts + e);
        const int64_t first = add_expert(b, ROWS, false, inner, width, names->expert_gate, n, name);
        add_expert(b, ROWS, true, inner, width, names->expert_up, n, name);
        const int64_t down =
            add_expert(b, COLUMNS, false, width, inner, names->expert_down, n, name);
        at->experts = e == 0 ? first : at->experts;
        b->params->down_offset = down - first;
    }
}
#pragma GCC diagnostic pop

static void add_mtp(struct builder *b, struct block_offsets *at, long long n)
{
    const int64_t width = b->arch->width;
    at->enorm = add(b, WHOLE, width, 0, "model.layers.%lld.enorm.weight", n);
    at->hnorm = add(b, WHOLE, width, 0, "model.layers.%lld.hnorm.weight", n);
    at->eh_proj = add(b, WHOLE, width, 2 * width, "model.layers.%lld.eh_proj.weight", n);
    at->head_norm = add(b, WHOLE, width, 0, "model.layers.%lld.shared_head.norm.weight", n);
}

static void add_block(struct builder *b, int64_t block)
{
    const struct architecture *arch = b->arch;
    const long long n = (long long)block;
    struct block_offsets *at = &b->params->block[block];
    at->input_norm = add(b, WHOLE, arch->width, 0, "model.layers.%lld.input_layernorm.weight", n);
    (arch->kv_rank > 0 ? add_latent : add_grouped_queries)(b, at, n);
    at->o_proj = add(b, COLUMNS, arch->width, arch->heads * arch->v_dim,
                     "model.layers.%lld.self_attn.o_proj.weight", n);
    at->post_norm =
        add(b, WHOLE, arch->width, 0, "model.layers.%lld.post_attention_layernorm.weight", n);
    if (block < arch->dense_layers) {
        add_mlp(b, at, n, arch->dense_width, "mlp.");
    } else {
        add_experts(b, at, n);
    }
    if (block >= arch->dense_layers && arch->shared_width > 0) {
        add_mlp(b, at, n, arch->shared_width, "mlp.shared_experts.");
    }
    if (block >= arch->layers) {
        add_mtp(b, at, n);
    }
}

/* What is added from now on is of this part, in every group that has parts. */
static void begin_part(struct builder *b, int64_t part)
{
    for (int g = 0; g < PARAM_GROUPS; g++) {
        const int64_t unit = b->place->unit[g] > 0 ? b->place->unit[g] : 1;
        b->next[g] = (b->next[g] + unit - 1) / unit * unit;
        b->params->begin[g][part] = b->next[g];
    }
}

/* Parameters of the table from `first` on, without experts. */
static int64_t count_dense(const struct params *params, int64_t first)
{
    int64_t count = 0;
    for (int64_t i = first; i < params->count; i++) {
        const struct param *param = &params->table[i];
        count += param->group != PARAM_EXPERT ? param->shape[0] * param->shape[1] : 0;
    }
    return count;
}

static bool has_block(const struct builder *b, int64_t block)
{
    return b->place->slice == NULL || slice_has(b->place->slice, block);
}

static void add_blocks(struct builder *b, int64_t first, int64_t end)
{
    for (int64_t block = first; block < end; block++) {
        begin_part(b, params_part_block(b->arch, block));
        if (has_block(b, block)) {
            add_block(b, block);
        }
    }
}

/* What is not a block's is of the first stage, and of the last. Returns where in the table
 * multi-token prediction begins. */
static int64_t add_all(struct builder *b)
{
    const struct architecture *arch = b->arch;
    const struct slice *slice = b->place->slice;
    struct params *params = b->params;
    const bool embeds = slice == NULL || slice->embeds, heads = slice == NULL || slice->heads;
    params->embed = params->final_norm = params->head = -1;
    begin_part(b, PARAM_PART_EMBED);
    if (embeds || (heads && arch->mtp_depth > 0)) {
        params->embed = add_to(b, params->embedding, ROWS, arch->vocab, arch->width,
                               "model.embed_tokens.weight");
    }
    add_blocks(b, 0, arch->layers);
    begin_part(b, params_part_norm(arch));
    if (heads) {
        params->final_norm = add(b, WHOLE, arch->width, 0, "model.norm.weight");
    }
    begin_part(b, params_part_head(arch));
    if (heads) {
        params->head = add(b, ROWS, arch->vocab, arch->width, "lm_head.weight");
    }
    const int64_t first_mtp = params->count;
    add_blocks(b, arch->layers, architecture_blocks(arch));
    return first_mtp;
}

static void count_all(struct params *params, const struct architecture *arch, int64_t first_mtp)
{
    const int64_t expert = 3 * arch->expert_width * arch->width,
                  moe_layers = arch->layers - arch->dense_layers;
    params->mtp = count_dense(params, first_mtp);
    params->total = count_dense(params, 0) - params->mtp;
    params->active = params->total + moe_layers * arch->top_k * expert;
    params->total += moe_layers * arch->experts * (expert + (arch->has_bias ? 1 : 0));
    params->mtp += arch->mtp_depth * arch->experts * expert;
}

/* The same of a rank that has not all blocks, by the shortest table that has dense ones. */
static enum status count_elsewhere(struct params *params, const struct architecture *arch)
{
    struct params all;
    const struct params_place whole = {.ep_size = (int)arch->experts, .etp_size = 1, .tp_size = 1};
    const enum status status = params_init(&all, arch, false, &whole);
    params->total = all.total;
    params->active = all.active;
    params->mtp = all.mtp;
    params_free(&all);
    return status;
}

enum status params_init(struct params *params, const struct architecture *arch, bool decay_all,
                        const struct params_place *place)
{
    const int64_t blocks = architecture_blocks(arch), local = arch->experts / place->ep_size;
    const bool divided = place->tp_size > 1, shared = place->slice != NULL && place->slice->shared;
    *params = (struct params){.groups = shared    ? PARAM_GROUPS
                                        : divided ? PARAM_EMBED
                                                  : PARAM_TENSOR,
                              .divided = divided ? PARAM_TENSOR : PARAM_DENSE,
                              .embedding = shared    ? PARAM_EMBED
                                           : divided ? PARAM_TENSOR
                                                     : PARAM_DENSE,
                              .vocab = part_of(arch->vocab, place->tp_size, place->tp_rank),
                              .vocab_first = first_of(arch->vocab, place->tp_size, place->tp_rank)};
    params->table = calloc((size_t)(3 + blocks * (MOST_DENSE + 3 * local)), sizeof *params->table);
    params->block = malloc((size_t)blocks * sizeof *params->block);
    params->parts = blocks + 3;
    params->begin[0] = calloc((size_t)(PARAM_GROUPS * params->parts), sizeof *params->begin[0]);
    if (params->table == NULL || params->block == NULL || params->begin[0] == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for the parameter table");
    }
    for (int g = 1; g < PARAM_GROUPS; g++) {
        params->begin[g] = params->begin[0] + g * params->parts;
    }
    memset(params->block, 0xff, (size_t)blocks * sizeof *params->block); /* -1 */
    struct builder b = {.params = params,
                        .arch = arch,
                        .place = place,
                        .decay_all = decay_all,
                        .local_experts = local};
    const int64_t first_mtp = add_all(&b);
    const int64_t inner = arch->expert_width / place->etp_size;
    params->expert_stride = aligned(aligned(2 * inner * arch->width) + inner * arch->width);
    memcpy(params->elements, b.next, sizeof params->elements);
    if (place->slice != NULL && !slice_whole(place->slice)) {
        return count_elsewhere(params, arch);
    }
    count_all(params, arch, first_mtp);
    return STATUS_OK;
}

void params_free(struct params *params)
{
    free(params->table);
    free(params->block);
    free(params->begin[0]);
    *params = (struct params){0};
}

struct param_run param_run(const struct param *param, int64_t from, int64_t to)
{
    const bool whole_rows = param->part[1] == param->shape[1];
    const int64_t row = param->first[0] + from / param->part[1], col = from % param->part[1],
                  left = whole_rows ? param->count - from : param->part[1] - col;
    return (struct param_run){.whole = row * param->shape[1] + param->first[1] + col,
                              .count = left < to - from ? left : to - from};
}

int64_t param_runs(const struct param *param)
{
    return param->part[1] == param->shape[1] ? 1 : param->part[0];
}

void params_bias_name(char *out, size_t bytes, int64_t block)
{
    snprintf(out, bytes, "model.layers.%lld.mlp.gate.e_score_correction_bias", (long long)block);
}
