#include "block.h"

#include "cpu.h"
#include "report.h"

enum { MAGIC = 0, SECTOR = 1, SEQUENCE = 2, RUN = 3, CHECKSUM = 4 };

#define HEADER_WORDS 5
#define SECTORS      (BLOCK_WORDS / SECTOR_WORDS)

static uint64_t fnv1a64(const void *data, unsigned length)
{
    uint64_t hash = 0xcbf29ce484222325;
    for (const uint8_t *byte = data; length > 0; length--)
        hash = (hash ^ *byte++) * 0x100000001b3;
    return hash;
}

void block_prepare(uint64_t *words)
{
    for (unsigned i = 0; i < BLOCK_WORDS; i++)
        words[i] = BLOCK_PATTERN ^ i;
}

/* The stamps change alone, two hundred instructions where a new pattern would take two thousand: an
   emulated guest would do little else. */
void block_stamp(uint64_t *words, uint32_t block, uint32_t sequence, uint64_t run)
{
    words[MAGIC] = BLOCK_MAGIC;
    words[SECTOR] = (uint64_t)block * SECTORS;
    words[SEQUENCE] = sequence;
    words[RUN] = run;
    words[CHECKSUM] = fnv1a64(words, CHECKSUM * sizeof(*words));
    for (unsigned last = SECTOR_WORDS - 1; last < BLOCK_WORDS; last += SECTOR_WORDS)
        words[last] = words[CHECKSUM];
}

void block_spoil(uint64_t *words, bool all)
{
    fill_words(words, 0, all ? BLOCK_WORDS : HEADER_WORDS);
    for (unsigned last = SECTOR_WORDS - 1; last < BLOCK_WORDS; last += SECTOR_WORDS)
        words[last] = 0;
}

bool block_matches(const uint64_t *words, const uint64_t *expected, bool all)
{
    if (!equal_words(words, expected, all ? BLOCK_WORDS : HEADER_WORDS))
        return false;
    for (unsigned last = SECTOR_WORDS - 1; last < BLOCK_WORDS; last += SECTOR_WORDS) {
        if (words[last] != expected[last])
            return false;
    }
    return true;
}
