#include "console.h"

#include <stdarg.h>

#include "apic.h"
#include "cpu.h"
#include "interrupt.h"
#include "report.h"

#define COM1     0x3f8
#define COM1_IRQ 4

enum {
    DATA = 0,
    INTERRUPT_ENABLE = 1,
    FIFO_CONTROL = 2,
    LINE_CONTROL = 3,
    MODEM_CONTROL = 4,
    LINE_STATUS = 5,
};

#define LINE_CONTROL_8N1     0x03
#define LINE_CONTROL_DIVISOR 0x80
#define FIFO_ENABLE_CLEAR    0x07
#define MODEM_DTR_RTS_OUT2   0x0b /* OUT2 lets the interrupt through */
#define STATUS_DATA_READY    0x01
#define STATUS_OVERRUN       0x02
#define STATUS_CAN_SEND      0x20

/* Bytes received and not yet taken: the interrupt moves head, the main loop moves tail. */
#define INPUT_SIZE 256
static volatile uint8_t input[INPUT_SIZE];
static volatile uint32_t input_head, input_tail;

static char partial[LINE_SIZE];
static uint32_t partial_length;

void console_init(void)
{
    out8(COM1 + INTERRUPT_ENABLE, 0);
    out8(COM1 + LINE_CONTROL, LINE_CONTROL_DIVISOR);
    out8(COM1 + DATA, 1); /* 115200 baud */
    out8(COM1 + INTERRUPT_ENABLE, 0);
    out8(COM1 + LINE_CONTROL, LINE_CONTROL_8N1);
    out8(COM1 + FIFO_CONTROL, FIFO_ENABLE_CLEAR);
    out8(COM1 + MODEM_CONTROL, MODEM_DTR_RTS_OUT2);
}

unsigned console_irq(void)
{
    return COM1_IRQ;
}

bool console_is_reset(void)
{
    return in8(COM1 + INTERRUPT_ENABLE) == 0;
}

void console_poll(void)
{
    uint8_t status;
    /* Until nothing is left: the line is edge-triggered and a byte left behind would hold it up. */
    while ((status = in8(COM1 + LINE_STATUS)) & STATUS_DATA_READY) {
        uint8_t byte = in8(COM1 + DATA);
        report->serial_rx++;
        if (status & STATUS_OVERRUN)
            report->serial_overruns++;
        if (input_head - input_tail == INPUT_SIZE) {
            report->serial_overruns++;
            continue;
        }
        input[input_head % INPUT_SIZE] = byte;
        input_head++;
    }
}

static void received(unsigned vector)
{
    (void)vector;
    report->irq_serial++;
    console_poll();
    work_pending = true;
}

void console_use_interrupt(void)
{
    interrupt_handle(VECTOR_SERIAL, received);
    ioapic_route(COM1_IRQ, VECTOR_SERIAL);
    out8(COM1 + INTERRUPT_ENABLE, 0x01);
}

bool console_line(char line[LINE_SIZE])
{
    while (input_tail != input_head) {
        char byte = input[input_tail % INPUT_SIZE];
        input_tail++;
        if (byte != '\n' && byte != '\r') {
            if (partial_length < LINE_SIZE - 1)
                partial[partial_length++] = byte;
            continue;
        }
        if (partial_length == 0)
            continue;
        for (uint32_t i = 0; i < partial_length; i++)
            line[i] = partial[i];
        line[partial_length] = '\0';
        partial_length = 0;
        report->serial_lines++;
        return true;
    }
    return false;
}

static void put(char byte)
{
    while (!(in8(COM1 + LINE_STATUS) & STATUS_CAN_SEND))
        relax();
    out8(COM1 + DATA, byte);
    report->serial_tx++;
}

static void put_number(uint64_t value, unsigned base)
{
    char digits[20];
    unsigned count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value != 0);
    while (count > 0)
        put(digits[--count]);
}

void print(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    for (; *format != '\0'; format++) {
        if (*format == '\n')
            put('\r');
        if (*format != '%') {
            put(*format);
            continue;
        }
        format++;
        if (*format == 's') {
            for (const char *text = va_arg(arguments, const char *); *text != '\0'; text++)
                put(*text);
        } else {
            format++;
            put_number(va_arg(arguments, uint64_t), *format == 'x' ? 16 : 10);
        }
    }
    va_end(arguments);
}
