/* A build without the library: no model opens, so nothing else is ever called. */
#include "data/sentencepiece.h"

#include <assert.h>
#include <stdio.h>

struct piece_model *sentencepiece_open(const char *data, size_t bytes, char *why, size_t why_bytes)
{
    (void)data;
    (void)bytes;
    snprintf(why, why_bytes,
             "this binary was built without SentencePiece: install libsentencepiece-dev and a C++ "
             "compiler, and build again");
    return NULL;
}

void sentencepiece_close(struct piece_model *model)
{
    assert(model == NULL);
}

int sentencepiece_size(const struct piece_model *model)
{
    (void)model;
    assert(!"without the library");
    return 0;
}

int sentencepiece_bos(const struct piece_model *model)
{
    return sentencepiece_size(model);
}

int sentencepiece_eos(const struct piece_model *model)
{
    return sentencepiece_size(model);
}

const char *sentencepiece_piece(const struct piece_model *model, int id, size_t *bytes)
{
    (void)id;
    *bytes = (size_t)sentencepiece_size(model);
    return "";
}

int sentencepiece_encode(const struct piece_model *model, const char *text, size_t bytes,
                         int (*add)(void *context, int id), void *context)
{
    (void)text;
    (void)bytes;
    (void)add;
    (void)context;
    return sentencepiece_size(model);
}

int sentencepiece_decode(const struct piece_model *model, const int *ids, size_t count,
                         int (*add)(void *context, const char *text, size_t bytes), void *context)
{
    (void)ids;
    (void)count;
    (void)add;
    (void)context;
    return sentencepiece_size(model);
}
