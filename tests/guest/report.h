/*
 * The report: everything the guest knows of itself, at one fixed guest-physical address, so that a
 * program that maps the guest's RAM can watch it without the guest's help. Little-endian; every
 * number is written with one aligned store. report.rs mirrors this; a test there compares them.
 *
 * Times are in TSC ticks as the guest reads them. Counters start at 0 with each boot.
 */
#ifndef REPORT_H
#define REPORT_H

#include "entry.h"

#include <stddef.h>
#include <stdint.h>

#include "processors.h"

#define REPORT_ADDRESS 0x200000
#define REPORT_SIZE    0x50000
#define REPORT_VERSION 1

#define TICK_RING   4096  /* entries; tick number n is in tick_tsc[n % TICK_RING] */
#define BLOCK_LIMIT 65536 /* blocks of 4 KiB of the disk that the guest uses at most */
#define BLOCK_SLOTS 4     /* disk requests in flight at most */
#define RNG_LIMIT   32
#define CPU_LIMIT   MAX_PROCESSORS

/* Set in blk_sequence[] while a write of the block is in flight, and for good after one failed. */
#define BLOCK_IN_FLIGHT 0x80000000u

/* state */
enum { STATE_BOOTING = 1, STATE_RUNNING = 2, STATE_FAULT = 3 };

/* blk_state: paused has no request in flight */
enum { BLK_ABSENT = 0, BLK_RUNNING = 1, BLK_DRAINING = 2, BLK_VERIFYING = 3, BLK_PAUSED = 4 };

/* blk_slot[].operation */
enum { SLOT_IDLE = 0, SLOT_READ = 1, SLOT_WRITE = 2, SLOT_FLUSH = 3 };

/*
 * control, written from outside when it is 0. The guest takes it within a tick, writes 0 back and
 * counts it in control_count; draining and verifying go on afterwards and show in blk_state.
 */
enum {
    CONTROL_RESET_GAP = 1,
    CONTROL_QUIESCE = 2,
    CONTROL_PAUSE_DISK = 3,
    CONTROL_RESUME_DISK = 4,
};

/* F(byte offset, type, name): what the serial command `report` prints, in this order. */
#define REPORT_FIELDS(F)                                                                           \
    F(0x008, uint32_t, version)                                                                    \
    F(0x00c, uint32_t, size)                                                                       \
    F(0x010, uint32_t, state)                                                                      \
    F(0x014, uint32_t, boots)            /* 1 on fresh RAM, one more after every reset */          \
    F(0x018, uint64_t, control)                                                                    \
    F(0x020, uint64_t, control_count)                                                              \
    F(0x028, uint64_t, tsc_hz)                                                                     \
    F(0x030, uint64_t, lapic_hz)                                                                   \
    F(0x038, uint64_t, timer_hz)         /* asked for with hz= */                                  \
    F(0x040, uint64_t, ram_start)                                                                  \
    F(0x048, uint64_t, ram_len)                                                                    \
    F(0x050, uint64_t, loops)            /* pages incremented */                                   \
    F(0x058, uint64_t, passes)           /* whole passes over the region */                        \
    F(0x060, uint64_t, position)         /* address of the page incremented last */                \
    F(0x068, uint64_t, ram_errors)       /* pages that did not hold the last pass's byte */        \
    F(0x070, uint64_t, ticks)            /* timer interrupts of CPU 0 */                           \
    F(0x078, uint64_t, last_tick_tsc)                                                              \
    F(0x080, uint64_t, max_gap_tsc)      /* longest time between two ticks */                      \
    F(0x088, uint64_t, max_gap_end_tsc)  /* when it ended */                                       \
    F(0x090, uint64_t, prev_gap_tsc)     /* the longest before that one, or before the reset */    \
    F(0x098, uint64_t, tsc_backwards)    /* ticks that read a smaller TSC than the one before */   \
    F(0x0a0, uint64_t, irq_serial)                                                                 \
    F(0x0a8, uint64_t, irq_blk)                                                                    \
    F(0x0b0, uint64_t, irq_rng)                                                                    \
    F(0x0b8, uint64_t, irq_spurious)                                                               \
    F(0x0c0, uint64_t, irq_other)        /* vectors nobody asked for */                            \
    F(0x0c8, uint64_t, serial_rx)        /* bytes */                                               \
    F(0x0d0, uint64_t, serial_tx)        /* bytes */                                               \
    F(0x0d8, uint64_t, serial_lines)                                                               \
    F(0x0e0, uint64_t, serial_overruns)  /* bytes dropped, here or in the UART */                  \
    F(0x0e8, uint32_t, blk_state)                                                                  \
    F(0x0ec, uint32_t, blk_blocks)       /* 4 KiB blocks in use, from the disk's first */          \
    F(0x0f0, uint64_t, blk_run)          /* in every block this boot writes */                     \
    F(0x0f8, uint64_t, blk_writes)       /* completed, as are all that follow */                   \
    F(0x100, uint64_t, blk_reads)                                                                  \
    F(0x108, uint64_t, blk_flushes)                                                                \
    F(0x110, uint64_t, blk_errors)       /* requests the device refused */                         \
    F(0x118, uint64_t, blk_mismatches)   /* reads that found something else */                     \
    F(0x120, uint64_t, blk_stalls)       /* 2 s of ticks with requests but no completion */        \
    F(0x128, uint64_t, blk_verified)     /* by the last quiesce */                                 \
    F(0x130, uint64_t, blk_bad)          /* by the last quiesce */                                 \
    F(0x138, uint64_t, rng_devices)                                                                \
    F(0x140, uint64_t, rng_requests)                                                               \
    F(0x148, uint64_t, rng_bytes)                                                                  \
    F(0x150, uint64_t, rng_errors)       /* all zero, as the last one, or of impossible length */  \
    F(0x158, uint64_t, rng_stalls)                                                                 \
    F(0x160, uint64_t, cpus)             /* running, CPU 0 included */                             \
    F(0x168, uint64_t, entry_tsc)        /* at the guest's first instructions */                   \
    F(0x170, uint64_t, up_tsc)           /* when it began to walk its RAM */                       \
    F(0x178, uint64_t, sleeps)           /* times it suspended itself */                           \
    F(0x180, uint64_t, wakes)            /* times it was woken and went on */                      \
    F(0x188, uint64_t, wake_errors)      /* what was not as it must be then */                     \
    F(0x190, uint64_t, wake_status)      /* PM1's status then */

/* A disk request in flight. */
struct blk_slot {
    uint32_t operation;
    uint32_t block;
    uint32_t sequence; /* being written, or expected by the read */
    uint32_t reserved;
};

/* A(byte offset, type, name, entries) */
#define REPORT_ARRAYS(A)                                                                           \
    A(0x00400, uint64_t, cpu_loops, CPU_LIMIT)            /* by APIC id; CPU 0 counts in loops */  \
    A(0x00600, uint64_t, cpu_ticks, CPU_LIMIT)            /* by APIC id; CPU 0 counts in ticks */  \
    A(0x00800, uint64_t, rng_done, RNG_LIMIT)             /* requests, by order on the bus */      \
    A(0x00900, struct blk_slot, blk_slot, BLOCK_SLOTS)                                             \
    A(0x01000, uint64_t, tick_tsc, TICK_RING)                                                      \
    A(0x10000, uint32_t, blk_sequence, BLOCK_LIMIT)       /* last acknowledged, 0 if never */

/* A union lets every field stand at the offset it is declared with. */
#define AT(offset, type, name) struct { char name##_offset[offset]; type name; };
#define ARRAY_AT(offset, type, name, entries)                                                      \
    struct { char name##_offset[offset]; type name[entries]; };
union report {
    char magic[8]; /* "BATONRPT", written last: what stands here before is from an earlier boot */
    REPORT_FIELDS(AT)
    REPORT_ARRAYS(ARRAY_AT)
    char whole[REPORT_SIZE];
};
#define CHECK(offset, type, name) _Static_assert(offsetof(union report, name) == offset, #name);
#define CHECK_ARRAY(offset, type, name, entries) CHECK(offset, type, name)
REPORT_FIELDS(CHECK)
REPORT_ARRAYS(CHECK_ARRAY)
_Static_assert(sizeof(union report) == REPORT_SIZE, "a field lies outside the report");

_Static_assert(REPORT_ADDRESS + offsetof(union report, entry_tsc) == ENTRY_TSC_ADDRESS, "entry.h");

#define report ((volatile union report *)REPORT_ADDRESS)

/* Clears it and counts the boot. */
void report_init(void);

/* One line of name=value on the serial port. */
void report_print(void);

/*
 * A block on the disk: 512 words of 64 bits.
 *
 *   0 magic, 1 sector (of 512 bytes), 2 sequence, 3 blk_run, 4 FNV-1a64 of the 32 bytes before
 *
 * The last word of every sector repeats the checksum, so that a torn or misplaced write shows; any
 * other word i is BLOCK_PATTERN ^ i.
 */
#define BLOCK_SIZE    4096
#define BLOCK_WORDS   512
#define SECTOR_WORDS  64
#define BLOCK_MAGIC   0x4b4c424e4f544142 /* "BATONBLK" */
#define BLOCK_PATTERN 0xa5a5a5a55a5a5a5a

#endif
