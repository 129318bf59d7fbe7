#include "data/loader.h"

#include "kernels/base/rng.h"

struct batch batch_view(int32_t *storage, int64_t tokens)
{
    return (struct batch){.ids = storage,
                          .labels = storage + tokens,
                          .positions = storage + 2 * tokens,
                          .first = storage + 3 * tokens};
}

enum status loader_init(struct loader *loader, const struct token_store *store,
                        int64_t sequence_length, bool shuffle, bool mask_documents, uint64_t seed)
{
    *loader = (struct loader){.store = store,
                              .sequence_length = sequence_length,
                              .samples = store->tokens / sequence_length,
                              .shuffle = shuffle,
                              .mask_documents = mask_documents,
                              .seed = seed};
    if (loader->samples == 0) {
        return status_fail(
            STATUS_DATA,
            "%s: %lld tokens hold no sample of %lld: lower train.sequence_length or prepare more "
            "text",
            store->path, (long long)store->tokens, (long long)sequence_length);
    }
    return STATUS_OK;
}

void loader_set_fim(struct loader *loader, const struct fim *fim)
{
    loader->fim = *fim;
    loader->samples = fim_stream(&loader->fim, loader->store) / loader->sequence_length;
}

void loader_init_packed(struct loader *loader, struct row_packing *packing, bool shuffle,
                        uint64_t seed)
{
    *loader = (struct loader){.store = packing->store,
                              .sequence_length = packing->length,
                              .samples = packing->rows,
                              .shuffle = shuffle,
                              .mask_documents = true,
                              .seed = seed,
                              .packing = packing};
}

/* --- places --- */

static uint64_t epoch_key(const struct loader *loader, const char *name, int64_t epoch)
{
    const uint64_t key = rng_key(loader->seed, name);
    return rng_subkey(loader->number == 0 ? key : rng_subkey(key, UINT64_MAX - loader->number),
                      (uint64_t)epoch);
}

/* The beginning of an epoch as the settings are now. */
static struct loader_place begin(const struct loader *loader, int64_t epoch, int64_t tokens)
{
    const int64_t parts = loader->fim.parts;
    return (struct loader_place){
        .epoch = epoch,
        .tokens = tokens,
        .run = {.order = loader->shuffle ? epoch_key(loader, "data_order", epoch) : 0,
                .cut = loader->sequence_length,
                .fim_parts = parts,
                .fim_key = parts > 0 ? epoch_key(loader, "data_fim", epoch) : 0,
                .stream = loader->samples * loader->sequence_length,
                .packed = loader->packing != NULL}};
}

struct loader_place loader_start(const struct loader *loader)
{
    return begin(loader, 0, 0);
}

static struct fim fim_of(const struct loader *loader, const struct loader_epoch *run)
{
    struct fim fim = loader->fim;
    fim.parts = run->fim_parts;
    fim.key = run->fim_key;
    return fim;
}

/* Whole pieces of an epoch. */
static int64_t pieces(const struct loader *loader, const struct loader_epoch *run)
{
    const struct fim fim = fim_of(loader, run);
    return loader->packing != NULL ? loader->packing->rows
                                   : fim_stream(&fim, loader->store) / run->cut;
}

int64_t loader_left(const struct loader *loader, const struct loader_place *place)
{
    const struct loader_epoch *run = &place->run;
    const struct fim fim = fim_of(loader, run);
    const int64_t stream = loader->packing != NULL || run->order != 0
                               ? pieces(loader, run) * run->cut
                               : fim_stream(&fim, loader->store),
                  left = (stream - place->done) / loader->sequence_length;
    return left > 0 ? left : 0;
}

struct loader_place loader_advance(const struct loader *loader, const struct loader_place *place,
                                   int64_t count)
{
    const int64_t left = loader_left(loader, place), length = loader->sequence_length,
                  tokens = place->tokens + count * length;
    if (count < left) {
        struct loader_place on = *place;
        on.done += count * length;
        on.tokens = tokens;
        return on;
    }
    const int64_t behind = count - left;
    struct loader_place on = begin(loader, place->epoch + 1 + behind / loader->samples, tokens);
    on.done = behind % loader->samples * length;
    return on;
}

bool loader_adopt(const struct loader *loader, struct loader_place *place)
{
    const struct loader_epoch *run = &place->run;
    if (run->packed == (loader->packing != NULL) &&
        (!run->packed || run->cut == loader->sequence_length)) {
        return true;
    }
    const double part = run->stream > 0 ? (double)place->done / (double)run->stream : 0;
    const int64_t samples = (int64_t)(part * (double)loader->samples);
    *place = begin(loader, place->epoch, place->tokens);
    place->done = samples * loader->sequence_length;
    return samples == 0;
}

/* --- rows --- */

/* A row being filled. */
struct row {
    int32_t *ids, *labels, *positions, *first; /* [T] */
};

static struct row row_of(const struct loader *loader, struct batch *batch, int64_t row)
{
    const int64_t at = row * loader->sequence_length;
    return (struct row){batch->ids + at, batch->labels + at, batch->positions + at,
                        batch->first + at};
}

/* Tokens of the file that lie together, taken at once. */
struct window {
    const struct token_store *store; /* borrowed */
    int64_t from, count;
    int32_t ids[256];
    uint8_t counts[256];
};

struct piece_token {
    int32_t id;
    bool counts; /* as a label */
};

/* Token `from` of the file, those behind it in reach of the next calls. */
static struct piece_token window_token(struct window *window, int64_t from)
{
    const int64_t most = (int64_t)(sizeof window->ids / sizeof window->ids[0]);
    if (from < window->from || from >= window->from + window->count) {
        const int64_t left = window->store->tokens - from;
        window->from = from;
        window->count = left < most ? left : most;
        token_store_run(window->store, from, window->count, window->ids, window->counts);
    }
    const int64_t at = from - window->from;
    return (struct piece_token){.id = window->ids[at], .counts = window->counts[at] != 0};
}

static struct piece_token token_at(const struct fim *fim, struct window *window,
                                   const struct fim_document *document, int64_t offset)
{
    const int64_t from = fim_origin(document, offset);
    if (from >= 0) {
        return window_token(window, from);
    }
    return (struct piece_token){.id = from == FIM_PREFIX   ? fim->prefix
                                      : from == FIM_SUFFIX ? fim->suffix
                                                           : fim->middle,
                                .counts = true};
}

/* Inputs t .. t+count-1 of a row from `position` of the stream on, and their labels. One token
 * more than the inputs is read: the last label. */
static int64_t fill(const struct loader *loader, const struct fim *fim, const struct row *row,
                    int64_t t, int64_t position, int64_t count)
{
    const struct token_store *store = loader->store;
    const bool masked = loader->mask_documents;
    struct fim_document document;
    struct window window = {.store = store};
    int64_t start = masked ? t : 0, labels = 0;
    fim_find(fim, store, position, &document);
    for (int64_t i = 0; i <= count; i++) {
        bool other = false;
        while (position + i >= document.end && document.index + 1 < store->documents) {
            fim_next(fim, store, &document);
            other = i > 0;
        }
        if (position + i >= document.end) { /* beyond the last token: only a label can be */
            row->labels[t + i - 1] = -1;
            break;
        }
        const struct piece_token token =
            token_at(fim, &window, &document, position + i - document.begin);
        if (i > 0) {
            const bool counts = token.counts && !(masked && other);
            row->labels[t + i - 1] = counts ? token.id : -1;
            labels += counts ? 1 : 0;
        }
        start = masked && other ? t + i : start;
        if (i < count) {
            row->ids[t + i] = token.id;
            row->positions[t + i] = (int32_t)(t + i - start);
            row->first[t + i] = (int32_t)start;
        }
    }
    return labels;
}

static int64_t fill_stream(const struct loader *loader, const struct loader_place *place,
                           const struct row *row)
{
    const struct loader_epoch *run = &place->run;
    const struct fim fim = fim_of(loader, run);
    const int64_t length = loader->sequence_length;
    int64_t labels = 0;
    for (int64_t t = 0, count = 0; t < length; t += count) {
        int64_t position = place->done + t;
        count = length - t;
        if (run->order != 0) {
            const int64_t inside = position % run->cut, left = run->cut - inside;
            position = (int64_t)rng_permute(run->order, (uint64_t)(position / run->cut),
                                            (uint64_t)pieces(loader, run)) *
                           run->cut +
                       inside;
            count = count < left ? count : left;
        }
        labels += fill(loader, &fim, row, t, position, count);
    }
    return labels;
}

/* Which row is the `at`-th of an epoch: blocks of rows that lie together come in random order, and
 * so do the rows inside a block, so that a window is packed once for many of its rows. */
static int64_t packed_row(uint64_t order, int64_t at, int64_t rows)
{
    enum { BLOCK = 64 };
    const int64_t blocks = rows / BLOCK, whole = blocks * BLOCK;
    if (order == 0) {
        return at;
    }
    if (at >= whole) {
        return whole +
               (int64_t)rng_permute(order, (uint64_t)(at - whole), (uint64_t)(rows - whole));
    }
    const uint64_t block = rng_permute(order, (uint64_t)(at / BLOCK), (uint64_t)blocks);
    return (int64_t)(block * BLOCK +
                     rng_permute(rng_subkey(order, block), (uint64_t)(at % BLOCK), BLOCK));
}

/* Document after document, each beginning anew; then padding. */
static int64_t fill_packed(const struct loader *loader, const struct loader_place *place,
                           const struct row *row)
{
    const struct token_store *store = loader->store;
    const struct packing_entry *entry = NULL;
    const int64_t length = loader->sequence_length, at = place->done / length,
                  number = packed_row(place->run.order, at, loader->packing->rows),
                  entries = packing_row(loader->packing, number, &entry);
    struct window window = {.store = store};
    int64_t labels = 0, t = 0;
    for (int64_t e = 0; e < entries; e++) {
        const int64_t from = store->document_offsets[entry[e].document], start = t;
        struct piece_token token = window_token(&window, from);
        for (int64_t i = 0; i < entry[e].length; i++, t++) {
            row->ids[t] = token.id;
            token = window_token(&window, from + i + 1);
            row->labels[t] = token.counts ? token.id : -1;
            row->positions[t] = (int32_t)i;
            row->first[t] = (int32_t)start;
            labels += token.counts ? 1 : 0;
        }
    }
    for (; t < length; t++) {
        row->ids[t] = store->eos_id >= 0 ? (int32_t)store->eos_id : 0;
        row->labels[t] = -1;
        row->positions[t] = 0;
        row->first[t] = (int32_t)t;
    }
    return labels;
}

int64_t loader_row(const struct loader *loader, const struct loader_place *place,
                   struct batch *batch, int64_t row)
{
    const struct row to = row_of(loader, batch, row);
    return loader->packing != NULL ? fill_packed(loader, place, &to)
                                   : fill_stream(loader, place, &to);
}

int64_t loader_sample(const struct loader *loader, int64_t position)
{
    const int64_t epoch = position / loader->samples, at = position % loader->samples;
    if (!loader->shuffle) {
        return at;
    }
    const uint64_t key = epoch_key(loader, "data_order", epoch);
    return (int64_t)rng_permute(key, (uint64_t)at, (uint64_t)loader->samples);
}

int64_t loader_batch(const struct loader *loader, struct batch *batch, int64_t position,
                     int64_t count)
{
    const struct loader_place start = loader_start(loader);
    int64_t labels = 0;
    for (int64_t i = 0; i < count; i++) {
        const struct loader_place place = loader_advance(loader, &start, position + i);
        labels += loader_row(loader, &place, batch, i);
    }
    return labels;
}
