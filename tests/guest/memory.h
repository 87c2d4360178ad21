/* The RAM walk: one byte of every 4 KiB page, incremented page by page, pass after pass. */
#ifndef MEMORY_H
#define MEMORY_H

/* Chooses, maps and clears the region. */
void memory_init(void);

/* Never returns; calls serve whenever work is pending. */
__attribute__((noreturn)) void memory_walk(void (*serve)(void));

#endif
