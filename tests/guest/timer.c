#include "timer.h"

#include "apic.h"
#include "command_line.h"
#include "console.h"
#include "cpu.h"
#include "interrupt.h"
#include "report.h"

#define PIT_CHANNEL2      0x42
#define PIT_COMMAND       0x43
#define PIT_CHANNEL2_ONCE 0xb0 /* both bytes, mode 0: the output rises when the count ends */
#define PIT_HZ            1193182
#define PORT_B            0x61
#define PORT_B_GATE2      0x01
#define PORT_B_SPEAKER    0x02
#define PORT_B_OUTPUT2    0x20

#define SAMPLE_COUNT (PIT_HZ / 50) /* 20 ms */

/* TSC and timer ticks in SAMPLE_COUNT; false when channel 2 does not count. */
static bool sample(uint64_t *tsc, uint64_t *lapic)
{
    out8(PORT_B, (in8(PORT_B) & ~PORT_B_SPEAKER) | PORT_B_GATE2);
    out8(PIT_COMMAND, PIT_CHANNEL2_ONCE);
    out8(PIT_CHANNEL2, SAMPLE_COUNT & 0xff);
    out8(PIT_CHANNEL2, SAMPLE_COUNT >> 8);
    lapic_timer_count_from(UINT32_MAX);
    uint64_t start = rdtsc();
    unsigned reads = 0;
    while (!(in8(PORT_B) & PORT_B_OUTPUT2)) {
        if (++reads == 10000000)
            return false;
    }
    *lapic = UINT32_MAX - lapic_timer_count();
    *tsc = rdtsc() - start;
    /* A port that nobody serves reads as all ones: the count seems to end at once. */
    return reads > 0;
}

void timer_calibrate(void)
{
    uint64_t tsc_hz = parameter("tsc_hz", 0);
    uint64_t lapic_hz = parameter("lapic_hz", 0);
    if (tsc_hz == 0 || lapic_hz == 0) {
        /* The host may take the processor away at the end of a sample, which makes it longer: of
           three the shortest is the truest. */
        uint64_t best_tsc = UINT64_MAX, best_lapic = 0;
        for (unsigned i = 0; i < 3; i++) {
            uint64_t tsc, lapic;
            if (sample(&tsc, &lapic) && tsc < best_tsc) {
                best_tsc = tsc;
                best_lapic = lapic;
            }
        }
        if (best_tsc == UINT64_MAX) {
            print("timer: PIT channel 2 does not count; taking 1 GHz for tsc_hz= and lapic_hz=\n");
            best_tsc = best_lapic = 1000000000ull * SAMPLE_COUNT / PIT_HZ;
        }
        if (tsc_hz == 0)
            tsc_hz = best_tsc * PIT_HZ / SAMPLE_COUNT;
        if (lapic_hz == 0)
            lapic_hz = best_lapic * PIT_HZ / SAMPLE_COUNT;
    }
    report->tsc_hz = tsc_hz;
    report->lapic_hz = lapic_hz;
}

static void tick(unsigned vector)
{
    (void)vector;
    uint64_t now = rdtsc();
    uint64_t ticks = report->ticks;
    uint64_t last = report->last_tick_tsc;

    if (now < last) {
        report->tsc_backwards++;
    } else if (last != 0 && now - last > report->max_gap_tsc) {
        report->prev_gap_tsc = report->max_gap_tsc;
        report->max_gap_tsc = now - last;
        report->max_gap_end_tsc = now;
    }
    report->tick_tsc[ticks % TICK_RING] = now;
    report->last_tick_tsc = now;
    report->ticks = ticks + 1;
    work_pending = true;
}

void timer_start(uint64_t hz)
{
    report->timer_hz = hz;
    interrupt_handle(VECTOR_TIMER, tick);
    lapic_timer_periodic(VECTOR_TIMER, report->lapic_hz / hz);
}

void delay_us(uint64_t microseconds)
{
    uint64_t end = rdtsc() + report->tsc_hz / 1000 * microseconds / 1000;
    while (rdtsc() < end)
        relax();
}

uint64_t seconds_in_ticks(uint64_t seconds)
{
    return seconds * report->timer_hz;
}

void timer_reset_gap(void)
{
    report->prev_gap_tsc = report->max_gap_tsc;
    report->max_gap_tsc = 0;
}
