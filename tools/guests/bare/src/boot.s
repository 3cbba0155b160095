# From QEMU's PVH entry (32-bit protected mode, no paging, ebx = start_info) to 64-bit Rust.
# Identity mapping of the first 64 GiB by 2 MiB pages.

.set TABLES, 64

.section .note.Xen, "a", @note
.balign 4
.long 4                         # bytes of the name
.long 4                         # bytes of the value
.long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
.asciz "Xen"
.long entry32

.section .text.boot, "ax", @progbits
.code32
.globl entry32
entry32:
    cli
    cld
    mov esp, offset stack_top

    # Level 4: one entry. Level 3: one entry for each GiB.
    mov eax, offset level3
    or eax, 3
    mov dword ptr [level4], eax
    xor ecx, ecx
    mov eax, offset level2
    or eax, 3
1:  mov dword ptr [level3 + ecx * 8], eax
    add eax, 4096
    inc ecx
    cmp ecx, TABLES
    jb 1b

    # Level 2: 2 MiB pages, present, writable, large.
    xor ecx, ecx
2:  mov eax, ecx
    shl eax, 21
    or eax, 0x83
    mov dword ptr [level2 + ecx * 8], eax
    mov eax, ecx
    shr eax, 11
    mov dword ptr [level2 + ecx * 8 + 4], eax
    inc ecx
    cmp ecx, TABLES * 512
    jb 2b

    # PAE, and SSE, which compiled Rust takes for granted.
    mov eax, cr4
    or eax, 0x620
    mov cr4, eax
    mov eax, offset level4
    mov cr3, eax
    # EFER.LME
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    wrmsr
    # Paging on, FPU present.
    mov eax, cr0
    and eax, 0xFFFFFFFB
    or eax, 0x80000003
    mov cr0, eax
    lgdt [gdt_pointer]
    push 8
    mov eax, offset entry64
    push eax
    retf

.code64
entry64:
    mov eax, 16
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov rsp, offset stack_top
    xor ebp, ebp
    mov edi, ebx
    call guest_main
3:  hlt
    jmp 3b

# The timer only has to wake the processor.
.globl timer_interrupt
timer_interrupt:
    push rax
    mov al, 0x20
    out 0x20, al
    pop rax
    iretq

.globl spurious_interrupt
spurious_interrupt:
    iretq

.globl exception_entry
exception_entry:
    mov rsp, offset stack_top
    call guest_exception
4:  hlt
    jmp 4b

.section .data.boot, "aw", @progbits
.balign 8
gdt:
    .quad 0
    .quad 0x00AF9A000000FFFF    # code, 64-bit
    .quad 0x00CF92000000FFFF    # data
gdt_pointer:
    .word 23
    .long gdt

.section .bss.boot, "aw", @nobits
.balign 4096
level4: .skip 4096
level3: .skip 4096
level2: .skip 4096 * TABLES
stack:  .skip 65536
.globl stack_top
stack_top:
