#include "pci.h"

#include "apic.h"
#include "console.h"
#include "cpu.h"
#include "paging.h"

#define CONFIG_ADDRESS 0xcf8
#define CONFIG_DATA    0xcfc

enum {
    VENDOR = 0x00,
    COMMAND = 0x04,
    STATUS = 0x06,
    HEADER_TYPE = 0x0e,
    BAR0 = 0x10,
    SECONDARY_BUS = 0x19,
    CAPABILITIES = 0x34,
};

#define COMMAND_MEMORY       0x0002
#define COMMAND_BUS_MASTER   0x0004
#define COMMAND_NO_INTX      0x0400
#define STATUS_CAPABILITIES  0x0010
#define HEADER_MULTIFUNCTION 0x80
#define HEADER_BRIDGE        0x01

#define BAR_IO     0x1
#define BAR_TYPE   0x6
#define BAR_64_BIT 0x4

#define CAPABILITY_MSIX 0x11
#define MSIX_CONTROL    2
#define MSIX_TABLE      4
#define MSIX_ENABLE     0x8000
#define MSIX_MASK_ALL   0x4000

/* A BAR is not asked for its size, which would unmap it for a moment. No virtio BAR is larger. */
#define BAR_MAPPED_SIZE 0x200000

static void select(const struct pci_function *pci, unsigned offset)
{
    out32(CONFIG_ADDRESS, 0x80000000u | (uint32_t)pci->bus << 16 | (uint32_t)pci->device << 11 |
                              (uint32_t)pci->function << 8 | (offset & ~3u));
}

uint32_t pci_read32(const struct pci_function *pci, unsigned offset)
{
    select(pci, offset);
    return in32(CONFIG_DATA);
}

uint16_t pci_read16(const struct pci_function *pci, unsigned offset)
{
    return pci_read32(pci, offset) >> (8 * (offset & 2));
}

uint8_t pci_read8(const struct pci_function *pci, unsigned offset)
{
    return pci_read32(pci, offset) >> (8 * (offset & 3));
}

void pci_write16(const struct pci_function *pci, unsigned offset, uint16_t value)
{
    select(pci, offset);
    out16(CONFIG_DATA + (offset & 2), value);
}

void pci_write32(const struct pci_function *pci, unsigned offset, uint32_t value)
{
    select(pci, offset);
    out32(CONFIG_DATA, value);
}

void pci_print(const struct pci_function *pci)
{
    print("pci %lx:%lx.%lx: ", (uint64_t)pci->bus, (uint64_t)pci->device, (uint64_t)pci->function);
}

static void scan_bus(uint8_t bus, void (*found)(const struct pci_function *, uint16_t, uint16_t))
{
    for (uint8_t device = 0; device < 32; device++) {
        uint8_t functions = 1;
        for (uint8_t function = 0; function < functions; function++) {
            struct pci_function pci = { bus, device, function };
            uint32_t id = pci_read32(&pci, VENDOR);
            if (id == UINT32_MAX)
                continue;
            uint8_t header = pci_read8(&pci, HEADER_TYPE);
            if (header & HEADER_MULTIFUNCTION)
                functions = 8;
            found(&pci, id & 0xffff, id >> 16);
            if ((header & ~HEADER_MULTIFUNCTION) != HEADER_BRIDGE)
                continue;
            uint8_t behind = pci_read8(&pci, SECONDARY_BUS);
            if (behind > bus)
                scan_bus(behind, found);
        }
    }
}

void pci_scan(void (*found)(const struct pci_function *pci, uint16_t vendor, uint16_t device))
{
    scan_bus(0, found);
}

unsigned pci_capability(const struct pci_function *pci, uint8_t id, unsigned previous)
{
    if (!(pci_read16(pci, STATUS) & STATUS_CAPABILITIES))
        return 0;
    unsigned offset = pci_read8(pci, previous == 0 ? CAPABILITIES : previous + 1) & ~3u;
    while (offset != 0 && pci_read8(pci, offset) != id)
        offset = pci_read8(pci, offset + 1) & ~3u;
    return offset;
}

uint64_t pci_bar(const struct pci_function *pci, unsigned bar)
{
    uint32_t low = pci_read32(pci, BAR0 + 4 * bar);
    uint64_t address = low & ~0xfu;
    if ((low & BAR_TYPE) == BAR_64_BIT)
        address |= (uint64_t)pci_read32(pci, BAR0 + 4 * bar + 4) << 32;
    if ((low & BAR_IO) || address == 0) {
        pci_print(pci);
        print("BAR %lu has no memory address\n", (uint64_t)bar);
        return 0;
    }
    if (!map(address, BAR_MAPPED_SIZE, MEMORY_DEVICE)) {
        pci_print(pci);
        print("no page tables left for the BAR at 0x%lx\n", address);
        return 0;
    }
    return address;
}

void pci_enable(const struct pci_function *pci)
{
    uint16_t on = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_NO_INTX;
    pci_write16(pci, COMMAND, pci_read16(pci, COMMAND) | on);
}

bool pci_msix_enable(const struct pci_function *pci, unsigned vector)
{
    unsigned capability = pci_capability(pci, CAPABILITY_MSIX, 0);
    if (capability == 0)
        return false;
    uint32_t table = pci_read32(pci, capability + MSIX_TABLE);
    uint64_t bar = pci_bar(pci, table & 7);
    if (bar == 0)
        return false;
    uint64_t entry = bar + (table & ~7u);

    uint16_t control = pci_read16(pci, capability + MSIX_CONTROL);
    pci_write16(pci, capability + MSIX_CONTROL, control | MSIX_ENABLE | MSIX_MASK_ALL);
    mmio_write32(entry, MSI_ADDRESS);
    mmio_write32(entry + 4, 0);
    mmio_write32(entry + 8, vector);
    mmio_write32(entry + 12, 0);
    pci_write16(pci, capability + MSIX_CONTROL, (control | MSIX_ENABLE) & ~MSIX_MASK_ALL);
    return true;
}
