/* Vectors and what happens on them. */
#ifndef INTERRUPT_H
#define INTERRUPT_H

#include <stdbool.h>
#include <stdint.h>

/*
 * The higher the number the higher the priority. Those that can come most often stand lowest: on
 * some hosts a busy one keeps those below it waiting for long. That is the timer above all, whose
 * next interrupt is there before the last one is served when the host is slow; what devices do is
 * paced by its ticks, so that they leave it room.
 */
enum {
    VECTOR_CPU_TIMER = 0x20, /* of every processor but CPU 0 */
    VECTOR_TIMER = 0x21,
    VECTOR_RNG = 0x30, /* and up, one a device */
    VECTOR_PORTS = 0x50,
    VECTOR_BLK = 0x60,
    VECTOR_SERIAL = 0x70,
    VECTOR_SCI = 0x71,
    VECTOR_SPURIOUS = 0xff,
};

/* What a stub and the processor leave on the stack. */
struct frame {
    uint64_t vector, error, rip, cs, rflags, rsp, ss;
};

/*
 * Handlers only note what happened and set this; the main loop, which looks at nothing else, then
 * serves everything. So the RAM walk stays a dozen instructions a page.
 */
extern volatile bool work_pending;

void interrupt_init(void);

/* Makes the calling processor use the table that interrupt_init filled. */
void interrupt_load_table(void);

void interrupt_handle(unsigned vector, void (*handler)(unsigned vector));

/* Reads from an address that is not mapped: says FAULT on the serial port and halts. */
void page_fault(void);

/* The same without an interrupt table: the processor shuts down. */
void triple_fault(void);

#endif
