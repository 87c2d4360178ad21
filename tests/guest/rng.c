#include "rng.h"

#include "command_line.h"
#include "console.h"
#include "cpu.h"
#include "interrupt.h"
#include "report.h"
#include "timer.h"
#include "virtio.h"

#define REQUEST_WORDS 8
#define REQUEST_SIZE  (REQUEST_WORDS * 8)
#define STALL_SECONDS 2

struct rng {
    struct pci_function place;
    struct virtio virtio;
    struct queue queue;
    volatile bool interrupted;
    bool open, leaving, in_flight;
    uint8_t slot;
    uint64_t last_fill, last_progress;
    volatile uint64_t buffer[REQUEST_WORDS];
    uint64_t last[REQUEST_WORDS];
};

static struct rng rngs[RNG_LIMIT];
static struct rings rings[RNG_LIMIT];
static unsigned count;
static uint64_t pace;
static bool at_rest;

static void completed(unsigned vector)
{
    report->irq_rng++;
    rngs[vector - VECTOR_RNG].interrupted = true;
    work_pending = true;
}

static bool open(unsigned index)
{
    struct rng *rng = &rngs[index];
    rings[index] = (struct rings){ 0 };
    /* First, since a device may interrupt as soon as it is ready. */
    interrupt_handle(VECTOR_RNG + index, completed);
    if (!virtio_open(&rng->virtio, &rng->place, 0, VECTOR_RNG + index) ||
        !virtio_queue(&rng->virtio, &rng->queue, 0, &rings[index], 1))
        return false;
    virtio_begin(&rng->virtio);
    return true;
}

void rng_rest(bool rest)
{
    at_rest = rest;
}

bool rng_rests(void)
{
    for (unsigned i = 0; i < count; i++) {
        if (rngs[i].open && rngs[i].in_flight)
            return false;
    }
    return true;
}

bool rng_wake(void)
{
    bool well = true;
    for (unsigned i = 0; i < count; i++) {
        if (!rngs[i].open)
            continue;
        rngs[i].interrupted = false;
        well = open(i) && rngs[i].virtio.was_reset && well;
    }
    return well;
}

void rng_open(const struct pci_function *pci)
{
    unsigned index = 0;
    while (index < count && rngs[index].open)
        index++;
    if (index == RNG_LIMIT || parameter("rng", 1) == 0)
        return;
    struct rng *rng = &rngs[index];
    *rng = (struct rng){ .place = *pci };
    if (!open(index))
        return;
    rng->open = true;
    rng->slot = pci->device;
    if (index == count)
        count++;
    report->rng_devices++;
}

bool rng_leave(uint8_t slot)
{
    bool idle = true;
    for (unsigned i = 0; i < count; i++) {
        struct rng *rng = &rngs[i];
        if (!rng->open || rng->slot != slot)
            continue;
        rng->leaving = true;
        if (rng->in_flight) {
            idle = false;
            continue;
        }
        rng->open = false;
        report->rng_devices--;
    }
    return idle;
}

void rng_start(uint64_t ticks_between_fills)
{
    pace = ticks_between_fills;
    if (count == 0)
        print("rng: no device in use\n");
}

/* Whole words only. Of a short answer nothing can be told: one zero byte in 256 is right. */
static bool looks_random(struct rng *rng, uint32_t length)
{
    uint32_t words = length / 8;
    bool zero = true, same = true;
    for (uint32_t i = 0; i < words; i++) {
        uint64_t word = rng->buffer[i];
        zero = zero && word == 0;
        same = same && word == rng->last[i];
        rng->last[i] = word;
    }
    return words == 0 || (!zero && !same);
}

static void reap(unsigned index)
{
    struct rng *rng = &rngs[index];
    uint16_t head;
    uint32_t length;
    while (virtio_take(&rng->queue, &head, &length)) {
        report->rng_requests++;
        report->rng_done[index]++;
        if (head != 0 || length == 0 || length > REQUEST_SIZE || !rng->in_flight) {
            report->rng_errors++;
        } else {
            report->rng_bytes += length;
            if (!looks_random(rng, length))
                report->rng_errors++;
        }
        rng->in_flight = false;
    }
}

static void fill(unsigned index)
{
    struct rng *rng = &rngs[index];
    /* A device that answers without writing leaves zeros. */
    for (unsigned i = 0; i < REQUEST_WORDS; i++)
        rng->buffer[i] = 0;
    volatile struct descriptor *descriptor = &rings[index].descriptors[0];
    descriptor->address = (uint64_t)rng->buffer;
    descriptor->length = REQUEST_SIZE;
    descriptor->flags = DESCRIPTOR_WRITE;
    rng->in_flight = true;
    virtio_offer(&rng->queue, 0);
    virtio_notify(&rng->queue);
}

void rng_serve(void)
{
    uint64_t ticks = report->ticks;
    for (unsigned i = 0; i < count; i++) {
        struct rng *rng = &rngs[i];
        if (!rng->open)
            continue;
        if (rng->interrupted) {
            rng->interrupted = false;
            compiler_barrier();
            reap(i);
        }
        if (!at_rest && !rng->in_flight && !rng->leaving && ticks - rng->last_fill >= pace) {
            rng->last_fill = rng->last_progress = ticks;
            fill(i);
        } else if (rng->in_flight && ticks - rng->last_progress > seconds_in_ticks(STALL_SECONDS)) {
            report->rng_stalls++;
            rng->last_progress = ticks;
        }
    }
}
