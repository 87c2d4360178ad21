/* The layout of a block on the disk (report.h), made and checked. */
#ifndef BLOCK_H
#define BLOCK_H

#include <stdbool.h>
#include <stdint.h>

/* Fills what no write changes. */
void block_prepare(uint64_t *words);

/* Stamps a prepared block for one write. */
void block_stamp(uint64_t *words, uint32_t block, uint32_t sequence, uint64_t run);

/* Spoils a buffer that is about to be read into: the stamps only, or `all` of it. */
void block_spoil(uint64_t *words, bool all);

/* Compares the stamps, or `all` of it, with a block prepared and stamped as it should be. */
bool block_matches(const uint64_t *words, const uint64_t *expected, bool all);

#endif
