//! A small init: process 1 of containers that ask for one. It passes signals on to the program, which is its child,
//! reaps whatever is left to it, and ends as the program does. By then it has the program's user, capabilities and
//! filters.

use std::mem;
use std::ptr;

use crate::sys::{Result, check};

/// Becomes two processes: returns in the one that goes on to be the program, and never in process 1.
pub fn split() -> Result<()> {
    // SAFETY: calls on this process, which has one thread, only; sets and the status are valid for writing.
    unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (mem::zeroed(), mem::zeroed());
        libc::sigfillset(&raw mut all);
        // From here on nothing that is sent to process 1 is lost.
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const all, &raw mut before), "sigprocmask")?;
        match check(libc::fork(), "fork from the init")? as i32 {
            0 => {
                // A terminal's keys are for the program, and not for its init.
                libc::setpgid(0, 0);
                if libc::isatty(0) == 1 {
                    libc::tcsetpgrp(0, libc::getpid());
                }
                libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut());
                Ok(())
            }
            program => guard(program, &all),
        }
    }
}

/// Serves until the program has ended.
fn guard(program: i32, signals: &libc::sigset_t) -> ! {
    // SAFETY: calls on this process and its children only; the status is valid for writing.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"rswarm-init".as_ptr());
        // Neither the pipes nor the word to the shim are held up by this one.
        libc::syscall(libc::SYS_close_range, 0_u32, u32::MAX, 0);
        loop {
            let signal = libc::sigwaitinfo(signals, ptr::null_mut());
            if signal == libc::SIGCHLD {
                reap(program);
            } else if signal > 0 {
                libc::kill(program, signal);
            }
        }
    }
}

/// Takes leave of every child that has ended; of the program with the whole container.
fn reap(program: i32) {
    loop {
        let mut status = 0;
        // SAFETY: the status is valid for writing.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
        if pid <= 0 {
            return;
        }
        if pid == program {
            let code = match libc::WIFSIGNALED(status) {
                true => 128 + libc::WTERMSIG(status),
                false => libc::WEXITSTATUS(status),
            };
            // SAFETY: ends this process without running anything of the shim's.
            unsafe { libc::_exit(code) }
        }
    }
}
