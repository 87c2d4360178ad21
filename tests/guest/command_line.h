/* What the VMM's user asked for, as name=value words. */
#ifndef COMMAND_LINE_H
#define COMMAND_LINE_H

#include <stdbool.h>
#include <stdint.h>

struct start_info;

/* Copies the command line out of the loader's memory, which nobody keeps free afterwards. */
void command_line_init(const struct start_info *info);

/* Where the loader says that ACPI's tables begin; 0 if it does not. */
uint64_t command_line_rsdp(const struct start_info *info);

/* Decimal, or hexadecimal after 0x. */
uint64_t parameter(const char *name, uint64_t otherwise);

/* START:LEN, both hexadecimal; left as they are when absent, 0:0 when malformed. */
void parameter_region(const char *name, uint64_t *start, uint64_t *length);

bool parameter_is(const char *name, const char *value);

#endif
