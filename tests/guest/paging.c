#include "paging.h"

#include <stddef.h>

#define PRESENT_WRITE 0x003
#define LARGE         0x080
#define LARGE_SIZE    0x200000ull
#define ENTRIES       512
#define ADDRESS_MASK  0x000ffffffffff000ull

/* One for every GiB above 4 GiB that is used: enough for 40 GiB of RAM and BARs in many places. */
#define SPARE_TABLES 48

typedef uint64_t table[ENTRIES] __attribute__((aligned(4096)));

extern table page_map_level_4;
static table spare[SPARE_TABLES];
static unsigned spare_used;

static uint64_t *next_level(uint64_t *entry)
{
    if (*entry == 0) {
        if (spare_used == SPARE_TABLES)
            return NULL;
        *entry = (uint64_t)spare[spare_used++] | PRESENT_WRITE;
    }
    return (uint64_t *)(*entry & ADDRESS_MASK);
}

bool map(uint64_t start, uint64_t length, enum memory_type type)
{
    for (uint64_t address = start & -LARGE_SIZE; address < start + length; address += LARGE_SIZE) {
        if (address < 1ull << 32)
            continue;
        uint64_t *pointers = next_level(&page_map_level_4[address >> 39 & 511]);
        uint64_t *directory = pointers == NULL ? NULL : next_level(&pointers[address >> 30 & 511]);
        if (directory == NULL)
            return false;
        /* Nothing was mapped here before, so no stale translation needs flushing. */
        directory[address >> 21 & 511] = address | (uint64_t)type | LARGE | PRESENT_WRITE;
    }
    return true;
}
