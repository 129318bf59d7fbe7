#include "trainer/dataset.h"

#include "data/token_share.h"

static enum status set_up(struct dataset *dataset, const struct config *config, const char *path,
                          bool shuffle)
{
    if (dataset->store.vocab_size > config->model.vocab_size) {
        return status_fail(
            STATUS_DATA,
            "%s: its tokens need a vocabulary of %lld, model.vocab_size is %lld: raise it or "
            "prepare the text with another tokenizer",
            path, (long long)dataset->store.vocab_size, (long long)config->model.vocab_size);
    }
    if (config->data.packing == CONFIG_BEST_FIT) {
        TRY(packing_init(&dataset->packing, &dataset->store, config->train.sequence_length, shuffle,
                         config->run.seed));
        loader_init_packed(&dataset->loader, &dataset->packing, shuffle, config->run.seed);
        return STATUS_OK;
    }
    return loader_init(&dataset->loader, &dataset->store, config->train.sequence_length, shuffle,
                       config->data.mask_documents, config->run.seed);
}

enum status dataset_open(struct dataset *dataset, const struct config *config, const char *path,
                         bool shuffle, struct comm *world)
{
    TRY(token_share_open(&dataset->store, path, world));
    return comm_agree(world, set_up(dataset, config, path, shuffle), NULL);
}

void dataset_close(struct dataset *dataset)
{
    packing_free(&dataset->packing);
    token_store_close(&dataset->store);
    *dataset = (struct dataset){0};
}
