// The only code of ours that runs inside a user's process (kernel/remote.cpp). Position-independent; copied as bytes.
//
// rbx  the first record of the batch: number, six arguments, result, next, flags
// r12  an area for this thread's extended registers (XSAVE, 64-byte aligned)
// r13  the components that XSAVE stores
// r14  a struct ucontext that holds the thread as it was before the batch
//
// It ends by sending SIGWINCH to its own thread: the tracer sees a signal-delivery stop at `godwit_gadget_stop` and puts
// the thread's registers back. Without a tracer (it died in between) the signal does nothing, and rt_sigreturn puts back
// everything from the ucontext: the program goes on as if nothing had been. An int3 would be fatal then, and would reset
// the program's own disposition of SIGTRAP if that is blocked or ignored.

        .section .rodata
        .globl godwit_gadget_begin, godwit_gadget_syscall, godwit_gadget_stop, godwit_gadget_end
godwit_gadget_begin:
        mov     %r13d, %eax
        mov     %r13, %rdx
        shr     $32, %rdx
        xsave64 (%r12)
1:      mov     8(%rbx), %rdi
        mov     16(%rbx), %rsi
        mov     24(%rbx), %rdx
        mov     32(%rbx), %r10
        mov     40(%rbx), %r8
        mov     48(%rbx), %r9
        mov     (%rbx), %rax
        test    %rax, %rax
        js      2f
godwit_gadget_syscall:
        syscall
        mov     %rax, 56(%rbx)
        cmp     $-4095, %rax
        jb      3f
        testb   $1, 72(%rbx)            // a failure here ends the batch
        jnz     4f
        jmp     3f
2:      mov     (%rdi), %rax            // no system call: the result of one becomes the argument of another
        mov     %rax, (%rsi)
3:      mov     64(%rbx), %rbx
        test    %rbx, %rbx
        jnz     1b
4:      mov     $186, %eax              // gettid
        syscall
        mov     %eax, %edi
        mov     $28, %esi               // SIGWINCH
        mov     $200, %eax              // tkill
        syscall
godwit_gadget_stop:
        mov     %r14, %rsp
        mov     $15, %eax               // rt_sigreturn
        syscall
godwit_gadget_end:
        .section .note.GNU-stack, "", @progbits
