#include "commands.h"

#include <stdbool.h>

#include "blk.h"
#include "command_line.h"
#include "console.h"
#include "cpu.h"
#include "hotplug.h"
#include "interrupt.h"
#include "ports.h"
#include "report.h"
#include "sleep.h"
#include "timer.h"

#define RESET_PORT  0xcf9
#define RESET_FULL  0x06
#define SLEEP_ENABLE 0x2000
#define SLEEP_TYPE_SHIFT 10

static void reset(void)
{
    out8(RESET_PORT, RESET_FULL);
}

static void power_off(void)
{
    uint16_t type = parameter("slp", 5);
    out16(parameter("pm1a", 0x604), type << SLEEP_TYPE_SHIFT | SLEEP_ENABLE);
    /* The VMM may take a moment. */
    delay_us(1000000);
    print("poweroff: still here\n");
}

static const struct {
    const char *name;
    void (*run)(void);
} commands[] = {
    { "report", report_print }, { "quiesce", blk_quiesce }, { "pause", blk_pause },
    { "resume", blk_resume },   { "reset", reset },         { "poweroff", power_off },
    { "fault", page_fault },     { "triple", triple_fault },
    { "refuse", hotplug_refuse }, { "hammer", hotplug_hammer },
    { "clock", clock_set },       { "ports", ports_print },
    { "sleep", sleep_in_real_mode },
    { "sleep-x", sleep_in_flat_mode },
    { "sleep-alarm", sleep_until_alarm },
    { "sleep-nowhere", sleep_without_vector },
};

static bool equal(const char *a, const char *b)
{
    while (*a != '\0' && *a == *b) {
        a++;
        b++;
    }
    return *a == *b;
}

static void run(const char *line)
{
    print("echo: %s\n", line);
    for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
        if (equal(line, commands[i].name))
            commands[i].run();
    }
}

static void obey(uint64_t control)
{
    switch (control) {
    case CONTROL_RESET_GAP: timer_reset_gap(); break;
    case CONTROL_QUIESCE: blk_quiesce(); break;
    case CONTROL_PAUSE_DISK: blk_pause(); break;
    case CONTROL_RESUME_DISK: blk_resume(); break;
    default: print("control: %lu is unknown\n", control); break;
    }
    report->control_count++;
    report->control = 0;
}

void commands_serve(void)
{
    uint64_t control = report->control;
    if (control != 0)
        obey(control);
    char line[LINE_SIZE];
    while (console_line(line))
        run(line);
}
