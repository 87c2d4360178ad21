/* What the guest does when told, by a line on the serial port or by the report's control word. */
#ifndef COMMANDS_H
#define COMMANDS_H

void commands_serve(void);

#endif
