/* The ports of a virtio console device: a guest agent, and what sends back all it gets. */
#ifndef PORTS_H
#define PORTS_H

#include <stdbool.h>

#include "pci.h"

/* Takes the first virtio console device with several ports and leaves others alone. */
void ports_open(const struct pci_function *pci);

/* From the main loop, whenever work is pending. */
void ports_serve(void);

/* One line a port on the serial port. */
void ports_print(void);

/* Lets go of the device in this slot of bus 0, if it is there. */
void ports_leave(uint8_t slot);

/* At rest nothing more is asked for; what was received goes out, unless nobody takes it. */
void ports_rest(bool rest);
bool ports_rest_now(void);

/* After the machine slept: the device must have been reset, and is opened again. */
bool ports_wake(void);

#endif
