/* The local APIC timer of CPU 0, and what its ticks tell about time. */
#ifndef TIMER_H
#define TIMER_H

#include <stdint.h>

/* Finds the frequencies of the TSC and the timer, unless the command line gives both. */
void timer_calibrate(void);

void timer_start(uint64_t hz);

/* Busy; needs timer_calibrate only. */
void delay_us(uint64_t microseconds);

/* Seconds in ticks. Unlike the TSC they stand still while the guest does: a limit on how long a
   device may take must not count the time for which the whole guest was stopped. */
uint64_t seconds_in_ticks(uint64_t seconds);

void timer_reset_gap(void);

#endif
