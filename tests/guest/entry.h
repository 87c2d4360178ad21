/* What entry.S and C have in common. */

#ifndef ENTRY_H
#define ENTRY_H

/* The place of entry_tsc in the report, which the first instructions write. */
#define ENTRY_TSC_ADDRESS 0x200168

#endif
