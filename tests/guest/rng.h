/* The entropy workload: every virtio-rng device has 64 bytes to give, again and again. */
#ifndef RNG_H
#define RNG_H

#include <stdbool.h>

#include "pci.h"

void rng_open(const struct pci_function *pci);
void rng_start(uint64_t pace);
void rng_serve(void);

/* Stops the device in this slot of bus 0, if there is one; true once it is not used any more. */
bool rng_leave(uint8_t slot);

/* At rest it asks for nothing more; what it had asked for comes. */
void rng_rest(bool rest);
bool rng_rests(void);

/* After the machine slept: the devices must have been reset, and are opened again. */
bool rng_wake(void);

#endif
