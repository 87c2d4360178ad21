/*
 * From the loader to C: the PVH entry in 32-bit mode, the entry of the other processors in real
 * mode, and the switch to long mode that both share.
 */

#include "entry.h"
#include "processors.h"
#include "sleep.h"

#define CODE32 0x08
#define DATA   0x10
#define CODE64 0x18

#define CR0_PE      (1 << 0)
#define CR0_PG      (1 << 31)
#define CR4_PAE     (1 << 5)
#define MSR_EFER    0xc0000080
#define EFER_LME    (1 << 8)

#define PAGE_PRESENT_WRITE  0x003
#define PAGE_LARGE          0x080
#define PAGE_UNCACHED       0x018
#define DEVICES_START       0xc0000000

    .section .note.pvh, "a", @note
    .balign 4
    .long 4                     /* length of the name */
    .long 8                     /* length of the address */
    .long 0x12                  /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_entry

    .macro enter_long_mode target
    movl %cr4, %eax
    orl $CR4_PAE, %eax
    movl %eax, %cr4
    movl $page_map_level_4, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl %cr0, %eax
    orl $(CR0_PG | CR0_PE), %eax
    movl %eax, %cr0
    ljmp $CODE64, $\target
    .endm

    .macro load_data_segments
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    .endm

    .text
    .code32
    .global pvh_entry
pvh_entry:
    cli
    cld
    movl %ebx, %ebp             /* hvm_start_info */
    rdtsc
    movl %eax, %esi             /* these two live until start64 */
    movl %edx, %ebx
    /* Somebody may wait for it, and the rest takes a while. */
    movl %eax, ENTRY_TSC_ADDRESS
    movl %edx, ENTRY_TSC_ADDRESS + 4

    /* Some loaders copy only what the file holds. */
    movl $bss_start, %edi
    movl $bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl

    /* One table of each upper level, and four that map 4 GiB in pages of 2 MiB. */
    movl $(page_directory_pointers + PAGE_PRESENT_WRITE), page_map_level_4
    movl $page_directory_pointers, %edi
    movl $(page_directories + PAGE_PRESENT_WRITE), %eax
1:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x1000, %eax
    cmpl $(page_directories + 0x4000 + PAGE_PRESENT_WRITE), %eax
    jne 1b

    movl $page_directories, %edi
    movl $(PAGE_LARGE | PAGE_PRESENT_WRITE), %eax
2:  cmpl $DEVICES_START, %eax
    jb 3f
    orl $PAGE_UNCACHED, %eax
3:  movl %eax, (%edi)
    addl $8, %edi
    addl $0x200000, %eax
    jnc 2b

    lgdt gdt_pointer
    ljmp $CODE32, $4f
4:  load_data_segments
    enter_long_mode start64

    .code64
start64:
    movl $boot_stack_end, %esp
    movl %ebp, %edi
    shlq $32, %rbx
    orq %rbx, %rsi
    call guest_main
    ud2

/*
 * A processor that gets a start-up interrupt begins in real mode at a page below 1 MiB, where
 * start_processors copies this.
 */
    .code16
    .global trampoline, trampoline_end
trampoline:
    cli
    lgdtl %cs:(trampoline_gdt_pointer - trampoline)
    movl %cr0, %eax
    orl $CR0_PE, %eax
    movl %eax, %cr0
    ljmpl $CODE32, $processor_start32
    .balign 8
trampoline_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
trampoline_end:

    .code32
processor_start32:
    load_data_segments
    enter_long_mode processor_start64

    .code64
processor_start64:
    /* The initial APIC id picks the stack: all processors come here at once. */
    movl $1, %eax
    cpuid
    shrl $24, %ebx
    cmpl $MAX_PROCESSORS, %ebx
    jae 5f
    movl %ebx, %edi
    incl %ebx
    shll $PROCESSOR_STACK_SHIFT, %ebx
    leal processor_stacks(%rbx), %esp
    call processor_main
5:  cli
    hlt
    jmp 5b

/*
 * void suspend(port, value): what C relies on goes on the stack, the stack to a place that is found again,
 * and the write puts the machine to sleep. It may take a moment; the way on is the waking vector.
 */
    .global suspend
suspend:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movl %esp, suspended_stack
    movl %edi, %edx
    movl %esi, %eax
    outw %ax, %dx
6:  pause
    jmp 6b

/* Copied to WAKING, where the machine wakes in real mode. There is no stack; what it finds is noted. */
    .code16
    .global waking, waking_end, waking_found
waking:
    cli
    movl %cr0, %eax
    movl %eax, %cs:(waking_found - waking + WAKING_IP)
    movw %cs, %cs:(waking_found + 4 - waking + WAKING_IP)
    lgdtl %cs:(waking_gdt_pointer - waking + WAKING_IP)
    orl $CR0_PE, %eax
    movl %eax, %cr0
    ljmpl $CODE32, $woken32
waking_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
waking_found:
    .long 0
    .word 0
waking_end:

/* The X vector: woken in 32-bit mode, with flat segments of somebody else's. */
    .code32
    .global woken_flat
woken_flat:
    lgdt gdt_pointer
    ljmp $CODE32, $woken32
woken32:
    load_data_segments
    enter_long_mode woken64

    .code64
woken64:
    movl suspended_stack, %esp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    .section .rodata
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff    /* CODE32 */
    .quad 0x00cf93000000ffff    /* DATA */
    .quad 0x00af9b000000ffff    /* CODE64 */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

    .bss
suspended_stack:
    .skip 4
    .balign 4096
    .global page_map_level_4
page_map_level_4:
    .skip 0x1000
page_directory_pointers:
    .skip 0x1000
page_directories:
    .skip 0x4000
    .skip 0x2000
boot_stack_end:
processor_stacks:
    .skip MAX_PROCESSORS << PROCESSOR_STACK_SHIFT
