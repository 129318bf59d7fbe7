#include "trainer/commands/ckpt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checkpoints/checkpoint.h"
#include "kernels/base/io.h"
#include "kernels/base/json_out.h"
#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/config/nearest.h"
#include "trainer/state.h"

static const struct {
    const char *name, *help;
    enum status (*run)(int argc, char **argv);
} actions[] = {
    {"ls", "list a run's checkpoints: step, size, tensors, ranks, whether they look whole",
     ckpt_ls},
    {"verify", "read one, or all of a run, and check every hash", ckpt_verify},
    {"diff", "compare two, tensor by tensor", ckpt_diff},
    {"export-h5", "write the tensors whole into one HDF5 file", ckpt_export_h5},
    {"rm", "remove checkpoints of a run", ckpt_rm},
};
enum { ACTIONS = sizeof actions / sizeof actions[0], MOST_DIGITS = 15 };

static void print_help(void)
{
    printf("usage: switchyard ckpt ACTION [ARGS]\n\nLooks after checkpoints.\n\n");
    for (int i = 0; i < ACTIONS; i++) {
        printf("  %-10s %s\n", actions[i].name, actions[i].help);
    }
    printf("\nswitchyard ckpt ACTION --help says more.\n");
}

enum status command_ckpt(int argc, char **argv)
{
    const char *names[ACTIONS];
    char word[32];
    if (argc < 2) {
        return status_fail(STATUS_USAGE, "ckpt: too few arguments (see switchyard ckpt --help)");
    }
    if (strcmp(argv[1], "--help") == 0) {
        print_help();
        return STATUS_OK;
    }
    for (int i = 0; i < ACTIONS; i++) {
        names[i] = actions[i].name;
        if (strcmp(argv[1], actions[i].name) == 0) {
            snprintf(word, sizeof word, "ckpt %s", actions[i].name);
            argv[1] = word;
            return actions[i].run(argc - 1, argv + 1);
        }
    }
    const char *near = nearest_word(argv[1], names, ACTIONS);
    return status_fail(STATUS_USAGE, "ckpt: unknown action '%s'%s%s%s (see switchyard ckpt --help)",
                       argv[1], near != NULL ? "; did you mean '" : "", near != NULL ? near : "",
                       near != NULL ? "'?" : "");
}

static enum status keep(void *context, const char *checkpoint)
{
    snprintf(context, CKPT_PATH_BYTES, "%s", checkpoint);
    return STATUS_OK;
}

enum status ckpt_place(const char *path, char place[CKPT_PATH_BYTES])
{
    struct comm self;
    TRY(comm_open(&self, "self"));
    const enum status status = state_use_newest(&self, path, keep, place);
    comm_close(&self);
    return status;
}

/* RUN_DIR/checkpoints. */
static enum status root_of(const char *run, char root[CKPT_PATH_BYTES])
{
    snprintf(root, CKPT_PATH_BYTES, "%s/checkpoints", run);
    return io_exists(root)
               ? STATUS_OK
               : status_fail(STATUS_IO, "%s: no such folder: name a run directory", root);
}

/* --- ls --- */

static void print(const struct checkpoint_entry *entry, bool json, bool first)
{
    if (json) {
        json_out_text(stdout, first ? "{\"path\":" : ",{\"path\":", entry->path);
        printf(",\"step\":%lld,\"bytes\":%lld,\"tensors\":%lld,\"ranks\":%lld,\"valid\":%s}",
               (long long)entry->step, (long long)entry->bytes, (long long)entry->tensors,
               (long long)entry->ranks, entry->valid ? "true" : "false");
    } else if (entry->valid) {
        printf("step %8lld  %9.1f MiB  %6lld tensors  %4lld ranks  %s\n", (long long)entry->step,
               (double)entry->bytes / 1048576.0, (long long)entry->tensors, (long long)entry->ranks,
               entry->path);
    } else {
        printf("step %8lld  not usable: %s\n", (long long)entry->step, entry->why);
    }
}

/* What saves moved aside, which is never read again. */
struct aside {
    const char *root;
    bool json, first;
};

static enum status print_aside(void *context, const char *name)
{
    struct aside *aside = context;
    const size_t digits = strspn(name, "0123456789");
    char path[CKPT_PATH_BYTES + 256];
    if (digits < 8 || digits > MOST_DIGITS || strncmp(name + digits, ".replaced-", 10) != 0) {
        return STATUS_OK;
    }
    const long long step = strtoll(name, NULL, 10);
    snprintf(path, sizeof path, "%s/%s", aside->root, name);
    if (aside->json) {
        json_out_text(stdout, aside->first ? "{\"path\":" : ",{\"path\":", path);
        printf(",\"step\":%lld,\"replaced\":true,\"valid\":false}", step);
    } else {
        printf("step %8lld  set aside, a later save has its place: %s\n", step, path);
    }
    aside->first = false;
    return STATUS_OK;
}

enum status ckpt_ls(int argc, char **argv)
{
    struct option_result options;
    bool json = false;
    char root[CKPT_PATH_BYTES];
    const struct option_spec specs[] = {{"--json", OPTION_FLAG, &json, NULL, "print JSON"}, {0}};
    TRY(options_parse(&options, argc, argv, specs, "ckpt ls RUN_DIR",
                      "Lists the checkpoints of a run, newest first: step, size, tensors, ranks; "
                      "then what\nlater saves of the same step set aside (`ckpt rm --damaged` "
                      "removes that).\n"
                      "Manifests and file sizes are looked at; `ckpt verify` reads all of it.",
                      1, 1));
    if (options.help) {
        return STATUS_OK;
    }
    TRY(root_of(options.words[0], root));
    struct checkpoint_entry *entries = NULL;
    int64_t count = 0;
    TRY(checkpoint_list(root, &entries, &count));
    printf("%s", json ? "[" : "");
    for (int64_t i = 0; i < count; i++) {
        print(&entries[i], json, i == 0);
    }
    struct aside aside = {root, json, count == 0};
    bool there = false;
    const enum status status = io_list(root, &there, print_aside, &aside);
    printf("%s", json ? "]\n" : "");
    checkpoint_list_free(entries, count);
    return status;
}

/* --- rm --- */

static enum status parse_step(const char *word, int64_t *step)
{
    const size_t length = strlen(word);
    if (length == 0 || length > MOST_DIGITS || strspn(word, "0123456789") != length) {
        return status_fail(STATUS_USAGE, "ckpt rm: '%s' is no step", word);
    }
    *step = strtoll(word, NULL, 10);
    return STATUS_OK;
}

/* What `ckpt rm` was asked for. */
struct removal {
    char *const *words; /* the steps */
    int words_count;
    bool damaged, force;
};

static enum status is_named(const struct removal *removal, int64_t step, bool *named)
{
    *named = false;
    for (int i = 0; i < removal->words_count; i++) {
        int64_t one = 0;
        TRY(parse_step(removal->words[i], &one));
        *named = *named || one == step;
    }
    return STATUS_OK;
}

/* Marks what is to go and counts what whole ones stay; every step named must be there. */
static enum status choose(const struct removal *removal, const struct checkpoint_entry *entries,
                          int64_t count, bool *goes, int64_t *stay)
{
    int64_t found = 0;
    *stay = 0;
    for (int64_t i = 0; i < count; i++) {
        bool named = false;
        TRY(is_named(removal, entries[i].step, &named));
        found += named;
        goes[i] = named || (removal->damaged && !entries[i].valid);
        *stay += entries[i].valid && !goes[i];
    }
    return found == removal->words_count
               ? STATUS_OK
               : status_fail(STATUS_USAGE, "ckpt rm: %d steps named, %lld of them are there",
                             removal->words_count, (long long)found);
}

static enum status remove_chosen(const char *root, const struct removal *removal,
                                 const struct checkpoint_entry *entries, int64_t count)
{
    int64_t stay = 0, removed = 0, aside = 0;
    bool *goes = calloc((size_t)count + 1, sizeof *goes);
    enum status status = goes != NULL ? choose(removal, entries, count, goes, &stay)
                                      : status_fail(STATUS_RESOURCE, "out of memory");
    if (status == STATUS_OK && stay == 0 && !removal->force) {
        status = status_fail(STATUS_USAGE,
                             "ckpt rm: no whole checkpoint would stay in %s: add --force", root);
    }
    for (int64_t i = 0; i < count && status == STATUS_OK; i++) {
        if (goes[i]) {
            status = checkpoint_remove(root, entries[i].step);
            removed++;
        }
    }
    free(goes);
    if (status == STATUS_OK && removal->damaged) {
        status = checkpoint_remove_replaced(root, &aside);
    }
    if (status == STATUS_OK) {
        printf("%lld checkpoints removed, %lld whole ones stay\n", (long long)(removed + aside),
               (long long)stay);
    }
    return status;
}

enum status ckpt_rm(int argc, char **argv)
{
    struct option_result options;
    struct removal removal = {0};
    struct io_file lock = {.fd = -1};
    char root[CKPT_PATH_BYTES], name[CKPT_PATH_BYTES];
    const struct option_spec specs[] = {
        {"--damaged", OPTION_FLAG, &removal.damaged, NULL, "those that `ckpt ls` finds not usable"},
        {"--force", OPTION_FLAG, &removal.force, NULL, "even if no whole one stays"},
        {0}};
    TRY(options_parse(&options, argc, argv, specs, "ckpt rm RUN_DIR [STEP ...] [--damaged]",
                      "Removes checkpoints of a run that is not training: the steps named, the "
                      "damaged ones,\nor both. A run keeps its last whole one without --force.",
                      1, 1000));
    if (options.help) {
        return STATUS_OK;
    }
    removal.words = options.words + 1;
    removal.words_count = options.word_count - 1;
    if (removal.words_count == 0 && !removal.damaged) {
        return status_fail(STATUS_USAGE, "ckpt rm: name steps, or --damaged");
    }
    TRY(root_of(options.words[0], root));
    snprintf(name, sizeof name, "%s/lock", options.words[0]);
    TRY(io_lock(&lock, name));
    struct checkpoint_entry *entries = NULL;
    int64_t count = 0;
    enum status status = checkpoint_list(root, &entries, &count);
    status = status == STATUS_OK ? remove_chosen(root, &removal, entries, count) : status;
    checkpoint_list_free(entries, count);
    io_unlock(&lock);
    return status;
}
