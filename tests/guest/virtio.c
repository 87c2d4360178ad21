#include "virtio.h"

#include "console.h"
#include "cpu.h"

#define CAPABILITY_VENDOR 0x09

/* Offsets in the PCI capability, and its types. */
enum { CAP_TYPE = 3, CAP_BAR = 4, CAP_OFFSET = 8, CAP_NOTIFY_MULTIPLIER = 16 };
enum { TYPE_COMMON = 1, TYPE_NOTIFY = 2, TYPE_DEVICE = 4 };

/* Offsets in the common configuration. */
enum {
    DEVICE_FEATURE_SELECT = 0x00,
    DEVICE_FEATURE = 0x04,
    DRIVER_FEATURE_SELECT = 0x08,
    DRIVER_FEATURE = 0x0c,
    CONFIG_VECTOR = 0x10,
    DEVICE_STATUS = 0x14,
    QUEUE_SELECT = 0x16,
    QUEUE_SIZE_FIELD = 0x18,
    QUEUE_VECTOR = 0x1a,
    QUEUE_ENABLE = 0x1c,
    QUEUE_NOTIFY_OFFSET = 0x1e,
    QUEUE_DESCRIPTORS = 0x20,
    QUEUE_DRIVER = 0x28,
    QUEUE_DEVICE = 0x30,
};

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, FAILED = 0x80 };

#define FEATURE_VERSION_1_HIGH 1 /* bit 32 */
#define NO_VECTOR              0xffff
#define USED_NO_NOTIFY         1

static uint64_t find(const struct pci_function *pci, uint8_t type, unsigned *capability)
{
    unsigned offset = 0;
    while ((offset = pci_capability(pci, CAPABILITY_VENDOR, offset)) != 0) {
        if (pci_read8(pci, offset + CAP_TYPE) != type)
            continue;
        uint64_t bar = pci_bar(pci, pci_read8(pci, offset + CAP_BAR));
        *capability = offset;
        return bar == 0 ? 0 : bar + pci_read32(pci, offset + CAP_OFFSET);
    }
    return 0;
}

static void write64(uint64_t address, uint64_t value)
{
    mmio_write32(address, value);
    mmio_write32(address + 4, value >> 32);
}

static const char *set_up(struct virtio *virtio, const struct pci_function *pci, uint64_t common,
                          uint32_t wanted_features, uint16_t descriptors, unsigned vector)
{
    virtio->was_reset = mmio_read8(common + DEVICE_STATUS) == 0;
    mmio_write8(common + DEVICE_STATUS, 0);
    while (mmio_read8(common + DEVICE_STATUS) != 0)
        relax();
    mmio_write8(common + DEVICE_STATUS, ACKNOWLEDGE | DRIVER);

    mmio_write32(common + DEVICE_FEATURE_SELECT, 1);
    if (!(mmio_read32(common + DEVICE_FEATURE) & FEATURE_VERSION_1_HIGH))
        return "has no VIRTIO_F_VERSION_1";
    mmio_write32(common + DEVICE_FEATURE_SELECT, 0);
    virtio->features = mmio_read32(common + DEVICE_FEATURE) & wanted_features;
    mmio_write32(common + DRIVER_FEATURE_SELECT, 0);
    mmio_write32(common + DRIVER_FEATURE, virtio->features);
    mmio_write32(common + DRIVER_FEATURE_SELECT, 1);
    mmio_write32(common + DRIVER_FEATURE, FEATURE_VERSION_1_HIGH);
    mmio_write8(common + DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if (!(mmio_read8(common + DEVICE_STATUS) & FEATURES_OK))
        return "refuses the features";

    if (!pci_msix_enable(pci, vector))
        return "has no usable MSI-X";
    mmio_write16(common + CONFIG_VECTOR, NO_VECTOR);
    mmio_write16(common + QUEUE_SELECT, 0);
    virtio->size = mmio_read16(common + QUEUE_SIZE_FIELD);
    if (virtio->size < descriptors)
        return "has a queue that is too small";
    if (virtio->size > QUEUE_SIZE)
        virtio->size = QUEUE_SIZE;
    mmio_write16(common + QUEUE_SIZE_FIELD, virtio->size);
    mmio_write16(common + QUEUE_VECTOR, 0);
    if (mmio_read16(common + QUEUE_VECTOR) != 0)
        return "refuses the queue's interrupt";
    write64(common + QUEUE_DESCRIPTORS, (uint64_t)virtio->rings->descriptors);
    write64(common + QUEUE_DRIVER, (uint64_t)&virtio->rings->available);
    write64(common + QUEUE_DEVICE, (uint64_t)&virtio->rings->used);
    mmio_write16(common + QUEUE_ENABLE, 1);
    mmio_write8(common + DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    return NULL;
}

bool virtio_open(struct virtio *virtio, const struct pci_function *pci, uint32_t wanted_features,
                 volatile struct rings *rings, uint16_t descriptors, unsigned vector)
{
    pci_enable(pci);
    unsigned capability;
    virtio->rings = rings;
    virtio->next_available = virtio->next_used = 0;
    rings->available.index = rings->used.index = 0;
    virtio->config = find(pci, TYPE_DEVICE, &capability);
    virtio->notify = find(pci, TYPE_NOTIFY, &capability);
    uint32_t multiplier = 0;
    if (virtio->notify != 0)
        multiplier = pci_read32(pci, capability + CAP_NOTIFY_MULTIPLIER);
    uint64_t common = find(pci, TYPE_COMMON, &capability);

    const char *problem = "has no modern virtio registers";
    if (common != 0 && virtio->notify != 0) {
        problem = set_up(virtio, pci, common, wanted_features, descriptors, vector);
        if (problem != NULL)
            mmio_write8(common + DEVICE_STATUS, FAILED);
    }
    if (problem != NULL) {
        pci_print(pci);
        print("%s\n", problem);
        return false;
    }
    virtio->notify += (uint64_t)multiplier * mmio_read16(common + QUEUE_NOTIFY_OFFSET);
    return true;
}

void virtio_offer(struct virtio *virtio, uint16_t head)
{
    virtio->rings->available.ring[virtio->next_available % virtio->size] = head;
    virtio->next_available++;
    /* The device may look at the chain as soon as the index covers it. */
    compiler_barrier();
    virtio->rings->available.index = virtio->next_available;
}

void virtio_notify(struct virtio *virtio)
{
    /* A device that asked not to be notified looks at the index once more after it asks to be
       again. That saves us only if the index is out before the flag is read. */
    full_barrier();
    if (!(virtio->rings->used.flags & USED_NO_NOTIFY))
        mmio_write16(virtio->notify, 0);
}

bool virtio_take(struct virtio *virtio, uint16_t *head, uint32_t *length)
{
    if (virtio->rings->used.index == virtio->next_used)
        return false;
    compiler_barrier();
    *head = virtio->rings->used.ring[virtio->next_used % virtio->size].head;
    *length = virtio->rings->used.ring[virtio->next_used % virtio->size].length;
    virtio->next_used++;
    return true;
}
