/* tensor_map: what cuTensorMapEncodeTiled writes into the 128 opaque bytes of a CUtensorMap here.
 */
#ifndef EMULATOR_TENSOR_MAP_H
#define EMULATOR_TENSOR_MAP_H

#include <stdint.h>

enum { TENSOR_MAP_MAGIC = 0x454d554d };

struct tensor_map {
    uint64_t base;
    uint64_t dim[2];              /* elements: columns, rows */
    uint64_t row_bytes;           /* from one row to the next */
    uint64_t planes, plane_bytes; /* of these matrices; a box lies in one */
    uint32_t box[2];
    uint32_t element_bytes;
    uint32_t swizzle; /* CUtensorMapSwizzle */
    uint32_t type;    /* CUtensorMapDataType */
    uint32_t rank;
    uint32_t magic;
};

#endif
