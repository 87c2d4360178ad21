/* The test guest: brings the machine up, then walks its RAM and keeps its devices busy for ever. */

#include "apic.h"
#include "blk.h"
#include "command_line.h"
#include "commands.h"
#include "console.h"
#include "cpu.h"
#include "hotplug.h"
#include "interrupt.h"
#include "memory.h"
#include "pci.h"
#include "ports.h"
#include "processors.h"
#include "report.h"
#include "rng.h"
#include "sleep.h"
#include "timer.h"

#define VIRTIO_VENDOR  0x1af4
#define VIRTIO_BLK     0x1042
#define VIRTIO_CONSOLE 0x1043
#define VIRTIO_RNG     0x1044

#define DEFAULT_HZ   1000
#define DEFAULT_PACE 4

static bool poll_console;

static void found(const struct pci_function *pci, uint16_t vendor, uint16_t device)
{
    if (vendor != VIRTIO_VENDOR)
        return;
    if (device == VIRTIO_BLK)
        blk_open(pci);
    else if (device == VIRTIO_RNG)
        rng_open(pci);
    else if (device == VIRTIO_CONSOLE)
        ports_open(pci);
}

/* After the start, when devices begin at once. */
static void arrived(const struct pci_function *pci, uint16_t vendor, uint16_t device)
{
    found(pci, vendor, device);
    if (device == VIRTIO_BLK)
        blk_resume();
}

static void serve(void)
{
    /* Cleared first: what comes up while we serve is served on the next page. */
    work_pending = false;
    compiler_barrier();
    if (poll_console)
        console_poll();
    commands_serve();
    blk_serve();
    rng_serve();
    ports_serve();
    hotplug_serve();
    sleep_serve();
}

/* Called by entry.S. */
void guest_main(const struct start_info *info, uint64_t entry_tsc);

void guest_main(const struct start_info *info, uint64_t entry_tsc)
{
    command_line_init(info);
    sleep_init(info);
    report_init();
    report->entry_tsc = entry_tsc;
    console_init();
    interrupt_init();
    pic_mask();
    lapic_init();
    timer_calibrate();
    memory_init();
    pci_scan(found);

    uint64_t hz = parameter("hz", DEFAULT_HZ);
    uint64_t pace = parameter("pace", DEFAULT_PACE);
    blk_start(pace);
    rng_start(pace);
    poll_console = parameter_is("serial", "poll");
    if (!poll_console)
        console_use_interrupt();
    timer_start(hz == 0 ? DEFAULT_HZ : hz);
    hotplug_start(arrived);
    processors_start(parameter("smp", 1));

    report->up_tsc = rdtsc();
    report->state = STATE_RUNNING;
    print("BATON-GUEST-UP\n");
    interrupts_on();
    memory_walk(serve);
}
