/* What C cannot say: ports, MSRs, the time stamp counter, barriers, interrupts on and off. */
#ifndef CPU_H
#define CPU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline void out8(uint16_t port, uint8_t value)
{
    __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out16(uint16_t port, uint16_t value)
{
    __asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out32(uint16_t port, uint32_t value)
{
    __asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint16_t in16(uint16_t port)
{
    uint16_t value;
    __asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint64_t rdtsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}

static inline uint64_t read_cr2(void)
{
    uint64_t value;
    __asm__ volatile("movq %%cr2, %0" : "=r"(value));
    return value;
}

/* x86 keeps stores in order and loads in order: against a device only the compiler must be held. */
static inline void compiler_barrier(void)
{
    __asm__ volatile("" : : : "memory");
}

/* A load may still pass an earlier store. A locked operation stops it; MFENCE belongs to SSE2. */
static inline void full_barrier(void)
{
    __asm__ volatile("lock orl $0, (%%rsp)" : : : "memory", "cc");
}

static inline void interrupts_on(void)
{
    __asm__ volatile("sti" : : : "memory");
}

static inline void halt_forever(void)
{
    for (;;)
        __asm__ volatile("cli; hlt" : : : "memory");
}

static inline void relax(void)
{
    __asm__ volatile("pause" : : : "memory");
}

/* An emulating host goes through these several times faster than through a loop. */
static inline void fill_words(uint64_t *words, uint64_t value, uint64_t count)
{
    __asm__ volatile("rep stosq" : "+D"(words), "+c"(count) : "a"(value) : "memory");
}

static inline bool equal_words(const uint64_t *a, const uint64_t *b, uint64_t count)
{
    bool equal;
    /* The first comparison sets the flag for no words at all. */
    __asm__ volatile("cmpq %%rax, %%rax; repe cmpsq"
                     : "=@ccz"(equal), "+S"(a), "+D"(b), "+c"(count)
                     :
                     : "memory");
    return equal;
}

/* Device registers: one access of exactly this width. */
static inline void mmio_write8(uint64_t address, uint8_t value)
{
    *(volatile uint8_t *)address = value;
}

static inline void mmio_write16(uint64_t address, uint16_t value)
{
    *(volatile uint16_t *)address = value;
}

static inline void mmio_write32(uint64_t address, uint32_t value)
{
    *(volatile uint32_t *)address = value;
}

static inline uint8_t mmio_read8(uint64_t address)
{
    return *(volatile uint8_t *)address;
}

static inline uint16_t mmio_read16(uint64_t address)
{
    return *(volatile uint16_t *)address;
}

static inline uint32_t mmio_read32(uint64_t address)
{
    return *(volatile uint32_t *)address;
}

#endif
