#include "processors.h"

#include <stddef.h>

#include "apic.h"
#include "console.h"
#include "cpu.h"
#include "interrupt.h"
#include "report.h"
#include "timer.h"

/* Below 1 MiB, where real mode can start, and away from what firmware keeps in the first pages. */
#define TRAMPOLINE 0x8000ull

/* All processors count up on one field when they arrive. */
static uint64_t arrived = 1;
static uint64_t wanted;
static uint64_t other_timer_hz;

extern const char trampoline[], trampoline_end[];

/* Called by entry.S on every processor but CPU 0. */
void processor_main(uint32_t id);

static void tick(unsigned vector)
{
    (void)vector;
    report->cpu_ticks[lapic_id()]++;
}

void processor_main(uint32_t id)
{
    /* INIT goes to all; those nobody asked for sleep on. */
    if (id >= wanted)
        halt_forever();
    interrupt_load_table();
    lapic_init();
    lapic_timer_periodic(VECTOR_CPU_TIMER, report->lapic_hz / other_timer_hz);
    __asm__ volatile("lock incq %0" : "+m"(arrived) : : "cc");
    interrupts_on();
    /* It goes on from where a machine that slept has left off. */
    for (uint64_t loops = report->cpu_loops[id] + 1;; loops++) {
        report->cpu_loops[id] = loops;
        relax();
    }
}

void processors_start(uint64_t count)
{
    if (count > MAX_PROCESSORS) {
        print("smp: %lu processors asked for, %lu is the limit\n", count, (uint64_t)MAX_PROCESSORS);
        count = MAX_PROCESSORS;
    }
    wanted = count;
    arrived = 1;
    other_timer_hz = report->timer_hz < 10 ? 1 : report->timer_hz / 10;
    if (count > 1) {
        interrupt_handle(VECTOR_CPU_TIMER, tick);
        for (ptrdiff_t i = 0; i < trampoline_end - trampoline; i++)
            ((volatile char *)TRAMPOLINE)[i] = trampoline[i];
        lapic_send_init();
        delay_us(10000);
        lapic_send_startup(TRAMPOLINE >> 12);
        for (unsigned i = 0; i < 200 && *(volatile uint64_t *)&arrived < count; i++)
            delay_us(1000);
    }
    report->cpus = *(volatile uint64_t *)&arrived;
    if (report->cpus < count)
        print("smp: %lu of %lu processors came up\n", report->cpus, count);
}
