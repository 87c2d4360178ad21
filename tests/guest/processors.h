/* Processors other than CPU 0 count loops and timer ticks of their own. entry.S shares this. */
#ifndef PROCESSORS_H
#define PROCESSORS_H

#define MAX_PROCESSORS 32
#define PROCESSOR_STACK_SHIFT 11 /* 2 KiB each */

#ifndef __ASSEMBLER__
#include <stdint.h>

/* `count` counts CPU 0. The timers of the others run at a tenth of CPU 0's rate. */
void processors_start(uint64_t count);
#endif

#endif
