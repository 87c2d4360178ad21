#include "interrupt.h"

#include "apic.h"
#include "console.h"
#include "cpu.h"
#include "report.h"

#define CODE64         0x18
#define INTERRUPT_GATE 0x8e00
#define STUB_SIZE      16
#define EXCEPTIONS     32

/* paging.c maps what is used above 4 GiB, and no machine has anything here. */
#define UNMAPPED 0x7ffffffff000

struct gate {
    uint16_t offset_low, selector, type, offset_middle;
    uint32_t offset_high, reserved;
};

struct table_pointer {
    uint16_t limit;
    uint64_t base;
} __attribute__((packed));

extern const char interrupt_stubs[];

volatile bool work_pending;

static struct gate gates[256];
static void (*handlers[256])(unsigned vector);

void interrupt_init(void)
{
    for (unsigned vector = 0; vector < 256; vector++) {
        uint64_t stub = (uint64_t)interrupt_stubs + vector * STUB_SIZE;
        gates[vector] = (struct gate){
            .offset_low = stub,
            .selector = CODE64,
            .type = INTERRUPT_GATE,
            .offset_middle = stub >> 16,
        };
    }
    interrupt_load_table();
}

void interrupt_load_table(void)
{
    struct table_pointer pointer = { sizeof(gates) - 1, (uint64_t)gates };
    __asm__ volatile("lidt %0" : : "m"(pointer));
}

void interrupt_handle(unsigned vector, void (*handler)(unsigned vector))
{
    handlers[vector] = handler;
}

void page_fault(void)
{
    *(volatile uint8_t *)UNMAPPED;
}

void triple_fault(void)
{
    struct table_pointer nothing = { 0, 0 };
    __asm__ volatile("lidt %0" : : "m"(nothing));
    page_fault();
}

/* Called by the stubs, with interrupts off. */
void interrupt(const struct frame *frame);

void interrupt(const struct frame *frame)
{
    unsigned vector = frame->vector;
    if (vector < EXCEPTIONS) {
        report->state = STATE_FAULT;
        print("FAULT vector=%lu error=%lx rip=%lx rsp=%lx cr2=%lx\n", frame->vector, frame->error,
              frame->rip, frame->rsp, read_cr2());
        halt_forever();
    }
    /* The local APIC does not hold this one in service, and wants no end of interrupt. */
    if (vector == VECTOR_SPURIOUS) {
        report->irq_spurious++;
        return;
    }
    if (handlers[vector] != NULL)
        handlers[vector](vector);
    else
        report->irq_other++;
    lapic_end_of_interrupt();
}
