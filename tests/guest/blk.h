/* The disk workload: write, flush, read back, verify, with BLOCK_SLOTS requests in flight. */
#ifndef BLK_H
#define BLK_H

#include "pci.h"

/* Takes the first virtio-blk device and leaves others alone. */
void blk_open(const struct pci_function *pci);

/* Says so when no device was taken; then starts. pace: see README.md. */
void blk_start(uint64_t pace);

/* From the main loop, whenever work is pending. */
void blk_serve(void);

/* Finishes what is in flight, then stops, or reads every block written and says what it found. */
void blk_pause(void);
void blk_quiesce(void);
void blk_resume(void);

/* Verifies the disk in this slot of bus 0, if there is one; true once it is not used any more. */
bool blk_leave(uint8_t slot);

/* After the machine slept: the device must have been reset, and is opened again, paused. */
bool blk_wake(void);

#endif
