/* PCI hot-plug by the registers of Baton's ACPI tables, without the tables: see hotplug= in README.md. */
#ifndef HOTPLUG_H
#define HOTPLUG_H

#include "pci.h"

/* Enables the event, if the command line says where the registers are. `found` is called for what
   comes. */
void hotplug_start(void (*found)(const struct pci_function *pci, uint16_t vendor, uint16_t device));

/* After the machine slept: enables the event again. */
void hotplug_wake(void);

/* From the main loop, whenever work is pending. */
void hotplug_serve(void);

/* From now on says that it cannot let go of anything. */
void hotplug_refuse(void);

/* Writes nonsense of every size to the registers, and tells how often. */
void hotplug_hammer(void);

#endif
