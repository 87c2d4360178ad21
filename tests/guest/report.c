#include "report.h"

#include <stdbool.h>

#include "console.h"
#include "cpu.h"

static const char magic[8] = "BATONRPT";

void report_init(void)
{
    bool again = true;
    for (unsigned i = 0; i < sizeof(magic); i++)
        again = again && report->magic[i] == magic[i];
    uint32_t boots = again ? report->boots + 1 : 1;

    fill_words((uint64_t *)REPORT_ADDRESS, 0, REPORT_SIZE / sizeof(uint64_t));
    report->version = REPORT_VERSION;
    report->size = REPORT_SIZE;
    report->state = STATE_BOOTING;
    report->boots = boots;
    for (unsigned i = 0; i < sizeof(magic); i++)
        report->magic[i] = magic[i];
}

void report_print(void)
{
    print("report");
#define PRINT(offset, type, name) print(" " #name "=%lu", (uint64_t)report->name);
    REPORT_FIELDS(PRINT)
    print("\n");
}
