#include "blk.h"

#include "block.h"
#include "command_line.h"
#include "console.h"
#include "cpu.h"
#include "interrupt.h"
#include "report.h"
#include "timer.h"
#include "virtio.h"

#define FEATURE_READ_ONLY (1 << 5)
#define FEATURE_FLUSH     (1 << 9)

enum { REQUEST_READ = 0, REQUEST_WRITE = 1, REQUEST_FLUSH = 4 };

#define SECTORS_PER_BLOCK (BLOCK_SIZE / 512)
#define FEWEST_BLOCKS     16
#define STALL_SECONDS     2

/* One round of the workload: writes, a flush, reads. */
#define ROUND_WRITES 16
#define ROUND_READS  4
#define ROUND        (ROUND_WRITES + 1 + ROUND_READS)

/* Slot n owns descriptors 3n to 3n+2 and all of this, so nothing is ever allocated. */
#define SLOT_DESCRIPTORS 3
#define DESCRIPTORS      (BLOCK_SLOTS * SLOT_DESCRIPTORS)
struct request {
    uint32_t type, reserved;
    uint64_t sector;
    volatile uint8_t status;
};
#define STATUS_PENDING 0xff

static struct pci_function place;
static struct virtio virtio;
static struct queue queue;
static struct rings rings;
static struct request requests[BLOCK_SLOTS];
static uint64_t write_buffers[BLOCK_SLOTS][BLOCK_WORDS] __attribute__((aligned(BLOCK_SIZE)));
static uint64_t read_buffers[BLOCK_SLOTS][BLOCK_WORDS] __attribute__((aligned(BLOCK_SIZE)));
static uint64_t expected[BLOCK_WORDS];

/* Every block written, in the order of their first writes. */
static uint32_t written[BLOCK_LIMIT];
static uint32_t written_count;

static volatile bool interrupted;
static bool verify_wanted, leaving;
static uint8_t at_slot;
static uint32_t in_flight, step, last_sequence, verify_next;
static uint64_t random, pace, last_fill, last_progress;

static void completed(unsigned vector)
{
    (void)vector;
    report->irq_blk++;
    interrupted = true;
    work_pending = true;
}

static bool open(void)
{
    uint32_t features = FEATURE_READ_ONLY | FEATURE_FLUSH;
    virtio = (struct virtio){ 0 };
    rings = (struct rings){ 0 };
    /* First, since a device may interrupt as soon as it is ready. */
    interrupt_handle(VECTOR_BLK, completed);
    if (!virtio_open(&virtio, &place, features, VECTOR_BLK) ||
        !virtio_queue(&virtio, &queue, 0, &rings, DESCRIPTORS))
        return false;
    virtio_begin(&virtio);
    return true;
}

bool blk_wake(void)
{
    if (report->blk_state == BLK_ABSENT)
        return true;
    interrupted = false;
    return open() && virtio.was_reset;
}

void blk_open(const struct pci_function *pci)
{
    uint64_t sectors = parameter("blk", UINT64_MAX);
    if (report->blk_state != BLK_ABSENT || sectors == 0)
        return;
    place = *pci;
    if (!open())
        return;
    if (virtio.config == 0) {
        print("blk: the disk does not tell its size; not used\n");
        return;
    }
    uint64_t capacity = mmio_read32(virtio.config) | (uint64_t)mmio_read32(virtio.config + 4) << 32;
    if (sectors > capacity)
        sectors = capacity;
    uint64_t blocks = sectors / SECTORS_PER_BLOCK;
    if (blocks > BLOCK_LIMIT)
        blocks = BLOCK_LIMIT;
    if (blocks < FEWEST_BLOCKS || (virtio.features & FEATURE_READ_ONLY)) {
        print("blk: the disk is read-only or has fewer than 16 blocks of 4 KiB; not used\n");
        return;
    }
    for (unsigned i = 0; i < BLOCK_SLOTS; i++)
        block_prepare(write_buffers[i]);
    block_prepare(expected);
    /* Of another disk, if there was one before, nothing is known. */
    while (written_count > 0)
        report->blk_sequence[written[--written_count]] = 0;
    leaving = false;
    at_slot = pci->device;
    report->blk_blocks = blocks;
    report->blk_run = rdtsc();
    report->blk_state = BLK_PAUSED;
}

void blk_start(uint64_t ticks_between_fills)
{
    pace = ticks_between_fills;
    if (report->blk_state == BLK_ABSENT)
        print("blk: no disk in use\n");
    else
        blk_resume();
}

/* Knuth's MMIX generator; its low bits repeat soon. */
static uint32_t pick(uint32_t below)
{
    random = random * 6364136223846793005 + 1442695040888963407;
    return (random >> 33) % below;
}

static bool busy(uint32_t block)
{
    for (unsigned i = 0; i < BLOCK_SLOTS; i++) {
        if (report->blk_slot[i].operation != SLOT_IDLE && report->blk_slot[i].block == block)
            return true;
    }
    return false;
}

static void submit(unsigned slot, uint32_t type, uint32_t block, void *data)
{
    struct request *request = &requests[slot];
    request->type = type;
    request->sector = type == REQUEST_FLUSH ? 0 : (uint64_t)block * SECTORS_PER_BLOCK;
    request->status = STATUS_PENDING;

    unsigned first = slot * SLOT_DESCRIPTORS, last = first + 2;
    volatile struct descriptor *chain = rings.descriptors;
    chain[first].address = (uint64_t)request;
    chain[first].length = 16;
    chain[first].flags = DESCRIPTOR_NEXT;
    chain[first].next = data == NULL ? last : first + 1;
    chain[first + 1].address = (uint64_t)data;
    chain[first + 1].length = BLOCK_SIZE;
    chain[first + 1].flags = DESCRIPTOR_NEXT | (type == REQUEST_READ ? DESCRIPTOR_WRITE : 0);
    chain[first + 1].next = last;
    chain[last].address = (uint64_t)&request->status;
    chain[last].length = 1;
    chain[last].flags = DESCRIPTOR_WRITE;
    virtio_offer(&queue, first);
    in_flight++;
}

static void note(unsigned slot, uint32_t operation, uint32_t block, uint32_t sequence)
{
    report->blk_slot[slot].block = block;
    report->blk_slot[slot].sequence = sequence;
    report->blk_slot[slot].operation = operation;
}

static void submit_write(unsigned slot)
{
    uint32_t block;
    do
        block = pick(report->blk_blocks);
    while (busy(block));
    uint32_t acknowledged = report->blk_sequence[block];
    if (acknowledged == 0)
        written[written_count++] = block;
    uint32_t sequence = ++last_sequence;
    /* Noted before it is offered: from then on the disk may hold either. */
    note(slot, SLOT_WRITE, block, sequence);
    report->blk_sequence[block] = acknowledged | BLOCK_IN_FLIGHT;
    block_stamp(write_buffers[slot], block, sequence, report->blk_run);
    submit(slot, REQUEST_WRITE, block, write_buffers[slot]);
}

/* False when the block is being written, or a write of it failed. */
static bool submit_read(unsigned slot, uint32_t block)
{
    uint32_t sequence = report->blk_sequence[block];
    if (sequence & BLOCK_IN_FLIGHT)
        return false;
    note(slot, SLOT_READ, block, sequence);
    block_spoil(read_buffers[slot], report->blk_state == BLK_VERIFYING);
    submit(slot, REQUEST_READ, block, read_buffers[slot]);
    return true;
}

static void submit_next(unsigned slot)
{
    uint32_t now = step++ % ROUND;
    if (now < ROUND_WRITES) {
        submit_write(slot);
    } else if (now > ROUND_WRITES) {
        submit_read(slot, written[pick(written_count)]);
    } else if (virtio.features & FEATURE_FLUSH) {
        note(slot, SLOT_FLUSH, UINT32_MAX, 0);
        submit(slot, REQUEST_FLUSH, 0, NULL);
    }
}

static void finish(unsigned slot)
{
    uint32_t operation = report->blk_slot[slot].operation;
    uint32_t block = report->blk_slot[slot].block;
    uint32_t sequence = report->blk_slot[slot].sequence;
    bool failed = requests[slot].status != 0;
    bool verifying = report->blk_state == BLK_VERIFYING;

    if (failed)
        report->blk_errors++;
    if (operation == SLOT_WRITE) {
        report->blk_writes++;
        if (!failed)
            report->blk_sequence[block] = sequence;
    } else if (operation == SLOT_READ) {
        block_stamp(expected, block, sequence, report->blk_run);
        bool matches = !failed && block_matches(read_buffers[slot], expected, verifying);
        report->blk_reads++;
        if (!failed && !matches)
            report->blk_mismatches++;
        if (verifying)
            report->blk_verified++;
        if (verifying && !matches)
            report->blk_bad++;
    } else {
        report->blk_flushes++;
    }
    report->blk_slot[slot].operation = SLOT_IDLE;
    in_flight--;
}

/* Only after an interrupt: one that is lost must show as a stall. */
static void reap(void)
{
    uint16_t head;
    uint32_t length;
    while (virtio_take(&queue, &head, &length)) {
        unsigned slot = head / SLOT_DESCRIPTORS;
        if (slot >= BLOCK_SLOTS || report->blk_slot[slot].operation == SLOT_IDLE) {
            report->blk_errors++;
            continue;
        }
        finish(slot);
        last_progress = report->ticks;
    }
}

static void fill(void)
{
    bool offered = false;
    if (in_flight == 0)
        last_progress = report->ticks;
    for (unsigned slot = 0; slot < BLOCK_SLOTS; slot++) {
        if (report->blk_slot[slot].operation != SLOT_IDLE)
            continue;
        if (report->blk_state == BLK_RUNNING)
            submit_next(slot);
        else if (verify_next == written_count || !submit_read(slot, written[verify_next++]))
            continue;
        offered = true;
    }
    if (offered)
        virtio_notify(&queue);
}

/* From draining to paused or verifying, from verifying to paused, once nothing is in flight. */
static void settle(void)
{
    if (report->blk_state == BLK_DRAINING && verify_wanted) {
        verify_next = 0;
        report->blk_verified = 0;
        report->blk_bad = 0;
        report->blk_state = BLK_VERIFYING;
    } else if (report->blk_state == BLK_DRAINING) {
        report->blk_state = BLK_PAUSED;
    } else if (report->blk_state == BLK_VERIFYING && verify_next == written_count) {
        report->blk_state = BLK_PAUSED;
        print("VERIFIED %lu blocks bad=%lu\n", report->blk_verified, report->blk_bad);
    }
}

void blk_serve(void)
{
    if (report->blk_state == BLK_ABSENT)
        return;
    if (interrupted) {
        interrupted = false;
        compiler_barrier();
        reap();
    }
    if (in_flight == 0)
        settle();

    uint64_t ticks = report->ticks;
    if (in_flight > 0 && ticks - last_progress > seconds_in_ticks(STALL_SECONDS)) {
        report->blk_stalls++;
        last_progress = ticks;
    }
    bool due = report->blk_state == BLK_RUNNING && ticks - last_fill >= pace;
    if (due || report->blk_state == BLK_VERIFYING) {
        last_fill = ticks;
        fill();
    }
}

static void drain(bool verify)
{
    verify_wanted = verify;
    if (report->blk_state != BLK_ABSENT)
        report->blk_state = BLK_DRAINING;
    else if (verify)
        print("VERIFIED 0 blocks bad=0\n");
}

void blk_pause(void)
{
    drain(false);
}

void blk_quiesce(void)
{
    drain(true);
}

void blk_resume(void)
{
    if (report->blk_state == BLK_ABSENT)
        return;
    report->blk_state = BLK_RUNNING;
}

bool blk_leave(uint8_t slot)
{
    if (report->blk_state == BLK_ABSENT || at_slot != slot)
        return true;
    if (!leaving) {
        leaving = true;
        blk_quiesce();
    }
    if (report->blk_state != BLK_PAUSED)
        return false;
    report->blk_state = BLK_ABSENT;
    return true;
}
