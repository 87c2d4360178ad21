/* PCI configuration space through ports 0xcf8 and 0xcfc, and MSI-X. */
#ifndef PCI_H
#define PCI_H

#include <stdbool.h>
#include <stdint.h>

struct pci_function {
    uint8_t bus, device, function;
};

uint32_t pci_read32(const struct pci_function *pci, unsigned offset);
uint16_t pci_read16(const struct pci_function *pci, unsigned offset);
uint8_t pci_read8(const struct pci_function *pci, unsigned offset);
void pci_write16(const struct pci_function *pci, unsigned offset, uint16_t value);
void pci_write32(const struct pci_function *pci, unsigned offset, uint32_t value);

/* Calls found for every function, on bus 0 first and behind a bridge where it stands. */
void pci_scan(void (*found)(const struct pci_function *pci, uint16_t vendor, uint16_t device));

/* Begins a line on the serial port with where the function is. */
void pci_print(const struct pci_function *pci);

/* Offset of the next capability of this id after `previous` (0: the first); 0 at the end. */
unsigned pci_capability(const struct pci_function *pci, uint8_t id, unsigned previous);

/* Address of a memory BAR, mapped; 0, after saying why, when the VMM gave it none. */
uint64_t pci_bar(const struct pci_function *pci, unsigned bar);

/* Memory access and bus mastering on, INTx off. */
void pci_enable(const struct pci_function *pci);

/* Sends MSI-X entry 0 to CPU 0 as `vector`; false when the function has no MSI-X. */
bool pci_msix_enable(const struct pci_function *pci, unsigned vector);

#endif
