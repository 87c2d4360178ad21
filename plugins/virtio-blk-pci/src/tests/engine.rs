//! Which engine does the work.
// A thread is forbidden a system call here, for which no crate has a wrapper: that needs `unsafe`.
#![allow(unsafe_code)]

use nix::libc::{self, sock_filter, sock_fprog};

use super::*;

/// Runs `test` on a thread, and on the threads it starts, where io_uring is forbidden as by the
/// policy of a container.
fn where_io_uring_is_forbidden(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let forbidden = scope.spawn(|| {
            forbid_io_uring();
            test();
        });
        forbidden.join().unwrap();
    });
}

fn forbid_io_uring() {
    let instruction = |code: u32, jt, jf, k| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equals = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let mut filter = [
        // The number of the system call is the first field of what the filter sees.
        instruction(load, 0, 0, 0),
        instruction(equals, 0, 1, libc::SYS_io_uring_setup as u32),
        instruction(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        instruction(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: the program and what it points to live through the calls.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program),
            0
        );
    }
}

#[test]
fn threads_do_it_where_io_uring_is_forbidden() {
    let dir = Dir::new();
    let image = dir.image(4096);
    where_io_uring_is_forbidden(|| {
        let mut bench = Bench::new(drive(&image), &[]);
        assert_eq!(bench.write(0, &[7; 512]), OK);
        assert_eq!(bench.read(0, 512).data, [7; 512]);
        bench.quiesce();
    });
}

#[test]
fn io_uring_that_was_asked_for_and_is_forbidden_is_an_error() {
    let dir = Dir::new();
    let image = dir.image(4096);
    let drive = Drive {
        aio: Some("io_uring".into()),
        ..drive(&image)
    };
    where_io_uring_is_forbidden(|| {
        assert_eq!(
            refusal(drive, &[]),
            format!(
                "Cannot set up io_uring for '{}': Operation not permitted (os error 1); allow it \
                 (sysctl kernel.io_uring_disabled, seccomp), or say aio=threads",
                image.display()
            )
        );
    });
}
