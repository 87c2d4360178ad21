/* The interrupt controllers: the local APICs, the IOAPIC, and the PIC, which is shut up. */
#ifndef APIC_H
#define APIC_H

#include <stdbool.h>
#include <stdint.h>

void pic_mask(void);

/* Whether they are as at power-on: the calling processor's local APIC, an input of the IOAPIC. */
bool lapic_is_off(void);
bool ioapic_is_masked(unsigned irq);

/* For the calling processor. */
void lapic_init(void);
uint32_t lapic_id(void);
void lapic_end_of_interrupt(void);

/* The timer counts down from here, without an interrupt; lapic_timer_count tells what is left. */
void lapic_timer_count_from(uint32_t count);
uint32_t lapic_timer_count(void);
void lapic_timer_periodic(unsigned vector, uint32_t count);

/* To every processor but the calling one; they start at page * 4 KiB in real mode. */
void lapic_send_init(void);
void lapic_send_startup(uint8_t page);

/* Where a message-signalled interrupt for CPU 0 is written to; the data is the vector. */
#define MSI_ADDRESS 0xfee00000

/* An ISA interrupt (edge-triggered, active high) to CPU 0. */
void ioapic_route(unsigned irq, unsigned vector);

#endif
