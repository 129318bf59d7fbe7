#include "trainer/plan/work.h"

#include <math.h>

#include "trainer/model/model.h"

/* A product with an [out, in] matrix, `matrices` of them sharing `rows` rows. */
struct product {
    double in, out, rows, matrices;
    bool fp8, experts;
};

void workload_init(struct workload *load, const struct config *config,
                   const struct hardware *hardware, bool by_node)
{
    *load = (struct workload){.config = config,
                              .hardware = hardware,
                              .tokens = config->train.micro_batch * config->train.sequence_length /
                                        config->parallel.cp,
                              .apart = (double)config->parallel.cp,
                              .fp8 = config->train.precision == CONFIG_FP8,
                              .layout = config->run.deterministic == CONFIG_DETERMINISTIC_LAYOUT,
                              .split = (double)config->parallel.tp,
                              .own = 1};
    architecture_init(&load->arch, config);
    const struct architecture *arch = &load->arch;
    const double width = (double)arch->width, act = config->train.precision == CONFIG_FP32 ? 4 : 2;
    load->exchange = (struct exchange_shape){
        .tokens = load->tokens / config->parallel.tp,
        .experts = arch->experts,
        .top_k = arch->top_k,
        .groups = arch->groups,
        .top_groups = arch->top_groups,
        .ep = config->parallel.ep,
        .etp = config->parallel.etp,
        .ranks_per_node = hardware->ranks_per_node,
        .relay_ranks = hardware_ranks_of_node(config),
        .by_node = by_node,
        .padded = config->router.dispatch == CONFIG_PADDED,
        .codes = load->fp8,
        .row_out = load->fp8 ? width + (double)((arch->width + 127) / 128 * 4) : width * act,
        .row_back = width * act};
    const struct nodes nodes = nodes_expect((int)(load->exchange.ep * load->exchange.etp),
                                            (int)load->exchange.relay_ranks);
    load->exchange.apart = nodes_apart(&nodes) && model_node_dispatch(config) != NODES_FLAT;
}

static double act_bytes(const struct workload *load)
{
    return load->config->train.precision == CONFIG_FP32 ? 4 : 2;
}

/* A kernel bound by memory. */
static void stream(const struct workload *load, struct work *work, enum phase phase,
                   enum kernel kernel, double bytes)
{
    const struct hardware *hw = load->hardware;
    work->s[phase][kernel] += bytes / (hw->share[kernel] * hw->memory_rate) + hw->start;
}

/* Operations on the arithmetic units. */
static void compute(const struct workload *load, struct work *work, enum phase phase,
                    enum kernel kernel, double flops)
{
    const struct hardware *hw = load->hardware;
    work->s[phase][kernel] += flops / (hw->share[kernel] * hw->peak * load->own) + hw->start;
}

static double product_seconds(const struct workload *load, const struct product *p,
                              enum kernel kernel)
{
    const struct hardware *hw = load->hardware;
    const bool weight = kernel == KERNEL_DENSE_WEIGHT || kernel == KERNEL_EXPERTS_WEIGHT;
    const double peak = p->fp8 ? hw->peak_fp8 : hw->peak,
                 share = p->fp8 ? hw->share_fp8[kernel] : hw->share[kernel], act = act_bytes(load),
                 code = p->fp8 ? 1 : act, matrix = p->in * p->out * p->matrices;
    /* what is summed as integers: read and cleared in f32, added to, once for every unit */
    const double taken = load->layout ? 24 * (p->experts ? (double)load->exchange.ep : 1) : 0;
    const double bytes = weight ? code * p->rows * (p->in + p->out) + (8 + taken) * matrix
                                : code * (p->rows * p->in + matrix) + act * p->rows * p->out;
    return 2 * p->rows * p->in * p->out / (share * peak * load->own) +
           bytes / (hw->gemm_memory * hw->memory_rate) + hw->start;
}

/* What FP8 adds to a product: codes of the input (`coded`: it comes in codes) and, transposed, for
 * the gradient of the weights; codes of the gradient, both ways; the weights transposed. */
static void quantize(const struct workload *load, struct work *work, const struct product *p,
                     bool coded)
{
    if (!p->fp8) {
        return;
    }
    if (!coded) {
        stream(load, work, PHASE_FORWARD, KERNEL_QUANTIZE, 3 * p->rows * p->in);
    }
    stream(load, work, PHASE_BACKWARD, KERNEL_QUANTIZE,
           4 * p->rows * p->out + 2 * p->in * p->out * p->matrices);
    stream(load, work, PHASE_WEIGHT, KERNEL_QUANTIZE, 2 * p->rows * p->in);
}

static void product(const struct workload *load, struct work *work, const struct product *p,
                    bool coded)
{
    const enum kernel kernel = p->experts ? KERNEL_EXPERTS : KERNEL_DENSE,
                      weight = p->experts ? KERNEL_EXPERTS_WEIGHT : KERNEL_DENSE_WEIGHT;
    const struct product back = {p->out, p->in, p->rows, p->matrices, p->fp8, p->experts};
    work->s[PHASE_FORWARD][kernel] += product_seconds(load, p, kernel);
    work->s[PHASE_BACKWARD][kernel] += product_seconds(load, &back, kernel);
    work->s[PHASE_WEIGHT][weight] += product_seconds(load, p, weight);
    quantize(load, work, p, coded);
}

/* The same product once more in backward. */
static void again(const struct workload *load, struct work *work, const struct product *p)
{
    const enum kernel kernel = p->experts ? KERNEL_EXPERTS : KERNEL_DENSE;
    work->s[PHASE_BACKWARD][kernel] += product_seconds(load, p, kernel);
}

/* Keys that a token sees on average. */
static double visible(const struct workload *load)
{
    const double t = (double)load->config->train.sequence_length,
                 w = load->arch.window > 0 && (double)load->arch.window < t
                         ? (double)load->arch.window
                         : t;
    return w - w * w / (2 * t);
}

static void attention_core(const struct workload *load, struct work *work, double pairs)
{
    const struct architecture *arch = &load->arch;
    const double n = (double)load->tokens, qk = (double)arch->qk_dim, v = (double)arch->v_dim,
                 heads = (double)arch->heads / load->split;
    const double rotated =
        arch->kv_rank > 0
            ? (double)(architecture_query_width(arch) + architecture_latent_width(arch))
            : (double)((arch->heads + 2 * arch->kv_heads) * arch->qk_dim);
    const double rope = 2 * act_bytes(load) * n * rotated / load->split;
    compute(load, work, PHASE_FORWARD, KERNEL_ATTENTION, 2 * n * heads * (qk + v) * pairs);
    compute(load, work, PHASE_BACKWARD, KERNEL_ATTENTION_BACK,
            2 * n * heads * (3 * qk + 2 * v) * pairs);
    stream(load, work, PHASE_FORWARD, KERNEL_ROTARY, rope);
    stream(load, work, PHASE_BACKWARD, KERNEL_ROTARY, rope);
}

static void attention(const struct workload *load, struct work *work, bool recompute)
{
    const struct architecture *arch = &load->arch;
    const double n = (double)load->tokens, width = (double)arch->width, own = n / load->split,
                 rank = (double)arch->kv_rank, q_rank = (double)arch->q_rank,
                 query = (double)architecture_query_width(arch) / load->split,
                 out = (double)(arch->heads * arch->v_dim) / load->split;
    const struct product o = {out, width, n, 1, load->fp8, false};
    product(load, work, &o, false);
    if (arch->kv_rank == 0) {
        const struct product qkv = {
            width,     query + (double)(2 * arch->kv_heads * arch->qk_dim) / load->split,
            n,         1,
            load->fp8, false};
        product(load, work, &qkv, false);
    } else {
        const struct product
            q_a = {width, q_rank, own, 1, load->fp8, false},
            q_b = {arch->q_rank > 0 ? q_rank : width, query, n, 1, load->fp8, false},
            kv_a = {width, rank + (double)arch->rope_dim, own, 1, load->fp8, false},
            kv_b = {rank,
                    (double)architecture_latent_width(arch) / load->split,
                    n * load->apart, /* of the rank that sees most */
                    1,
                    load->fp8,
                    false};
        const double norms = act_bytes(load) * own * (q_rank + rank);
        if (arch->q_rank > 0) {
            product(load, work, &q_a, false);
        }
        product(load, work, &q_b, false);
        product(load, work, &kv_a, false);
        product(load, work, &kv_b, false);
        stream(load, work, PHASE_FORWARD, KERNEL_NORM, 2 * norms);
        stream(load, work, PHASE_BACKWARD, KERNEL_NORM, 3 * norms);
        if (recompute || load->apart > 1) {
            again(load, work, &kv_b);
        }
        if (recompute && arch->q_rank > 0) {
            again(load, work, &q_b);
        }
    }
    attention_core(load, work, visible(load));
}

/* SwiGLU of inner width `inner` on `rows` rows, by `matrices` experts. */
static void mlp(const struct workload *load, struct work *work, double inner, double rows,
                double matrices, bool routed, bool recompute)
{
    const double width = (double)load->arch.width, act = act_bytes(load),
                 code = load->fp8 ? 1 : act;
    const struct product up = {width, 2 * inner, rows, matrices, load->fp8, routed},
                         down = {inner, width, rows, matrices, load->fp8, routed};
    product(load, work, &up, routed); /* what arrives is in codes */
    product(load, work, &down, true); /* SwiGLU writes codes */
    stream(load, work, PHASE_FORWARD, KERNEL_SWIGLU, (2 * act + code) * rows * inner);
    stream(load, work, PHASE_BACKWARD, KERNEL_SWIGLU, 5 * act * rows * inner);
    if (recompute) {
        again(load, work, &up);
        stream(load, work, PHASE_BACKWARD, KERNEL_SWIGLU, (2 * act + code) * rows * inner);
    }
}

static void norms(const struct workload *load, struct work *work, double count, bool recompute)
{
    const double bytes =
        count * act_bytes(load) * (double)(load->tokens * load->arch.width) / load->split;
    stream(load, work, PHASE_FORWARD, KERNEL_NORM, 4 * bytes);
    stream(load, work, PHASE_BACKWARD, KERNEL_NORM, (recompute ? 7 : 5) * bytes);
}

/* Launches of short kernels around the router, and the streams they read. */
static const double SMALL_FORWARD = 40, SMALL_BACKWARD = 60, SMALL_DENSE = 15;

static void experts(const struct workload *load, struct work *work, bool recompute)
{
    const struct architecture *arch = &load->arch;
    const double whole = (double)load->tokens, n = whole / load->split, width = (double)arch->width,
                 act = act_bytes(load), parts = (double)load->config->parallel.etp,
                 rows = n * (double)arch->top_k * parts, inner = (double)arch->expert_width / parts,
                 stream_bytes = n * width * act, expand = 2 * rows * width * (load->fp8 ? 1 : act),
                 combine = rows * width * act + 2 * stream_bytes,
                 logits = 2 * n * width * (double)arch->experts,
                 local = (double)(arch->experts / load->config->parallel.ep);
    struct work shared = {0}, own = {0};
    mlp(load, &own, inner, rows, local, true, recompute);
    if (load->fp8) { /* codes are made of the tokens, before they are sent */
        stream(load, &own, PHASE_FORWARD, KERNEL_QUANTIZE, 3 * n * width);
    }
    if (arch->shared_width > 0) {
        mlp(load, &shared, (double)arch->shared_width / load->split, whole, 1, false, recompute);
    }
    for (int p = 0; p < PHASES; p++) {
        work->shared[p] = work_sum(&shared, (enum phase)p);
        for (int k = 0; k < KERNELS; k++) {
            work->s[p][k] += own.s[p][k] + shared.s[p][k];
        }
    }
    const struct product up = {width, 2 * inner, rows, local, load->fp8, true};
    work->up_weight = product_seconds(load, &up, KERNEL_EXPERTS_WEIGHT);
    for (int p = 0; p < PHASES; p++) {
        compute(load, work, (enum phase)p, KERNEL_ROUTER, logits);
    }
    for (int p = PHASE_FORWARD; p <= PHASE_BACKWARD; p++) {
        const double starts = p == PHASE_FORWARD ? SMALL_FORWARD : SMALL_BACKWARD;
        stream(load, work, (enum phase)p, KERNEL_PERMUTE, expand);
        stream(load, work, (enum phase)p, KERNEL_PERMUTE, combine);
        stream(load, work, (enum phase)p, KERNEL_SMALL,
               2 * stream_bytes + 20 * n * (double)arch->experts);
        work->s[p][KERNEL_SMALL] += starts * load->hardware->start;
    }
}

/* Block recompute: all of forward once more. */
static void forward_again(struct work *work)
{
    for (int k = 0; k < KERNELS; k++) {
        work->s[PHASE_BACKWARD][k] += work->s[PHASE_FORWARD][k];
    }
}

struct work work_block(const struct workload *load, enum work_block kind)
{
    const struct architecture *arch = &load->arch;
    const int how = load->config->train.recompute;
    const bool inner = how == CONFIG_RECOMPUTE_EXPERTS, norm = how == CONFIG_RECOMPUTE_NORMS;
    struct work work = {0};
    norms(load, &work, 2, norm);
    attention(load, &work, norm);
    if (kind == WORK_DENSE) {
        mlp(load, &work, (double)arch->dense_width / load->split, (double)load->tokens, 1, false,
            inner);
        for (int p = PHASE_FORWARD; p <= PHASE_BACKWARD; p++) {
            work.s[p][KERNEL_SMALL] += SMALL_DENSE * load->hardware->start;
        }
    } else {
        experts(load, &work, inner);
    }
    if (how == CONFIG_RECOMPUTE_BLOCK) {
        forward_again(&work);
    }
    if (kind == WORK_MTP) {
        const double width = (double)arch->width;
        const struct product both = {2 * width, width, (double)load->tokens / load->split,
                                     1,         false, false};
        product(load, &work, &both, false);
        norms(load, &work, 2, false);
    }
    return work;
}

struct work work_head(const struct workload *load)
{
    const struct architecture *arch = &load->arch;
    const double n = (double)load->tokens, vocab = (double)arch->vocab / load->split;
    const struct product head = {(double)arch->width, vocab, n, 1, false, false};
    struct work work = {0};
    norms(load, &work, 1, false);
    product(load, &work, &head, false);
    stream(load, &work, PHASE_FORWARD, KERNEL_LOSS, 3 * act_bytes(load) * n * vocab);
    return work;
}

struct work work_embedding(const struct workload *load)
{
    const double bytes = (double)(load->tokens * load->arch.width); /* zeros for others' tokens */
    struct work work = {0};
    stream(load, &work, PHASE_FORWARD, KERNEL_LOSS, 2 * act_bytes(load) * bytes);
    stream(load, &work, PHASE_WEIGHT, KERNEL_LOSS, (8 + act_bytes(load)) * bytes);
    return work;
}

double work_vocabulary_messages(const struct workload *load)
{
    const double stream = load->exchange.row_back * (double)load->tokens;
    return exchange_reduce_seconds(load->hardware, stream, load->config->parallel.tp, 1);
}

double work_split_messages(const struct workload *load, enum work_block kind, bool backward)
{
    const double n = (double)load->tokens, width = (double)load->arch.width,
                 act = load->exchange.row_back * n, input = load->exchange.row_out * n,
                 sums = n * width * sizeof(float);
    const int64_t ranks = load->config->parallel.tp;
    /* around attention, and around an MLP of all tokens: inputs gathered, in codes where there are
     * any, and sums scattered; backward inputs again, and gradients of outputs */
    const double pairs = kind == WORK_DENSE || load->arch.shared_width > 0 ? 2 : 1,
                 gathered = input + (backward ? act : 0);
    return pairs * (exchange_reduce_seconds(load->hardware, gathered, ranks, 1) +
                    exchange_reduce_seconds(load->hardware, sums, ranks, 1));
}

/* `calls` messages that gather `bytes` of all ranks each. */
static double gathers(const struct workload *load, double calls, double bytes, int64_t ranks,
                      int64_t stride)
{
    return calls * exchange_reduce_seconds(load->hardware, bytes, ranks, stride);
}

/* Choices and their weights, 4 bytes each, to all ranks that have a part of the sequences
 * (capacity.h): over tp the micro-batch at once, over cp a sequence at a time. */
static double capacity_messages(const struct workload *load)
{
    const struct config *config = load->config;
    const int64_t tp = config->parallel.tp, cp = config->parallel.cp;
    const double slots = (double)load->tokens * (double)load->arch.top_k, /* of a rank of cp */
        sequences = (double)config->train.micro_batch;
    return gathers(load, 2, 4 * slots, tp, 1) +
           gathers(load, 2 * sequences, 4 * slots * load->apart / sequences, cp, tp);
}

/* Counts and scores of the balance losses, added up over all such ranks, and, for the z-loss, a
 * number of each token (balance.c). */
static double balance_messages(const struct workload *load)
{
    const struct config *config = load->config;
    const struct balance_coefs *coefs = &load->arch.balance;
    const double sequences = (double)config->train.micro_batch,
                 cells = 8 * sequences * (double)load->arch.experts,
                 counts = coefs->sequence > 0 && coefs->score_counts ? 3 : 2,
                 groups =
                     coefs->communication > 0 ? 8 * sequences * (double)load->arch.loss_groups : 0,
                 tokens = 4 * (double)load->tokens;
    const struct {
        int64_t ranks, stride;
        double calls, bytes; /* of the z-loss's gathers */
    } axes[] = {
        {config->parallel.tp, 1, 1, tokens},
        {config->parallel.cp, config->parallel.tp, sequences, tokens * load->apart / sequences}};
    double seconds = 0;
    for (size_t i = 0; i < sizeof axes / sizeof axes[0]; i++) { /* a sum is two gathers' worth */
        seconds += gathers(load, 2 * counts, cells, axes[i].ranks, axes[i].stride);
        seconds += groups > 0 ? gathers(load, 2, groups, axes[i].ranks, axes[i].stride) : 0;
        seconds += coefs->z > 0
                       ? gathers(load, axes[i].calls, axes[i].bytes, axes[i].ranks, axes[i].stride)
                       : 0;
    }
    return seconds;
}

double work_router_messages(const struct workload *load, bool backward)
{
    const struct config *config = load->config;
    const bool drops = config->router.capacity_factor > 0,
               again = config->train.recompute == CONFIG_RECOMPUTE_BLOCK;
    return (drops && (!backward || again) ? capacity_messages(load) : 0) +
           (backward ? 0 : balance_messages(load));
}

static void add_turn(struct work_ring *ring, double messages, double computed)
{
    ring->messages += messages;
    ring->exposed += messages > computed ? messages - computed : 0;
}

/* Turns as trainer/model/context.h has them, each `turn` s of attention; the own block's is cut in
 * a quarter, of the later piece, and the rest. */
static struct work_ring ring_backward(double keys, double gradients, double turn, int64_t ranks)
{
    struct work_ring ring = {0};
    for (int64_t t = 0; t <= ranks; t++) {
        add_turn(&ring, (t + 1 < ranks ? keys : 0) + (t >= 2 ? gradients : 0),
                 t == 0       ? turn / 4
                 : t == ranks ? turn * 3 / 4
                              : turn);
    }
    return ring;
}

/* Bytes of a token in a block of the ring (trainer/model/context.h). */
static double ring_bytes(const struct workload *load)
{
    const struct architecture *arch = &load->arch;
    const double act = act_bytes(load), rank = (double)arch->kv_rank;
    return arch->kv_rank == 0
               ? act * (double)(2 * arch->kv_heads * arch->qk_dim) / load->split
               : act * (double)arch->rope_dim +
                     (load->fp8 ? rank + (double)fp8_tiles(arch->kv_rank) * sizeof(float)
                                : act * rank);
}

struct work_ring work_context(const struct workload *load, const struct work *work, bool backward)
{
    const struct architecture *arch = &load->arch;
    const int64_t ranks = load->config->parallel.cp, tp = load->config->parallel.tp;
    const bool again = load->config->train.recompute == CONFIG_RECOMPUTE_BLOCK;
    const double sequences = (double)load->config->train.micro_batch, turns = (double)ranks,
                 width = arch->kv_rank > 0
                             ? (double)(arch->kv_rank + arch->rope_dim)
                             : (double)(2 * arch->kv_heads * arch->qk_dim) / load->split,
                 tokens = (double)load->tokens / sequences;
    const double keys = exchange_pass_seconds(load->hardware, tokens * ring_bytes(load), ranks, tp);
    struct work_ring ring = {0};
    if (ranks == 1) {
        return ring;
    }
    if (backward) {
        const double gradients =
            exchange_pass_seconds(load->hardware, tokens * width * sizeof(float), ranks, tp);
        ring = ring_backward(keys, gradients,
                             work->s[PHASE_BACKWARD][KERNEL_ATTENTION_BACK] / sequences / turns,
                             ranks);
    }
    for (int64_t t = 0; t + 1 < ranks && (!backward || again); t++) {
        add_turn(&ring, keys, work->s[PHASE_FORWARD][KERNEL_ATTENTION] / sequences / turns);
    }
    return (struct work_ring){sequences * ring.messages, sequences * ring.exposed};
}

double work_sum(const struct work *work, enum phase phase)
{
    double sum = 0;
    for (int k = 0; k < KERNELS; k++) {
        sum += work->s[phase][k];
    }
    return sum;
}

double work_offloaded(const struct workload *load, double state, double dense, double share)
{
    const struct config *config = load->config;
    const double moment = config->optimizer.moments == CONFIG_MOMENTS_BF16 ? 2 : 4;
    const bool muon = config->optimizer.name == CONFIG_MUON;
    /* beside what AdamW has of Muon's groups (trainer/optimizer.c), Muon's two passes, and its
     * average's, which read the masters again */
    const double again = muon ? dense * (4 + moment) : 0,
                 average = muon && config->optimizer.ema > 0 ? share * 4 : 0;
    return config->optimizer.offload && !load->hardware->cpu
               ? (state + again + average) / load->hardware->host
               : 0;
}

double work_codes(const struct workload *load, double weights)
{
    const struct hardware *hw = load->hardware;
    return load->fp8
               ? weights * (act_bytes(load) + 2) / (hw->share[KERNEL_OPTIMIZER] * hw->memory_rate)
               : 0;
}

double work_muon(const struct workload *load, const struct muon_load *muon)
{
    enum { STEPS = 5, KERNELS_OF_STEP = 5 }; /* three products, two sums of matrices */
    const struct hardware *hw = load->hardware;
    const double bytes = 4 * (7 * (double)muon->entries + 8 * (double)muon->squares),
                 steps =
                     STEPS * (2 * (double)muon->cost / (hw->share[KERNEL_DENSE] * hw->peak_f32) +
                              bytes / (hw->gemm_memory * hw->memory_rate) +
                              KERNELS_OF_STEP * (double)muon->matrices * hw->start);
    /* its momentum and update for what AdamW has of moments: one of the two, the update once more
     */
    const double moment = load->config->optimizer.moments == CONFIG_MOMENTS_BF16 ? 2 : 4,
                 own = (double)muon->received * (8 - 2 * moment);
    return steps + own / (hw->share[KERNEL_OPTIMIZER] * hw->memory_rate);
}

double work_muon_messages(const struct workload *load, const struct muon_load *muon,
                          const struct muon_ranks *ranks)
{
    const struct hardware *hw = load->hardware;
    const double matrices = (double)muon->matrices;
    if (muon->matrices == 0) {
        return 0;
    }
    return 2 * exchange_reduce_seconds(hw, 4 * (double)muon->received, ranks->replicas,
                                       ranks->stride) +
           2 * matrices *
               exchange_reduce_seconds(hw, 4 * (double)muon->entries / matrices, ranks->peers, 1);
}

double work_optimizer(const struct workload *load, double weights, double share, double offloaded)
{
    const struct hardware *hw = load->hardware;
    const double moment = load->config->optimizer.moments == CONFIG_MOMENTS_BF16 ? 2 : 4,
                 act = act_bytes(load), rate = hw->share[KERNEL_OPTIMIZER] * hw->memory_rate;
    /* gradient read twice (norm, update), or as an integer and written for the update; master and
     * moments both ways, the weight written */
    const double gradient = load->layout ? 8 + 2 * 4 : 2 * 4;
    const double bytes = share * (gradient + 2 * 4 + 4 * moment + (act < 4 ? act : 0));
    return fmax(bytes / rate, offloaded) + work_codes(load, weights) +
           weights * (load->layout ? 8 : 4) / rate; /* gradients are zeroed */
}
