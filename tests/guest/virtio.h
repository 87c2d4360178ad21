/* A modern virtio-pci device with one split virtqueue and one MSI-X interrupt (VIRTIO 1.3). */
#ifndef VIRTIO_H
#define VIRTIO_H

#include <stdbool.h>
#include <stdint.h>

#include "pci.h"

/* At most; a device may have shorter queues. */
#define QUEUE_SIZE 16

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};
enum { DESCRIPTOR_NEXT = 1, DESCRIPTOR_WRITE = 2 };

/* What the device reads and writes. The alignment keeps it in one page. */
struct rings {
    struct descriptor descriptors[QUEUE_SIZE];
    struct {
        uint16_t flags, index, ring[QUEUE_SIZE];
    } available;
    struct {
        uint16_t flags, index;
        struct {
            uint32_t head, length;
        } ring[QUEUE_SIZE];
    } used __attribute__((aligned(4)));
} __attribute__((aligned(512)));

struct virtio {
    volatile struct rings *rings;
    uint64_t config;        /* address of the device's own configuration, 0 if it has none */
    uint64_t notify;        /* address to write 0, the queue's number, to */
    uint32_t features;      /* of the first 32, those accepted */
    uint16_t size;          /* of the queue */
    uint16_t next_available, next_used;
    bool was_reset;         /* before it was opened */
};

/*
 * Resets the device, accepts VIRTIO_F_VERSION_1 and of the first 32 features those wanted and
 * offered, and sets up queue 0, of `descriptors` or more, with interrupt `vector`. False, after
 * saying why, when it cannot.
 */
bool virtio_open(struct virtio *virtio, const struct pci_function *pci, uint32_t wanted_features,
                 volatile struct rings *rings, uint16_t descriptors, unsigned vector);

/* Offers the chain that begins at descriptor `head`, and later tells the device once for all. */
void virtio_offer(struct virtio *virtio, uint16_t head);
void virtio_notify(struct virtio *virtio);

/* The next chain the device is done with, and how many bytes it wrote. */
bool virtio_take(struct virtio *virtio, uint16_t *head, uint32_t *length);

#endif
