/* Identity mapping of what lies above the 4 GiB that entry.S maps. */
#ifndef PAGING_H
#define PAGING_H

#include <stdbool.h>
#include <stdint.h>

enum memory_type { MEMORY_RAM = 0, MEMORY_DEVICE = 0x18 /* PWT and PCD: uncached */ };

/* False when there are no page tables left for it. */
bool map(uint64_t start, uint64_t length, enum memory_type type);

#endif
