#include "apic.h"

#include "cpu.h"
#include "interrupt.h"

#define LAPIC  0xfee00000
#define IOAPIC 0xfec00000

enum {
    LAPIC_ID = 0x020,
    LAPIC_TASK_PRIORITY = 0x080,
    LAPIC_EOI = 0x0b0,
    LAPIC_SPURIOUS = 0x0f0,
    LAPIC_COMMAND = 0x300,
    LAPIC_LVT_TIMER = 0x320,
    LAPIC_LVT_LINT0 = 0x350,
    LAPIC_INITIAL_COUNT = 0x380,
    LAPIC_CURRENT_COUNT = 0x390,
    LAPIC_DIVIDE = 0x3e0,
};

#define SPURIOUS_ENABLE  (1 << 8)
#define LVT_MASKED       (1 << 16)
#define LVT_PERIODIC     (1 << 17)
#define DIVIDE_BY_1      0xb
#define COMMAND_BUSY     (1 << 12)
#define COMMAND_INIT     0xc4500 /* assert, to all but self */
#define COMMAND_STARTUP  0xc4600

#define IOAPIC_MASKED    (1 << 16)

#define PIC_DATA       0x21
#define PIC_SLAVE_DATA 0xa1

void pic_mask(void)
{
    out8(PIC_DATA, 0xff);
    out8(PIC_SLAVE_DATA, 0xff);
}

bool lapic_is_off(void)
{
    return !(mmio_read32(LAPIC + LAPIC_SPURIOUS) & SPURIOUS_ENABLE);
}

void lapic_init(void)
{
    mmio_write32(LAPIC + LAPIC_TASK_PRIORITY, 0);
    mmio_write32(LAPIC + LAPIC_LVT_TIMER, LVT_MASKED);
    mmio_write32(LAPIC + LAPIC_LVT_LINT0, LVT_MASKED); /* firmware lets the PIC through here */
    mmio_write32(LAPIC + LAPIC_DIVIDE, DIVIDE_BY_1);
    mmio_write32(LAPIC + LAPIC_SPURIOUS, SPURIOUS_ENABLE | VECTOR_SPURIOUS);
}

uint32_t lapic_id(void)
{
    return mmio_read32(LAPIC + LAPIC_ID) >> 24;
}

void lapic_end_of_interrupt(void)
{
    mmio_write32(LAPIC + LAPIC_EOI, 0);
}

void lapic_timer_count_from(uint32_t count)
{
    mmio_write32(LAPIC + LAPIC_LVT_TIMER, LVT_MASKED | VECTOR_TIMER);
    mmio_write32(LAPIC + LAPIC_INITIAL_COUNT, count);
}

uint32_t lapic_timer_count(void)
{
    return mmio_read32(LAPIC + LAPIC_CURRENT_COUNT);
}

void lapic_timer_periodic(unsigned vector, uint32_t count)
{
    mmio_write32(LAPIC + LAPIC_LVT_TIMER, LVT_PERIODIC | vector);
    mmio_write32(LAPIC + LAPIC_INITIAL_COUNT, count);
}

static void send(uint32_t command)
{
    mmio_write32(LAPIC + LAPIC_COMMAND, command);
    while (mmio_read32(LAPIC + LAPIC_COMMAND) & COMMAND_BUSY)
        relax();
}

void lapic_send_init(void)
{
    send(COMMAND_INIT);
}

void lapic_send_startup(uint8_t page)
{
    send(COMMAND_STARTUP | page);
}

static void ioapic_write(uint32_t index, uint32_t value)
{
    mmio_write32(IOAPIC, index);
    mmio_write32(IOAPIC + 0x10, value);
}

bool ioapic_is_masked(unsigned irq)
{
    mmio_write32(IOAPIC, 0x10 + 2 * irq);
    return mmio_read32(IOAPIC + 0x10) & IOAPIC_MASKED;
}

void ioapic_route(unsigned irq, unsigned vector)
{
    ioapic_write(0x10 + 2 * irq + 1, 0);
    ioapic_write(0x10 + 2 * irq, vector);
}
