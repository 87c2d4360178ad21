/* A modern virtio-pci device with split virtqueues and one MSI-X interrupt (VIRTIO 1.3). */
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
    struct pci_function place;
    uint64_t common;        /* address of the common configuration */
    uint64_t config;        /* address of the device's own configuration, 0 if it has none */
    uint64_t notify;        /* where a queue's offset, times this, is to be notified */
    uint32_t notify_multiplier;
    uint32_t features;      /* of the first 32, those accepted */
    bool was_reset;         /* before it was opened */
};

struct queue {
    volatile struct rings *rings;
    uint64_t notify;        /* address to write its number to */
    uint16_t number, size;
    uint16_t next_available, next_used;
};

/*
 * In this order: resets the device and accepts VIRTIO_F_VERSION_1 and of the first 32 features
 * those wanted and offered, with interrupt `vector`; sets up each queue, of `descriptors` or more;
 * lets the device begin. The first two are false, after saying why, when they cannot.
 */
bool virtio_open(struct virtio *virtio, const struct pci_function *pci, uint32_t wanted_features,
                 unsigned vector);
bool virtio_queue(struct virtio *virtio, struct queue *queue, uint16_t number,
                  volatile struct rings *rings, uint16_t descriptors);
void virtio_begin(struct virtio *virtio);

/* From then on the device touches no memory. */
void virtio_reset(struct virtio *virtio);

/* Offers the chain that begins at descriptor `head`, and later tells the device once for all. */
void virtio_offer(struct queue *queue, uint16_t head);
void virtio_notify(struct queue *queue);

/* The next chain the device is done with, and how many bytes it wrote. */
bool virtio_take(struct queue *queue, uint16_t *head, uint32_t *length);

#endif
