#define _GNU_SOURCE
#include "data/token_share.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "data/token_formats.h"
#include "kernels/base/hash.h"

/* Which file it is, on which machine, and what of it is to be looked at. */
struct place {
    uint64_t machine, device, inode;
    int64_t bytes, mtime_ns, pieces;
};

/* Of this start of the machine's kernel. */
static uint64_t machine(void)
{
    char name[256 + 64] = "";
    gethostname(name, 255);
    const size_t length = strlen(name);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (file != NULL) {
        const size_t got = fread(name + length, 1, 63, file);
        name[length + got] = '\0';
        fclose(file);
    }
    return hash_bytes(name, strlen(name));
}

static struct place place_of(const struct token_store *store, int64_t pieces)
{
    struct stat info = {0};
    const bool known = fstat(store->file->file.fd, &info) == 0;
    return (struct place){.machine = machine(),
                          .device = (uint64_t)info.st_dev,
                          .inode = known ? (uint64_t)info.st_ino : 0,
                          .bytes = store->file->bytes,
                          .mtime_ns =
                              (int64_t)info.st_mtim.tv_sec * 1000000000 + info.st_mtim.tv_nsec,
                          .pieces = pieces};
}

/* The ranks that share the file with this one. */
static enum status find_group(struct comm *comm, const struct place *mine, struct comm *group)
{
    struct place *all = malloc((size_t)comm->size * sizeof *all);
    int first = 0;
    const enum status status = comm_agree(
        comm,
        all != NULL ? STATUS_OK
                    : status_fail(STATUS_RESOURCE, "out of memory for %d ranks", comm->size),
        NULL);
    if (status == STATUS_OK) {
        comm_all_gather(comm, all, mine, sizeof *mine);
        while (memcmp(&all[first], mine, sizeof *mine) != 0) {
            first++;
        }
    }
    free(all);
    TRY(status);
    comm_split(comm, first, comm->rank, group);
    return STATUS_OK;
}

/* Every size-th piece of tokens and mask, one behind the other. */
static enum status look(const struct token_store *store, const struct comm *group, uint64_t *hashes,
                        uint64_t *most)
{
    const int64_t tokens = token_store_pieces(store, TOKEN_PART_IDS),
                  all = tokens + token_store_pieces(store, TOKEN_PART_MASK);
    char *scratch = malloc(TOKEN_PIECE);
    enum status status =
        scratch != NULL ? STATUS_OK
                        : status_fail(STATUS_RESOURCE, "out of memory for reading %s", store->path);
    for (int64_t i = group->rank; i < all && status == STATUS_OK; i += group->size) {
        const enum token_part part = i < tokens ? TOKEN_PART_IDS : TOKEN_PART_MASK;
        status =
            token_store_look(store, part, i < tokens ? i : i - tokens, scratch, &hashes[i], most);
    }
    free(scratch);
    return status;
}

/* The look of all; each piece's hash comes from one rank, the others add 0. */
static enum status look_together(struct token_store *store, struct comm *group, uint64_t *hashes,
                                 enum status status)
{
    const int64_t tokens = token_store_pieces(store, TOKEN_PART_IDS),
                  mask = token_store_pieces(store, TOKEN_PART_MASK);
    uint64_t most = 0;
    status = status == STATUS_OK ? look(store, group, hashes, &most) : status;
    TRY(comm_agree(group, status, NULL));
    int64_t id = most < INT64_MAX ? (int64_t)most : INT64_MAX; /* negative ones are not small */
    comm_all_reduce(group, &id, 1, DTYPE_I64, REDUCE_MAX);
    comm_all_reduce(group, hashes, tokens + mask, DTYPE_I64, REDUCE_SUM);
    store->tokens_hash = token_store_chain(hashes, tokens);
    store->mask_hash = token_store_chain(hashes + tokens, mask);
    store->mask_looked_at = true;
    return token_store_conclude(store, (uint64_t)id);
}

enum status token_share_open(struct token_store *store, const char *path, struct comm *comm)
{
    struct comm group = {0};
    TRY(comm_agree(comm, token_store_begin(store, path), NULL));
    const int64_t pieces =
        token_store_pieces(store, TOKEN_PART_IDS) + token_store_pieces(store, TOKEN_PART_MASK);
    const struct place mine = place_of(store, pieces);
    TRY(find_group(comm, &mine, &group));
    uint64_t *hashes = calloc((size_t)pieces + 1, sizeof *hashes);
    const enum status status = look_together(
        store, &group, hashes,
        hashes != NULL ? STATUS_OK
                       : status_fail(STATUS_RESOURCE, "out of memory for reading %s", path));
    free(hashes);
    comm_free(&group);
    return comm_agree(comm, status, NULL);
}
