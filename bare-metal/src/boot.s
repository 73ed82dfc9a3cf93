# From the PVH entry (32-bit protected mode, paging off, EBX = start information) to 64-bit Rust: identity tables
# for the first 4 GiB, SSE, long mode, a stack. And the few routines that compilers expect of a C library.
# Interrupts stay off for good: the precompiled `core` may use the red zone below the stack pointer.

.section .note.pvh, "a", @note
.align 4
.long 4                     # length of the name
.long 4                     # length of the value
.long 18                    # XEN_ELFNOTE_PHYS32_ENTRY
.asciz "Xen"
.long start32

.section .text.boot, "ax", @progbits
.code32
.globl start32
start32:
    cli
    cld
    movl $boot_stack_top, %esp
    movl %ebx, %ebp

    movl $__bss_start, %edi
    movl $__bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl

    # One entry in the top table, four below it, 2048 pages of 2 MiB.
    movl $boot_pdpt, %eax
    orl $3, %eax
    movl %eax, boot_pml4
    movl $boot_pd, %eax
    orl $3, %eax
    xorl %ecx, %ecx
1:  movl %eax, boot_pdpt(,%ecx,8)
    addl $4096, %eax
    incl %ecx
    cmpl $4, %ecx
    jne 1b
    movl $0x83, %eax
    xorl %ecx, %ecx
2:  movl %eax, boot_pd(,%ecx,8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $2048, %ecx
    jne 2b

    # CR4: PAE, OSFXSR, OSXMMEXCPT.
    movl %cr4, %eax
    orl $0x620, %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    # EFER.LME.
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    # CR0: PG, MP, PE; no x87 emulation.
    movl %cr0, %eax
    andl $0xfffffffb, %eax
    orl $0x80000003, %eax
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $8, $start64

.code64
start64:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movq $boot_stack_top, %rsp
    movl %ebp, %edi
    call {main}
    ud2

.section .rodata.boot, "a", @progbits
.align 8
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff    # 64-bit code
    .quad 0x00cf92000000ffff    # data
boot_gdt_pointer:
    .word 23
    .long boot_gdt

.section .bss.boot, "aw", @nobits
.align 4096
boot_pml4: .skip 4096
boot_pdpt: .skip 4096
boot_pd:   .skip 16384
boot_stack: .skip 262144
boot_stack_top:

.section .text.libc, "ax", @progbits
.globl memcpy
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret

.globl memmove
memmove:
    movq %rdi, %rax
    movq %rdx, %rcx
    movq %rdi, %r8
    subq %rsi, %r8
    cmpq %rdx, %r8
    jb 1f                       # the target starts inside the source: from the end
    rep movsb
    ret
1:  leaq -1(%rdi,%rdx), %rdi
    leaq -1(%rsi,%rdx), %rsi
    std
    rep movsb
    cld
    ret

.globl memset
memset:
    movq %rdi, %r8
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r8, %rax
    ret

.globl memcmp
.globl bcmp
memcmp:
bcmp:
    xorl %ecx, %ecx
1:  cmpq %rdx, %rcx
    je 2f
    movzbl (%rdi,%rcx), %eax
    movzbl (%rsi,%rcx), %r8d
    incq %rcx
    subl %r8d, %eax
    je 1b
    ret
2:  xorl %eax, %eax
    ret

.globl strlen
strlen:
    xorl %eax, %eax
1:  cmpb $0, (%rdi,%rax)
    je 2f
    incq %rax
    jmp 1b
2:  ret

# Named by the precompiled libraries; nothing unwinds here.
.globl rust_eh_personality
.globl _Unwind_Resume
rust_eh_personality:
_Unwind_Resume:
    ud2
