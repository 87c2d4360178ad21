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

static bool give_up(struct virtio *virtio, const char *problem)
{
    if (virtio->common != 0)
        mmio_write8(virtio->common + DEVICE_STATUS, FAILED);
    pci_print(&virtio->place);
    print("%s\n", problem);
    return false;
}

void virtio_reset(struct virtio *virtio)
{
    mmio_write8(virtio->common + DEVICE_STATUS, 0);
    while (mmio_read8(virtio->common + DEVICE_STATUS) != 0)
        relax();
}

bool virtio_open(struct virtio *virtio, const struct pci_function *pci, uint32_t wanted_features,
                 unsigned vector)
{
    pci_enable(pci);
    unsigned capability;
    virtio->place = *pci;
    virtio->config = find(pci, TYPE_DEVICE, &capability);
    virtio->notify = find(pci, TYPE_NOTIFY, &capability);
    virtio->notify_multiplier = 0;
    if (virtio->notify != 0)
        virtio->notify_multiplier = pci_read32(pci, capability + CAP_NOTIFY_MULTIPLIER);
    uint64_t common = virtio->common = find(pci, TYPE_COMMON, &capability);
    if (common == 0 || virtio->notify == 0)
        return give_up(virtio, "has no modern virtio registers");

    virtio->was_reset = mmio_read8(common + DEVICE_STATUS) == 0;
    virtio_reset(virtio);
    mmio_write8(common + DEVICE_STATUS, ACKNOWLEDGE | DRIVER);

    mmio_write32(common + DEVICE_FEATURE_SELECT, 1);
    if (!(mmio_read32(common + DEVICE_FEATURE) & FEATURE_VERSION_1_HIGH))
        return give_up(virtio, "has no VIRTIO_F_VERSION_1");
    mmio_write32(common + DEVICE_FEATURE_SELECT, 0);
    virtio->features = mmio_read32(common + DEVICE_FEATURE) & wanted_features;
    mmio_write32(common + DRIVER_FEATURE_SELECT, 0);
    mmio_write32(common + DRIVER_FEATURE, virtio->features);
    mmio_write32(common + DRIVER_FEATURE_SELECT, 1);
    mmio_write32(common + DRIVER_FEATURE, FEATURE_VERSION_1_HIGH);
    mmio_write8(common + DEVICE_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    if (!(mmio_read8(common + DEVICE_STATUS) & FEATURES_OK))
        return give_up(virtio, "refuses the features");

    if (!pci_msix_enable(pci, vector))
        return give_up(virtio, "has no usable MSI-X");
    mmio_write16(common + CONFIG_VECTOR, NO_VECTOR);
    return true;
}

bool virtio_queue(struct virtio *virtio, struct queue *queue, uint16_t number,
                  volatile struct rings *rings, uint16_t descriptors)
{
    uint64_t common = virtio->common;
    *queue = (struct queue){ .rings = rings, .number = number };
    rings->available.index = rings->used.index = 0;
    mmio_write16(common + QUEUE_SELECT, number);
    queue->size = mmio_read16(common + QUEUE_SIZE_FIELD);
    if (queue->size < descriptors)
        return give_up(virtio, "has a queue that is too small");
    if (queue->size > QUEUE_SIZE)
        queue->size = QUEUE_SIZE;
    mmio_write16(common + QUEUE_SIZE_FIELD, queue->size);
    mmio_write16(common + QUEUE_VECTOR, 0);
    if (mmio_read16(common + QUEUE_VECTOR) != 0)
        return give_up(virtio, "refuses the queue's interrupt");
    write64(common + QUEUE_DESCRIPTORS, (uint64_t)rings->descriptors);
    write64(common + QUEUE_DRIVER, (uint64_t)&rings->available);
    write64(common + QUEUE_DEVICE, (uint64_t)&rings->used);
    mmio_write16(common + QUEUE_ENABLE, 1);
    uint32_t offset = mmio_read16(common + QUEUE_NOTIFY_OFFSET);
    queue->notify = virtio->notify + (uint64_t)virtio->notify_multiplier * offset;
    return true;
}

void virtio_begin(struct virtio *virtio)
{
    uint8_t status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
    mmio_write8(virtio->common + DEVICE_STATUS, status);
}

void virtio_offer(struct queue *queue, uint16_t head)
{
    queue->rings->available.ring[queue->next_available % queue->size] = head;
    queue->next_available++;
    /* The device may look at the chain as soon as the index covers it. */
    compiler_barrier();
    queue->rings->available.index = queue->next_available;
}

void virtio_notify(struct queue *queue)
{
    /* A device that asked not to be notified looks at the index once more after it asks to be
       again. That saves us only if the index is out before the flag is read. */
    full_barrier();
    if (!(queue->rings->used.flags & USED_NO_NOTIFY))
        mmio_write16(queue->notify, queue->number);
}

bool virtio_take(struct queue *queue, uint16_t *head, uint32_t *length)
{
    if (queue->rings->used.index == queue->next_used)
        return false;
    compiler_barrier();
    *head = queue->rings->used.ring[queue->next_used % queue->size].head;
    *length = queue->rings->used.ring[queue->next_used % queue->size].length;
    queue->next_used++;
    return true;
}
