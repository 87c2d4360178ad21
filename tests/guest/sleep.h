/* Suspend to RAM: ACPI S3, and the way back from the waking vector. entry.S shares this. */
#ifndef SLEEP_H
#define SLEEP_H

/*
 * Where the code that is woken in real mode is copied to. Not at the start of a paragraph: the VMM must
 * begin with CS = WAKING >> 4 and IP = WAKING & 15, which only then is more than one way to say the same.
 */
#define WAKING 0x9005
#define WAKING_IP (WAKING & 0xf)

#ifndef __ASSEMBLER__
struct start_info;

/* Finds what ACPI says of sleeping. */
void sleep_init(const struct start_info *info);

/* The guest suspends itself once no request is in flight: to be woken in real mode, in 32-bit mode by
   the X vector, or, having left no vector, not at all. */
void sleep_in_real_mode(void);
void sleep_in_flat_mode(void);
void sleep_without_vector(void);

/* In real mode, by the clock's alarm, within a second. */
void sleep_until_alarm(void);

/* Sets the clock's year again and again, to 20 in the end. */
void clock_set(void);

/* From the main loop, whenever work is pending. */
void sleep_serve(void);
#endif

#endif
