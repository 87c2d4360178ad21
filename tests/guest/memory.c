#include "memory.h"

#include <stdint.h>

#include "command_line.h"
#include "console.h"
#include "cpu.h"
#include "interrupt.h"
#include "paging.h"
#include "report.h"

#define PAGE_SIZE      4096
#define DEFAULT_START  0x2000000
#define DEFAULT_LENGTH 0x1000000
#define GUEST_END      (REPORT_ADDRESS + REPORT_SIZE)

/* Where there is no RAM, nothing keeps what is written. */
static int is_ram(uint64_t page)
{
    volatile uint8_t *byte = (volatile uint8_t *)page;
    uint8_t before = *byte;
    *byte = before ^ 0x5a;
    int kept = *byte == (uint8_t)(before ^ 0x5a);
    *byte = before;
    return kept;
}

void memory_init(void)
{
    uint64_t start = DEFAULT_START, length = DEFAULT_LENGTH;
    parameter_region("ram", &start, &length);
    if (start % PAGE_SIZE != 0 || length % PAGE_SIZE != 0 || length == 0 || start < GUEST_END ||
        !map(start, length, MEMORY_RAM)) {
        print("ram: 0x%lx:0x%lx is malformed, not whole pages above 0x%lx, or too much\n", start,
              length, (uint64_t)GUEST_END);
        start = DEFAULT_START;
        length = DEFAULT_LENGTH;
    }
    /* A machine with little of it has the region further down. */
    while (!is_ram(start + length - PAGE_SIZE) && start / 2 >= GUEST_END) {
        start /= 2;
        length /= 2;
        map(start, length, MEMORY_RAM);
    }
    report->ram_start = start;
    report->ram_len = length;
    report->position = start;
    /* RAM of a fresh machine is zero; going over it all would only delay the start. */
    if (report->boots > 1) {
        for (uint64_t page = start; page < start + length; page += PAGE_SIZE)
            *(volatile uint8_t *)page = 0;
    }
}

void memory_walk(void (*serve)(void))
{
    uint64_t start = report->ram_start, end = start + report->ram_len, loops = 0;
    for (uint64_t pass = 0;; pass++) {
        report->passes = pass;
        for (uint64_t page = start; page < end; page += PAGE_SIZE) {
            volatile uint8_t *byte = (volatile uint8_t *)page;
            uint8_t value = *byte;
            if (value != (uint8_t)pass)
                report->ram_errors++;
            *byte = value + 1;
            report->position = page;
            report->loops = ++loops;
            if (work_pending)
                serve();
        }
    }
}
