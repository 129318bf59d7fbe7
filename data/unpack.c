#include "data/unpack.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

static bool ends_in(const char *text, const char *end)
{
    const size_t length = strlen(text), wanted = strlen(end);
    return length > wanted && strcmp(text + length - wanted, end) == 0;
}

enum packing unpack_kind(const char *path)
{
    return ends_in(path, ".gz")    ? PACKING_GZIP
           : ends_in(path, ".zst") ? PACKING_ZSTD
                                   : PACKING_NONE;
}

static enum status no_memory(const char *path)
{
    return status_fail(STATUS_RESOURCE, "out of memory reading %s", path);
}

static enum status open_gzip(struct unpack *unpack, const char *path)
{
    z_stream *stream = calloc(1, sizeof *stream);
    if (stream == NULL || inflateInit2(stream, 15 + 16) != Z_OK) {
        free(stream);
        return no_memory(path);
    }
    unpack->stream = stream;
    return STATUS_OK;
}

enum status unpack_open(struct unpack *unpack, const char *path, enum packing packing)
{
    *unpack = (struct unpack){.packing = packing, .file.fd = -1};
    TRY(io_open_read(&unpack->file, path));
    TRY(io_size(&unpack->file, &unpack->size));
    if (packing == PACKING_NONE) {
        return STATUS_OK;
    }
    unpack->input = malloc(UNPACK_PIECE);
    if (unpack->input == NULL) {
        return no_memory(path);
    }
    if (packing == PACKING_GZIP) {
        return open_gzip(unpack, path);
    }
    /* large dumps are packed with windows of up to 2 GiB (zstd --long=31) */
    unpack->stream = ZSTD_createDStream();
    return unpack->stream != NULL &&
                   !ZSTD_isError(ZSTD_DCtx_setParameter(unpack->stream, ZSTD_d_windowLogMax,
                                                        sizeof(size_t) == 8 ? 31 : 30))
               ? STATUS_OK
               : no_memory(path);
}

/* Reads the next piece of the file into `data`: 0 bytes at its end. */
static enum status read_file(struct unpack *unpack, void *data, size_t room, size_t *got)
{
    const int64_t left = unpack->size - unpack->at;
    *got = (uint64_t)left < room ? (size_t)left : room;
    if (*got > 0) {
        TRY(io_pread(&unpack->file, data, *got, unpack->at));
    }
    unpack->at += (int64_t)*got;
    return STATUS_OK;
}

/* One call of zlib: what came out, and whether a member ended. */
static enum status step_gzip(struct unpack *unpack, char *out, size_t room, size_t *made)
{
    z_stream *stream = unpack->stream;
    if (!unpack->open_part && inflateReset(stream) != Z_OK) {
        return no_memory(unpack->file.path);
    }
    const size_t give = unpack->input_count - unpack->input_at;
    stream->next_in = (Bytef *)unpack->input + unpack->input_at;
    stream->avail_in = (uInt)give;
    stream->next_out = (Bytef *)out;
    stream->avail_out = (uInt)(room < (1U << 30) ? room : 1U << 30);
    const uInt before = stream->avail_out;
    const int result = inflate(stream, Z_NO_FLUSH);
    unpack->input_at += give - stream->avail_in;
    *made = before - stream->avail_out;
    unpack->open_part = result != Z_STREAM_END;
    return result == Z_OK || result == Z_STREAM_END || result == Z_BUF_ERROR
               ? STATUS_OK
               : status_fail(STATUS_DATA, "%s: byte %lld: damaged or no gzip: %s",
                             unpack->file.path, (long long)(unpack->at - (int64_t)stream->avail_in),
                             stream->msg != NULL ? stream->msg : zError(result));
}

static enum status step_zstd(struct unpack *unpack, char *out, size_t room, size_t *made)
{
    ZSTD_inBuffer in = {unpack->input, unpack->input_count, unpack->input_at};
    ZSTD_outBuffer to = {out, room, 0};
    const size_t result = ZSTD_decompressStream(unpack->stream, &to, &in);
    unpack->input_at = in.pos;
    *made = to.pos;
    unpack->open_part = result != 0;
    return !ZSTD_isError(result)
               ? STATUS_OK
               : status_fail(STATUS_DATA, "%s: byte %lld: damaged or no zstd: %s",
                             unpack->file.path,
                             (long long)(unpack->at - (int64_t)(in.size - in.pos)),
                             ZSTD_getErrorName(result));
}

enum status unpack_read(struct unpack *unpack, void *data, size_t room, size_t *got)
{
    char *out = data;
    *got = 0;
    if (unpack->packing == PACKING_NONE) {
        return read_file(unpack, data, room, got);
    }
    while (*got < room) {
        if (unpack->input_at == unpack->input_count) {
            unpack->input_at = 0;
            TRY(read_file(unpack, unpack->input, UNPACK_PIECE, &unpack->input_count));
        }
        const bool ended = unpack->input_count == 0;
        if (ended && !unpack->open_part) {
            return STATUS_OK;
        }
        size_t made = 0;
        TRY((unpack->packing == PACKING_GZIP ? step_gzip : step_zstd)(unpack, out + *got,
                                                                      room - *got, &made));
        *got += made;
        if (ended && made == 0 && unpack->open_part) {
            return status_fail(STATUS_DATA, "%s: ends too early: cut off", unpack->file.path);
        }
    }
    return STATUS_OK;
}

void unpack_close(struct unpack *unpack)
{
    if (unpack->packing == PACKING_GZIP && unpack->stream != NULL) {
        inflateEnd(unpack->stream);
        free(unpack->stream);
    }
    if (unpack->packing == PACKING_ZSTD) {
        ZSTD_freeDStream(unpack->stream);
    }
    free(unpack->input);
    const enum status ignored = io_close(&unpack->file); /* of a file that was read */
    (void)ignored;
    *unpack = (struct unpack){.file.fd = -1};
}
