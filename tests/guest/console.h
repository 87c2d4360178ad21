/* The serial port: what the guest says, and the lines it is told. */
#ifndef CONSOLE_H
#define CONSOLE_H

#include <stdbool.h>

#define LINE_SIZE 80

void console_init(void);

/* Input by interrupt 4. Before this, and with serial=poll, by console_poll. */
void console_use_interrupt(void);
void console_poll(void);

/* The interrupt it uses, and whether the port raises none, as at power-on. */
unsigned console_irq(void);
bool console_is_reset(void);

/* Knows %s, %lu and %lx. */
__attribute__((format(printf, 1, 2))) void print(const char *format, ...);

/* One line without its end, cut at LINE_SIZE - 1 bytes; false when there is none yet. */
bool console_line(char line[LINE_SIZE]);

#endif
