#include "kernels/base/json_out.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

void json_out_number(FILE *out, const char *before, double value, int digits)
{
    if (isfinite(value)) {
        fprintf(out, "%s%.*g", before, digits, value);
    } else {
        fprintf(out, "%snull", before);
    }
}

/* Bytes of the UTF-8 character at `text`; 0: there is none (RFC 3629: shortest form, no surrogates,
 * up to U+10FFFF). */
static size_t character_bytes(const unsigned char *text)
{
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char lead = text[0];
    const size_t bytes = lead < 0x80                   ? 1
                         : lead >= 0xC2 && lead < 0xE0 ? 2
                         : lead >= 0xE0 && lead < 0xF0 ? 3
                         : lead >= 0xF0 && lead < 0xF5 ? 4
                                                       : 0;
    uint32_t code = bytes < 2 ? lead : lead & (0x7FU >> bytes);
    for (size_t i = 1; i < bytes; i++) {
        if ((text[i] & 0xC0) != 0x80) {
            return 0;
        }
        code = code << 6 | (text[i] & 0x3FU);
    }
    const bool surrogate = code >= 0xD800 && code < 0xE000;
    return bytes > 1 && (code < least[bytes] || surrogate || code > 0x10FFFF) ? 0 : bytes;
}

void json_out_text(FILE *out, const char *before, const char *text)
{
    fprintf(out, "%s\"", before);
    for (const unsigned char *at = (const unsigned char *)text; *at != '\0';) {
        const size_t bytes = character_bytes(at);
        if (bytes == 0) {
            fputs("\\ufffd", out);
        } else if (*at == '"' || *at == '\\') {
            fprintf(out, "\\%c", *at);
        } else if (*at < 0x20) {
            fprintf(out, "\\u%04x", *at);
        } else {
            fwrite(at, 1, bytes, out);
        }
        at += bytes > 0 ? bytes : 1;
    }
    fputc('"', out);
}
