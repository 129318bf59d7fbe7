#define _GNU_SOURCE
#include "data/input_files.h"

#include <dirent.h>
#include <errno.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "data/token_writer.h"
#include "kernels/base/hash.h"

enum { MAX_PATH = 4096 };

struct search {
    struct input_files *files;
    const struct input_filter *filter;
    /* The output, of an earlier run, and what is kept beside it: no inputs, though they may lie in
     * an input folder. */
    struct stat own[TOKEN_WRITER_NAMES];
    int own_count;
    size_t root; /* of a path: bytes of the folder that was named, with its slash */
};

static void find_own(struct search *search)
{
    for (int i = 0; i < TOKEN_WRITER_NAMES; i++) {
        char name[MAX_PATH + 32];
        snprintf(name, sizeof name, "%s%s", search->filter->output, token_writer_suffix[i]);
        search->own_count += stat(name, &search->own[search->own_count]) == 0;
    }
}

static bool is_own(const struct search *search, const struct stat *info)
{
    for (int i = 0; i < search->own_count; i++) {
        if (search->own[i].st_dev == info->st_dev && search->own[i].st_ino == info->st_ino) {
            return true;
        }
    }
    return false;
}

static bool ends_in_jsonl(const char *path, enum packing packing)
{
    const size_t tail = packing == PACKING_GZIP   ? 3
                        : packing == PACKING_ZSTD ? 4
                                                  : 0,
                 length = strlen(path) - tail;
    return length > 6 && strncmp(path + length - 6, ".jsonl", 6) == 0;
}

static enum status add_file(struct search *search, const char *path, const struct stat *info,
                            bool named)
{
    struct input_files *files = search->files;
    const struct input_filter *filter = search->filter;
    if (info->st_size < filter->least_bytes ||
        (filter->most_bytes > 0 && info->st_size > filter->most_bytes)) {
        files->by_size++;
        return STATUS_OK;
    }
    if (files->count == files->room) {
        const int64_t room = files->room > 0 ? 2 * files->room : 64;
        struct input_file *grown = realloc(files->file, (size_t)room * sizeof *grown);
        if (grown == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for a list of %lld files",
                               (long long)room);
        }
        files->file = grown;
        files->room = room;
    }
    const enum packing packing = unpack_kind(path);
    struct input_file *file = &files->file[files->count];
    *file = (struct input_file){.path = strdup(path),
                                .bytes = info->st_size,
                                .mtime_ns = (int64_t)info->st_mtim.tv_sec * 1000000000 +
                                            info->st_mtim.tv_nsec,
                                .packing = packing,
                                .lines = ends_in_jsonl(path, packing),
                                .named = named};
    if (file->path == NULL) {
        return status_fail(STATUS_RESOURCE, "out of memory for a list of files");
    }
    files->count++;
    files->bytes += info->st_size;
    return STATUS_OK;
}

static bool matches(const char *const *patterns, int count, const char *below, const char *name)
{
    for (int i = 0; i < count; i++) {
        const char *against = strchr(patterns[i], '/') != NULL ? below : name;
        if (fnmatch(patterns[i], against, 0) == 0) {
            return true;
        }
    }
    return false;
}

/* What no path below a folder is like would be left out unseen. */
static enum status check_patterns(const char *const *patterns, int count)
{
    for (int i = 0; i < count; i++) {
        const size_t length = strlen(patterns[i]);
        if (length == 0 || patterns[i][0] == '/' || patterns[i][length - 1] == '/') {
            return status_fail(STATUS_USAGE,
                               "prepare: pattern '%s': paths below a folder neither begin nor end "
                               "with a slash",
                               patterns[i]);
        }
    }
    return STATUS_OK;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static enum status add_folder(struct search *search, const char *path);

static enum status add_found(struct search *search, const char *path, const char *name)
{
    struct stat info;
    const struct input_filter *filter = search->filter;
    if (lstat(path, &info) != 0) {
        return status_fail(STATUS_IO, "%s: %s", path, strerror(errno));
    }
    const bool link = S_ISLNK(info.st_mode);
    if ((link && stat(path, &info) != 0) || (!S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode)) ||
        (link && S_ISDIR(info.st_mode))) {
        return STATUS_OK;
    }
    const char *below = path + search->root;
    if (S_ISDIR(info.st_mode)) {
        return matches(filter->exclude, filter->exclude_count, below, name)
                   ? STATUS_OK
                   : add_folder(search, path);
    }
    if (is_own(search, &info)) {
        return STATUS_OK;
    }
    if (matches(filter->exclude, filter->exclude_count, below, name) ||
        (filter->include_count > 0 &&
         !matches(filter->include, filter->include_count, below, name))) {
        search->files->left_out++;
        return STATUS_OK;
    }
    return add_file(search, path, &info, false);
}

static enum status add_folder(struct search *search, const char *path)
{
    struct dirent **entries = NULL;
    const int count = scandir(path, &entries, NULL, by_name);
    enum status status = count < 0
                             ? status_fail(STATUS_IO, "%s: cannot list: %s", path, strerror(errno))
                             : STATUS_OK;
    for (int i = 0; i < count; i++) {
        char child[MAX_PATH];
        const char *name = entries[i]->d_name;
        const bool slash = path[strlen(path) - 1] == '/';
        const int length = snprintf(child, sizeof child, "%s%s%s", path, slash ? "" : "/", name);
        if (status == STATUS_OK && strcmp(name, ".") != 0 && strcmp(name, "..") != 0) {
            status = length < MAX_PATH ? add_found(search, child, name)
                                       : status_fail(STATUS_IO, "path too long: %s/%s", path, name);
        }
        free(entries[i]);
    }
    free(entries);
    return status;
}

static enum status add_input(struct search *search, const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0) {
        return status_fail(STATUS_IO, "%s: %s", path, strerror(errno));
    }
    if (is_own(search, &info)) {
        return status_fail(STATUS_USAGE,
                           "prepare: %s is both an input and the output: name another --output",
                           path);
    }
    if (S_ISDIR(info.st_mode)) {
        const size_t length = strlen(path);
        search->root = length + (path[length - 1] != '/');
        return add_folder(search, path);
    }
    TRY(io_check_regular(path));
    return add_file(search, path, &info, true);
}

enum status input_files_list(struct input_files *files, char *const *inputs, int input_count,
                             const struct input_filter *filter)
{
    struct search search = {.files = files, .filter = filter};
    *files = (struct input_files){0};
    TRY(check_patterns(filter->include, filter->include_count));
    TRY(check_patterns(filter->exclude, filter->exclude_count));
    find_own(&search);
    for (int i = 0; i < input_count; i++) {
        TRY(add_input(&search, inputs[i]));
    }
    return STATUS_OK;
}

void input_files_free(struct input_files *files)
{
    for (int64_t i = 0; i < files->count; i++) {
        free(files->file[i].path);
    }
    free(files->file);
    *files = (struct input_files){0};
}

uint64_t input_files_hash(const struct input_files *files)
{
    uint64_t hash = (uint64_t)files->count;
    for (int64_t i = 0; i < files->count; i++) {
        const struct input_file *file = &files->file[i];
        const uint64_t parts[5] = {hash, hash_bytes(file->path, strlen(file->path)),
                                   (uint64_t)file->bytes, (uint64_t)file->mtime_ns,
                                   (uint64_t)file->named}; /* binary ones stay then */
        hash = hash_bytes(parts, sizeof parts);
    }
    return hash;
}
