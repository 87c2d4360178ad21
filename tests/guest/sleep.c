#include "sleep.h"

#include "apic.h"
#include "blk.h"
#include "command_line.h"
#include "console.h"
#include "cpu.h"
#include "hotplug.h"
#include "interrupt.h"
#include "ports.h"
#include "processors.h"
#include "report.h"
#include "rng.h"
#include "timer.h"

/* Offsets in ACPI's tables. */
enum {
    RSDP_REVISION = 15,
    RSDP_XSDT = 24,
    TABLE_LENGTH = 4,
    XSDT_ENTRIES = 36,
    FADT_X_FACS = 132,
    FACS_VECTOR = 12,
    FACS_X_VECTOR = 24,
};
#define SIGNATURE_FADT 0x50434146 /* "FACP" */

#define PM1A_EVENT_DEFAULT   0x600
#define PM1A_CONTROL_DEFAULT 0x604
#define SLEEP_ENABLE         0x2000
#define SLEEP_TYPE_SHIFT     10
#define WAKE_STATUS          0x8000

#define CR0_PROTECTED 1

/* A byte of the clock's memory that nothing else uses. */
#define CMOS_INDEX 0x70
#define CMOS_DATA  0x71
#define CMOS_FREE  0x55
#define CMOS_WORD  0xa6

/* The clock's registers. An alarm at any second, minute and hour goes off with the next second. */
enum { CMOS_SECOND_ALARM = 1, CMOS_MINUTE_ALARM = 3, CMOS_HOUR_ALARM = 5, CMOS_YEAR = 9,
       CMOS_B = 0x0b };
#define ALARM_ANY    0xff
#define ALARM_ENABLE 0x20

/* In PM1's enable register, behind the status. */
#define PM1_ENABLE   2
#define CLOCK_ENABLE 0x0400

enum kind { AWAKE, REAL_MODE, FLAT_MODE, NO_VECTOR };

/* What entry.S leaves from the moment it is woken, within the copy at WAKING. */
struct waking_found {
    uint32_t cr0;
    uint16_t cs;
} __attribute__((packed));

extern const char waking[], waking_end[], waking_found[], woken_flat[];

/* In entry.S: writes `value` to `port`, and returns when the guest has been woken. */
void suspend(uint16_t port, uint16_t value);

static uint64_t facs;
static enum kind wanted;
static bool disk_ran, by_alarm;

static uint32_t word(uint64_t address)
{
    return *(volatile uint32_t *)address;
}

static uint64_t words(uint64_t address)
{
    return word(address) | (uint64_t)word(address + 4) << 32;
}

void sleep_init(const struct start_info *info)
{
    uint64_t rsdp = command_line_rsdp(info);
    /* The tables of ACPI 1.0, which some firmware still gives, have no XSDT. */
    if (rsdp == 0 || *(volatile uint8_t *)(rsdp + RSDP_REVISION) < 2)
        return;
    uint64_t xsdt = words(rsdp + RSDP_XSDT);
    if (xsdt == 0)
        return;
    for (uint32_t at = XSDT_ENTRIES; at < word(xsdt + TABLE_LENGTH); at += 8) {
        uint64_t table = words(xsdt + at);
        if (word(table) == SIGNATURE_FADT)
            facs = words(table + FADT_X_FACS);
    }
}

static void want(enum kind kind)
{
    if (facs == 0) {
        print("sleep: there is no FACS\n");
        return;
    }
    wanted = kind;
    disk_ran = report->blk_state == BLK_RUNNING;
    if (disk_ran)
        blk_pause();
    rng_rest(true);
    ports_rest(true);
}

void sleep_in_real_mode(void)
{
    want(REAL_MODE);
}

void sleep_in_flat_mode(void)
{
    want(FLAT_MODE);
}

void sleep_without_vector(void)
{
    want(NO_VECTOR);
}

void sleep_until_alarm(void)
{
    by_alarm = true;
    want(REAL_MODE);
}

static uint8_t cmos_read(uint8_t at)
{
    out8(CMOS_INDEX, at);
    return in8(CMOS_DATA);
}

static void cmos_write(uint8_t at, uint8_t value)
{
    out8(CMOS_INDEX, at);
    out8(CMOS_DATA, value);
}

void clock_set(void)
{
    for (int round = 0; round < 100; round++)
        for (uint8_t year = 0x11; year <= 0x20; year += 0x0f)
            cmos_write(CMOS_YEAR, year);
}

static void set_alarm(void)
{
    cmos_write(CMOS_SECOND_ALARM, ALARM_ANY);
    cmos_write(CMOS_MINUTE_ALARM, ALARM_ANY);
    cmos_write(CMOS_HOUR_ALARM, ALARM_ANY);
    cmos_write(CMOS_B, cmos_read(CMOS_B) | ALARM_ENABLE);
    out16(parameter("pm1a_event", PM1A_EVENT_DEFAULT) + PM1_ENABLE, CLOCK_ENABLE);
}

static void expect(bool right, const char *what)
{
    if (!right) {
        report->wake_errors++;
        print("sleep: %s\n", what);
    }
}

static void leave_vector(void)
{
    *(volatile uint32_t *)(facs + FACS_VECTOR) = wanted == REAL_MODE ? WAKING : 0;
    *(volatile uint32_t *)(facs + FACS_X_VECTOR) = wanted == FLAT_MODE ? (uint64_t)woken_flat : 0;
    *(volatile uint32_t *)(facs + FACS_X_VECTOR + 4) = 0;
    for (const char *from = waking; from < waking_end; from++)
        ((volatile char *)WAKING)[from - waking] = *from;
}

/* All but RAM and time must be as at power-on. */
static void look_around(bool has_cmos, uint64_t slept)
{
    uint16_t event = parameter("pm1a_event", PM1A_EVENT_DEFAULT);
    report->wake_status = in16(event);
    expect(report->wake_status & WAKE_STATUS, "WAK_STS is not set");
    out16(event, report->wake_status);
    expect(in16(event) == 0, "PM1's status does not clear");
    if (wanted == REAL_MODE) {
        const volatile struct waking_found *found =
            (const void *)(WAKING + (uint64_t)(waking_found - waking));
        expect(found->cs == WAKING >> 4, "CS is not the vector's paragraph");
        expect(!(found->cr0 & CR0_PROTECTED), "it was not woken in real mode");
    }
    expect(lapic_is_off(), "the local APIC was not reset");
    expect(ioapic_is_masked(console_irq()), "the IOAPIC was not reset");
    expect(console_is_reset(), "the serial port was not reset");
    expect(!has_cmos || cmos_read(CMOS_FREE) == CMOS_WORD, "the clock has lost its memory");
    if (rdtsc() < slept)
        report->tsc_backwards++;
}

static void sleep_now(void)
{
    __asm__ volatile("cli" : : : "memory");
    cmos_write(CMOS_FREE, CMOS_WORD);
    bool has_cmos = cmos_read(CMOS_FREE) == CMOS_WORD;
    if (by_alarm)
        set_alarm();
    leave_vector();
    report->sleeps++;
    uint64_t slept = rdtsc();
    uint16_t type = parameter("slp3", 3);
    suspend(parameter("pm1a", PM1A_CONTROL_DEFAULT), type << SLEEP_TYPE_SHIFT | SLEEP_ENABLE);

    look_around(has_cmos, slept);
    wanted = AWAKE;
    by_alarm = false;
    interrupt_load_table();
    pic_mask();
    lapic_init();
    console_init();
    if (!parameter_is("serial", "poll"))
        console_use_interrupt();
    expect(blk_wake(), "the disk was not reset, or does not come back");
    expect(rng_wake(), "an entropy device was not reset, or does not come back");
    expect(ports_wake(), "the console device was not reset, or does not come back");
    /* The time for which it slept is no gap between two ticks. */
    report->last_tick_tsc = 0;
    timer_start(report->timer_hz);
    hotplug_wake();
    processors_start(parameter("smp", 1));
    report->wakes++;
    if (disk_ran)
        blk_resume();
    rng_rest(false);
    ports_rest(false);
    print("WOKEN %lu status=%lx errors=%lu\n", report->wakes, report->wake_status,
          report->wake_errors);
    interrupts_on();
}

void sleep_serve(void)
{
    bool disk_rests = report->blk_state == BLK_ABSENT || report->blk_state == BLK_PAUSED;
    if (wanted != AWAKE && disk_rests && rng_rests() && ports_rest_now())
        sleep_now();
}
