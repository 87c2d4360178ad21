#include "hotplug.h"

#include "apic.h"
#include "blk.h"
#include "command_line.h"
#include "console.h"
#include "cpu.h"
#include "interrupt.h"
#include "ports.h"
#include "rng.h"

#define SCI           9
#define GPE0_DEFAULT  0x620
#define GPE0_SIZE     4
#define GPE_ENABLE    2 /* behind the status */
#define EVENT         (1 << 1)
#define REGISTERS     16

enum { UP = 0, DOWN = 4, EJECT = 8, STATUS = 12 };

/* _OST: an ejection request, and that the device is busy. */
#define OST_EJECTION  (0x03 << 8)
#define OST_BUSY      (0x81 << 16)

#define COMMAND_MEMORY 0x0002
#define BAR0           0x10
#define BARS           6
#define BAR_IO         0x1
#define BAR_TYPE       0x6
#define BAR_64_BIT     0x4

/* Where a slot's BARs go: in the window below 4 GiB, which is mapped from the start, and behind what
   the VMM itself places there. */
#define WINDOW      0xd0000000u
#define SLOT_WINDOW 0x200000u

#define HAMMERS 20000

static uint16_t gpe, base;
static bool refusing;
static volatile bool told;
static uint32_t leaving;
static void (*on_found)(const struct pci_function *pci, uint16_t vendor, uint16_t device);

static void event(unsigned vector)
{
    (void)vector;
    /* Cleared first: what changes from here on is a new event. */
    out8(gpe, EVENT);
    told = true;
    work_pending = true;
}

void hotplug_start(void (*found)(const struct pci_function *, uint16_t, uint16_t))
{
    base = parameter("hotplug", 0);
    if (base == 0)
        return;
    gpe = parameter("gpe0", GPE0_DEFAULT);
    on_found = found;
    interrupt_handle(VECTOR_SCI, event);
    hotplug_wake();
}

void hotplug_wake(void)
{
    if (base == 0)
        return;
    ioapic_route(SCI, VECTOR_SCI);
    out8(gpe + GPE_ENABLE, EVENT);
}

/* Gives every memory BAR a place, as a system does with a device that comes. */
static void place(const struct pci_function *pci)
{
    uint32_t address = WINDOW + pci->device * SLOT_WINDOW;
    for (unsigned bar = 0; bar < BARS; bar++) {
        unsigned offset = BAR0 + 4 * bar;
        pci_write32(pci, offset, UINT32_MAX);
        uint32_t mask = pci_read32(pci, offset);
        bool wide = (mask & BAR_TYPE) == BAR_64_BIT;
        if (mask == 0 || (mask & BAR_IO))
            continue;
        uint32_t size = -(mask & ~0xfu);
        address = (address + size - 1) & -size;
        pci_write32(pci, offset, address);
        if (wide)
            pci_write32(pci, BAR0 + 4 * ++bar, 0);
        address += size;
    }
    pci_write16(pci, 0x04, pci_read16(pci, 0x04) | COMMAND_MEMORY);
}

static void arrive(uint8_t slot)
{
    struct pci_function pci = { 0, slot, 0 };
    uint32_t id = pci_read32(&pci, 0);
    if (id == UINT32_MAX)
        return;
    print("arrived: slot %lu %lx\n", (uint64_t)slot, (uint64_t)id);
    /* A bridge has other registers there. */
    if ((pci_read8(&pci, 0x0e) & 0x7f) != 0)
        return;
    place(&pci);
    on_found(&pci, id & 0xffff, id >> 16);
}

static void leave(uint8_t slot)
{
    bool idle = blk_leave(slot);
    idle = rng_leave(slot) && idle;
    if (!idle)
        return;
    ports_leave(slot);
    leaving &= ~(1u << slot);
    out32(base + EJECT, 1u << slot);
    struct pci_function pci = { 0, slot, 0 };
    bool gone = pci_read32(&pci, 0) == UINT32_MAX;
    print("left: slot %lu %s\n", (uint64_t)slot, gone ? "gone" : "still there");
}

void hotplug_serve(void)
{
    if (told) {
        told = false;
        compiler_barrier();
        uint32_t up = in32(base + UP);
        uint32_t down = in32(base + DOWN);
        for (uint8_t slot = 1; slot < 32; slot++) {
            if (up & 1u << slot)
                arrive(slot);
            if ((down & 1u << slot) && refusing) {
                out32(base + STATUS, slot | OST_EJECTION | OST_BUSY);
                down &= ~(1u << slot);
            }
        }
        leaving |= down;
    }
    for (uint8_t slot = 1; leaving != 0 && slot < 32; slot++) {
        if (leaving & 1u << slot)
            leave(slot);
    }
}

void hotplug_refuse(void)
{
    refusing = true;
}

void hotplug_hammer(void)
{
    uint64_t random = rdtsc();
    for (unsigned i = 0; i < HAMMERS; i++) {
        random = random * 6364136223846793005 + 1442695040888963407;
        uint32_t value = random >> 32;
        uint16_t port = i & 1 ? gpe + (value >> 8) % GPE0_SIZE : base + (value >> 8) % REGISTERS;
        switch (value % 6) {
        case 0: out8(port, value); break;
        case 1: out16(port, value); break;
        case 2: out32(port, value); break;
        case 3: in8(port); break;
        case 4: in16(port); break;
        default: in32(port); break;
        }
    }
    print("hammered: %lu\n", (uint64_t)HAMMERS);
}
