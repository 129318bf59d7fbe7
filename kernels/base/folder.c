#include "kernels/base/folder.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST_MESSAGE = 2048 };

/* --- names --- */

static bool is_free(const char *path)
{
    struct stat info;
    bool empty = true;
    if (lstat(path, &info) != 0) {
        return true;
    }
    DIR *dir = S_ISDIR(info.st_mode) ? opendir(path) : NULL;
    if (dir == NULL) {
        return false;
    }
    for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir)) {
        empty = empty && (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0);
    }
    closedir(dir);
    return empty;
}

enum status folder_name(struct folder *folder, const char *place)
{
    size_t length = strlen(place);
    *folder = (struct folder){.lock = {.fd = -1}};
    while (length > 0 && place[length - 1] == '/') {
        length--;
    }
    size_t cut = length;
    while (cut > 0 && place[cut - 1] != '/') {
        cut--;
    }
    const char *name = folder->place + cut;
    if (length > 0 && length < sizeof folder->place - sizeof ".tmp-.lock") {
        snprintf(folder->place, length + 1, "%s", place);
    }
    if (name[0] == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
        return status_fail(STATUS_USAGE, "'%.200s' is no name for a new folder", place);
    }
    snprintf(folder->parent, sizeof folder->parent, "%.*s", cut > 0 ? (int)cut : 1,
             cut > 0 ? place : ".");
    snprintf(folder->work, sizeof folder->work, "%.*s.tmp-%s", (int)cut, place, name);
    return is_free(folder->place)
               ? STATUS_OK
               : status_fail(STATUS_USAGE, "%s: is there already: name a new folder",
                             folder->place);
}

/* --- making it --- */

static void lock_path(const struct folder *folder, char path[FOLDER_PATH_BYTES + 8])
{
    snprintf(path, FOLDER_PATH_BYTES + 8, "%s.lock", folder->work);
}

enum status folder_begin(struct folder *folder)
{
    char path[FOLDER_PATH_BYTES + 8];
    TRY(io_make_dir(folder->parent));
    lock_path(folder, path);
    const enum status status = io_lock(&folder->lock, path);
    if (status == STATUS_USAGE) {
        return status_fail(status, "%s: another process is making it (%s is locked)", folder->place,
                           path);
    }
    TRY(status);
    folder->begun = true;
    TRY(io_remove_tree(folder->work));
    return io_make_dir(folder->work);
}

/* The lock's file goes while it is held: io_lock notices one that lost its name. */
static enum status let_go(struct folder *folder)
{
    char path[FOLDER_PATH_BYTES + 8];
    lock_path(folder, path);
    const enum status status = io_remove(path);
    io_unlock(&folder->lock);
    folder->begun = false;
    return status;
}

enum status folder_publish(struct folder *folder)
{
    TRY(io_sync_dir(folder->work));
    TRY(io_rename(folder->work, folder->place));
    TRY(let_go(folder));
    return io_sync_dir(folder->parent);
}

void folder_drop(struct folder *folder)
{
    char message[MOST_MESSAGE];
    if (folder->begun) {
        snprintf(message, sizeof message, "%s", status_message());
        enum status ignored = io_remove_tree(folder->work);
        ignored = let_go(folder); /* the next start clears what is left */
        ignored = status_fail(ignored, "%s", message);
        (void)ignored;
    }
}
