/* loader: the samples of one source, a token file, epoch after epoch. Pure arithmetic, but for the
 * tokens themselves: whether these could be read token_store_status says, behind many of them.
 *
 * An epoch is a stream of tokens: the file, or the file with documents rearranged to have their
 * middle filled in (fim.h). Without shuffle, sample i is tokens [i*T, (i+1)*T) of it as inputs, its
 * labels the tokens one further on; a label beyond the last token does not count (-1), nor one with
 * loss_mask 0. With shuffle the stream is cut into pieces of T tokens, which come in the order of a
 * counter-based permutation (rng_permute, keyed by seed and epoch): a sample is a piece. With
 * packing (packing.h) the samples are its rows, in file order or permuted in blocks; what a row
 * does not fill is padding: end-of-document tokens that see themselves only and whose labels do not
 * count.
 *
 * How an epoch runs is fixed when it starts (struct loader_epoch): after a resume with another
 * length of samples, another seed or another rate of fill-in-the-middle, the epoch under way is
 * read on as it was begun, its pieces of the old length one behind the other and samples of the new
 * length cut from that, so that no token comes twice and none is left out but fewer than T at the
 * end of the epoch. A place in a source is therefore a few numbers, the same for every layout.
 */
#ifndef DATA_LOADER_H
#define DATA_LOADER_H

#include "data/fim.h"
#include "data/packing.h"

struct loader {
    const struct token_store *store; /* borrowed */
    int64_t sequence_length;         /* T */
    int64_t samples;                 /* in one epoch, as the settings are now */
    bool shuffle;
    bool mask_documents;
    uint64_t seed;
    uint64_t number;             /* of the source in a mixture: each has its own order */
    struct fim fim;              /* parts and tokens; 0 parts: none */
    struct row_packing *packing; /* borrowed, or NULL. One thread at a time then */
};

/* How an epoch runs. */
struct loader_epoch {
    uint64_t order; /* key of the permutation; 0: file order */
    int64_t cut;    /* tokens of a piece */
    int64_t fim_parts;
    uint64_t fim_key;
    int64_t stream; /* tokens of all its samples, when it was begun */
    bool packed;    /* its samples are rows of a packing */
};

/* Where a source stands. */
struct loader_place {
    int64_t epoch;  /* from 0 */
    int64_t done;   /* tokens of the epoch's stream that are consumed */
    int64_t tokens; /* consumed over all epochs */
    struct loader_epoch run;
};

/* One micro-batch, caller's arrays of count*T. */
struct batch {
    int32_t *ids;       /* [count, T] inputs */
    int32_t *labels;    /* [count, T] next token, or -1: not counted */
    int32_t *positions; /* [count, T] 0.. ; restart at documents with mask_documents */
    int32_t
        *first; /* [count, T] first visible position in the sample; all 0 without mask_documents */
};

/* The arrays of `tokens` = count*T tokens one after another in storage[4 * tokens]. */
struct batch batch_view(int32_t *storage, int64_t tokens);

/* Errors: STATUS_DATA when the file holds no whole sample (names T and the tokens). */
enum status loader_init(struct loader *loader, const struct token_store *store,
                        int64_t sequence_length, bool shuffle, bool mask_documents, uint64_t seed)
    __attribute__((warn_unused_result));
/* From here on documents are taken at fim->parts; the key is the loader's. */
void loader_set_fim(struct loader *loader, const struct fim *fim);
/* A loader whose samples are the rows of `packing`. */
void loader_init_packed(struct loader *loader, struct row_packing *packing, bool shuffle,
                        uint64_t seed);

/* The first sample of all. */
struct loader_place loader_start(const struct loader *loader);
/* Samples that the epoch under way still gives. */
int64_t loader_left(const struct loader *loader, const struct loader_place *place);
/* The place `count` samples on. */
struct loader_place loader_advance(const struct loader *loader, const struct loader_place *place,
                                   int64_t count);
/* Makes a place that was recorded under other settings one of this loader. Returns false when the
 * epoch under way cannot be read on as it was begun, since its documents are packed otherwise: it
 * goes on as far into the epoch as it was, and documents may come twice or not at all. */
bool loader_adopt(const struct loader *loader, struct loader_place *place);
/* The sample at `place` into row `row` of the batch; returns how many labels count. */
int64_t loader_row(const struct loader *loader, const struct loader_place *place,
                   struct batch *batch, int64_t row);

/* Which piece of the file is sample number `position` (0, 1, 2, ... over all
 * epochs) of a source that is read from its start. */
int64_t loader_sample(const struct loader *loader, int64_t position);
/* Fills samples position .. position+count-1 of such a source; returns how many labels count. */
int64_t loader_batch(const struct loader *loader, struct batch *batch, int64_t position,
                     int64_t count);

#endif
