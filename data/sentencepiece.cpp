#include "data/sentencepiece.h"

#include <sentencepiece_processor.h>

#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

struct piece_model {
    sentencepiece::SentencePieceProcessor model;
};

struct piece_model *sentencepiece_open(const char *data, size_t bytes, char *why, size_t why_bytes)
{
    try {
        struct piece_model *opened = new struct piece_model;
        const auto status = opened->model.LoadFromSerializedProto({data, bytes});
        if (status.ok()) {
            return opened;
        }
        std::snprintf(why, why_bytes, "%s", status.error_message());
        delete opened;
    } catch (const std::exception &problem) {
        std::snprintf(why, why_bytes, "%s", problem.what());
    }
    return nullptr;
}

void sentencepiece_close(struct piece_model *model)
{
    delete model;
}

int sentencepiece_size(const struct piece_model *model)
{
    return model->model.GetPieceSize();
}

int sentencepiece_bos(const struct piece_model *model)
{
    return model->model.bos_id();
}

int sentencepiece_eos(const struct piece_model *model)
{
    return model->model.eos_id();
}

const char *sentencepiece_piece(const struct piece_model *model, int id, size_t *bytes)
{
    const std::string &piece = model->model.IdToPiece(id);
    *bytes = piece.size();
    return piece.data();
}

int sentencepiece_encode(const struct piece_model *model, const char *text, size_t bytes,
                         int (*add)(void *context, int id), void *context)
{
    try {
        std::vector<int> ids;
        if (!model->model.Encode({text, bytes}, &ids).ok()) {
            return -1;
        }
        for (const int id : ids) {
            const int stop = add(context, id);
            if (stop != 0) {
                return stop;
            }
        }
        return 0;
    } catch (const std::exception &) {
        return -1;
    }
}

int sentencepiece_decode(const struct piece_model *model, const int *ids, size_t count,
                         int (*add)(void *context, const char *text, size_t bytes), void *context)
{
    try {
        std::string text;
        if (!model->model.Decode(std::vector<int>(ids, ids + count), &text).ok()) {
            return -1;
        }
        return add(context, text.data(), text.size());
    } catch (const std::exception &) {
        return -1;
    }
}
