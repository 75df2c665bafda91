//! The default filter of system calls: what Docker's default profile allows to a container without further
//! capabilities, and nothing else. Namespaces, mounts, keys, BPF, io_uring, kernel modules, clocks and the like are
//! refused with "operation not permitted".

use std::collections::BTreeMap;
use std::sync::LazyLock;

use nix::libc;
use nix::libc::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};
use serde_json::{Value, json};

/// System calls from this number on are younger than the list. To those a container gets "not implemented", so that
/// a C library falls back on what it did before them.
const UNKNOWN_FROM: u32 = 470;

/// Flags of `clone` that make namespaces.
const CLONE_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Values of `personality` that weaken nothing: Linux, 32-bit Linux, both with the version masked, and the query.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Sockets of the kernel's cryptography and of the hypervisor have been ways out.
const FAMILIES: [u64; 2] = [libc::AF_ALG as u64, libc::AF_VSOCK as u64];

/// The filters in the form the shim reads: for each a count of instructions, and these.
pub(super) fn encoded() -> &'static [u8] {
    static ENCODED: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut bytes = Vec::new();
        // When both refuse, the kernel takes the error of the filter loaded last.
        for filter in [allow_list(), not_implemented()] {
            bytes.extend_from_slice(&(filter.len() as u32).to_le_bytes());
            for instruction in filter {
                bytes.extend_from_slice(&instruction.code.to_le_bytes());
                bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
                bytes.extend_from_slice(&instruction.k.to_le_bytes());
            }
        }
        bytes
    });
    &ENCODED
}

/// The same in names, for runtimes that compile it themselves.
pub(super) fn named() -> Value {
    let names: Vec<&str> = ALLOWED
        .iter()
        .chain(ALLOWED_HERE)
        .map(|(_, name)| name.trim_start_matches("SYS_"))
        .chain(ALLOWED_BY_NUMBER.iter().map(|(_, name)| *name))
        .collect();
    let allow =
        |name: &str, args: Vec<Value>| json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args});
    let compare =
        |op: &str, value: u64, other: u64| json!({"index": 0, "op": op, "value": value, "valueTwo": other});
    let mut calls = vec![
        json!({"names": names, "action": "SCMP_ACT_ALLOW"}),
        allow("clone", vec![compare("SCMP_CMP_MASKED_EQ", CLONE_NAMESPACES, 0)]),
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS}),
    ];
    calls.extend(PERSONALITIES.map(|value| allow("personality", vec![compare("SCMP_CMP_EQ", value, 0)])));
    let [alg, vsock] = FAMILIES;
    let kept = [("SCMP_CMP_LT", alg), ("SCMP_CMP_GT", vsock)].into_iter();
    // Two conditions on one argument are alternatives to some runtimes: those between are named one by one.
    let kept = kept.chain((alg + 1..vsock).map(|family| ("SCMP_CMP_EQ", family)));
    calls.extend(kept.map(|(op, value)| allow("socket", vec![compare(op, value, 0)])));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": [if cfg!(target_arch = "x86_64") { "SCMP_ARCH_X86_64" } else { "SCMP_ARCH_AARCH64" }],
        "syscalls": calls,
    })
}

fn allow_list() -> BpfProgram {
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let arch =
        std::env::consts::ARCH.try_into().expect("the filter library knows the architectures we build for");
    SeccompFilter::new(rules(), refuse, SeccompAction::Allow, arch)
        .and_then(BpfProgram::try_from)
        .expect("the rules are constants, and a test compiles them")
}

fn rules() -> BTreeMap<i64, Vec<SeccompRule>> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = ALLOWED
        .iter()
        .chain(ALLOWED_HERE)
        .chain(ALLOWED_BY_NUMBER)
        .map(|(number, _)| (*number, Vec::new()))
        .collect();
    let when = |argument: u8, operator: SeccompCmpOp, value: u64| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value);
        condition
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .expect("the conditions are constants, and a test builds them")
    };
    rules.insert(SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(CLONE_NAMESPACES), 0)]);
    rules.insert(
        SYS_personality,
        PERSONALITIES.iter().map(|value| when(0, SeccompCmpOp::Eq, *value)).collect(),
    );
    let between = |low: u64, high: u64| {
        let conditions = [(SeccompCmpOp::Gt, low), (SeccompCmpOp::Lt, high)].map(|(operator, value)| {
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, operator, value)
                .expect("the conditions are constants, and a test builds them")
        });
        SeccompRule::new(conditions.into()).expect("the conditions are constants, and a test builds them")
    };
    let [alg, vsock] = FAMILIES;
    rules.insert(
        SYS_socket,
        vec![when(0, SeccompCmpOp::Lt, alg), between(alg, vsock), when(0, SeccompCmpOp::Gt, vsock)],
    );
    rules
}

/// Says "not implemented" to `clone3`, whose flags a filter cannot see, and to what is younger than the list.
fn not_implemented() -> BpfProgram {
    const LOAD_WORD: u16 = 0x20;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_GREATER_EQUAL: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const RET_ALLOW: u32 = 0x7fff_0000;
    const RET_ERRNO: u32 = 0x0005_0000;
    let instruction = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    vec![
        instruction(LOAD_WORD, 0, 0, 0),
        instruction(JUMP_EQUAL, 2, 0, SYS_clone3 as u32),
        instruction(JUMP_GREATER_EQUAL, 1, 0, UNKNOWN_FROM),
        instruction(RETURN, 0, 0, RET_ALLOW),
        instruction(RETURN, 0, 0, RET_ERRNO | libc::ENOSYS as u32),
    ]
}

/// System calls with their names.
macro_rules! calls {
    [$($call:ident),* $(,)?] => { &[$(($call, stringify!($call))),*] };
}

#[rustfmt::skip]
const ALLOWED: &[(c_long, &str)] = calls![
    SYS_accept, SYS_accept4, SYS_adjtimex, SYS_bind, SYS_brk, SYS_capget, SYS_capset, SYS_chdir,
    SYS_chroot, SYS_clock_adjtime, SYS_clock_getres, SYS_clock_gettime, SYS_clock_nanosleep, SYS_close,
    SYS_close_range, SYS_connect, SYS_copy_file_range, SYS_dup, SYS_dup3, SYS_epoll_create1, SYS_epoll_ctl,
    SYS_epoll_pwait, SYS_epoll_pwait2, SYS_eventfd2, SYS_execve, SYS_execveat, SYS_exit, SYS_exit_group,
    SYS_faccessat, SYS_faccessat2, SYS_fadvise64, SYS_fallocate, SYS_fanotify_mark, SYS_fchdir, SYS_fchmod,
    SYS_fchmodat, SYS_fchown, SYS_fchownat, SYS_fcntl, SYS_fdatasync, SYS_fgetxattr, SYS_flistxattr,
    SYS_flock, SYS_fremovexattr, SYS_fsetxattr, SYS_fstat, SYS_fstatfs, SYS_fsync, SYS_ftruncate,
    SYS_futex, SYS_futex_waitv, SYS_get_robust_list, SYS_getcpu, SYS_getcwd, SYS_getdents64, SYS_getegid,
    SYS_geteuid, SYS_getgid, SYS_getgroups, SYS_getitimer, SYS_getpeername, SYS_getpgid, SYS_getpid,
    SYS_getppid, SYS_getpriority, SYS_getrandom, SYS_getresgid, SYS_getresuid, SYS_getrlimit,
    SYS_getrusage, SYS_getsid, SYS_getsockname, SYS_getsockopt, SYS_gettid, SYS_gettimeofday, SYS_getuid,
    SYS_getxattr, SYS_inotify_add_watch, SYS_inotify_init1, SYS_inotify_rm_watch, SYS_io_cancel,
    SYS_io_destroy, SYS_io_getevents, SYS_io_setup, SYS_io_submit, SYS_ioctl, SYS_ioprio_get,
    SYS_ioprio_set, SYS_kill, SYS_landlock_add_rule, SYS_landlock_create_ruleset,
    SYS_landlock_restrict_self, SYS_lgetxattr, SYS_linkat, SYS_listen, SYS_listxattr, SYS_llistxattr,
    SYS_lremovexattr, SYS_lseek, SYS_lsetxattr, SYS_madvise, SYS_membarrier, SYS_memfd_create,
    SYS_memfd_secret, SYS_mincore, SYS_mkdirat, SYS_mknodat, SYS_mlock, SYS_mlock2, SYS_mlockall, SYS_mmap,
    SYS_mprotect, SYS_mq_getsetattr, SYS_mq_notify, SYS_mq_open, SYS_mq_timedreceive, SYS_mq_timedsend,
    SYS_mq_unlink, SYS_mremap, SYS_mseal, SYS_msgctl, SYS_msgget, SYS_msgrcv, SYS_msgsnd, SYS_msync,
    SYS_munlock, SYS_munlockall, SYS_munmap, SYS_name_to_handle_at, SYS_nanosleep, SYS_newfstatat,
    SYS_openat, SYS_openat2, SYS_pidfd_getfd, SYS_pidfd_open, SYS_pidfd_send_signal, SYS_pipe2,
    SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect, SYS_ppoll, SYS_prctl, SYS_pread64, SYS_preadv,
    SYS_preadv2, SYS_prlimit64, SYS_process_mrelease, SYS_process_vm_readv, SYS_process_vm_writev,
    SYS_pselect6, SYS_ptrace, SYS_pwrite64, SYS_pwritev, SYS_pwritev2, SYS_read, SYS_readahead,
    SYS_readlinkat, SYS_readv, SYS_recvfrom, SYS_recvmmsg, SYS_recvmsg, SYS_remap_file_pages,
    SYS_removexattr, SYS_renameat, SYS_renameat2, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction,
    SYS_rt_sigpending, SYS_rt_sigprocmask, SYS_rt_sigqueueinfo, SYS_rt_sigreturn, SYS_rt_sigsuspend,
    SYS_rt_sigtimedwait, SYS_rt_tgsigqueueinfo, SYS_sched_get_priority_max, SYS_sched_get_priority_min,
    SYS_sched_getaffinity, SYS_sched_getattr, SYS_sched_getparam, SYS_sched_getscheduler,
    SYS_sched_rr_get_interval, SYS_sched_setaffinity, SYS_sched_setattr, SYS_sched_setparam,
    SYS_sched_setscheduler, SYS_sched_yield, SYS_seccomp, SYS_semctl, SYS_semget, SYS_semop,
    SYS_semtimedop, SYS_sendfile, SYS_sendmmsg, SYS_sendmsg, SYS_sendto, SYS_set_robust_list,
    SYS_set_tid_address, SYS_setfsgid, SYS_setfsuid, SYS_setgid, SYS_setgroups, SYS_setitimer, SYS_setpgid,
    SYS_setpriority, SYS_setregid, SYS_setresgid, SYS_setresuid, SYS_setreuid, SYS_setrlimit, SYS_setsid,
    SYS_setsockopt, SYS_setuid, SYS_setxattr, SYS_shmat, SYS_shmctl, SYS_shmdt, SYS_shmget, SYS_shutdown,
    SYS_sigaltstack, SYS_signalfd4, SYS_socketpair, SYS_splice, SYS_statfs, SYS_statx, SYS_symlinkat,
    SYS_sync, SYS_sync_file_range, SYS_syncfs, SYS_sysinfo, SYS_tee, SYS_tgkill, SYS_timer_create,
    SYS_timer_delete, SYS_timer_getoverrun, SYS_timer_gettime, SYS_timer_settime, SYS_timerfd_create,
    SYS_timerfd_gettime, SYS_timerfd_settime, SYS_times, SYS_tkill, SYS_truncate, SYS_umask, SYS_uname,
    SYS_unlinkat, SYS_utimensat, SYS_vmsplice, SYS_wait4, SYS_waitid, SYS_write, SYS_writev,
];

/// What only the older architecture has.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ALLOWED_HERE: &[(c_long, &str)] = calls![
    SYS_access, SYS_alarm, SYS_arch_prctl, SYS_chmod, SYS_chown, SYS_creat, SYS_dup2, SYS_epoll_create,
    SYS_epoll_ctl_old, SYS_epoll_wait, SYS_epoll_wait_old, SYS_eventfd, SYS_fchmodat2, SYS_fork,
    SYS_futimesat, SYS_get_thread_area, SYS_getdents, SYS_getpgrp, SYS_inotify_init, SYS_lchown, SYS_link,
    SYS_lstat, SYS_mkdir, SYS_mknod, SYS_modify_ldt, SYS_open, SYS_pause, SYS_pipe, SYS_poll, SYS_readlink,
    SYS_rename, SYS_rmdir, SYS_select, SYS_set_thread_area, SYS_signalfd, SYS_stat, SYS_symlink, SYS_time,
    SYS_unlink, SYS_utime, SYS_utimes, SYS_vfork,
];

/// What libc has no names for yet, with one number on all architectures.
const ALLOWED_BY_NUMBER: &[(c_long, &str)] = &[
    (451, "cachestat"),
    (453, "map_shadow_stack"),
    (454, "futex_wake"),
    (455, "futex_wait"),
    (456, "futex_requeue"),
    (457, "statmount"),
    (458, "listmount"),
    (463, "setxattrat"),
    (464, "getxattrat"),
    (465, "listxattrat"),
    (466, "removexattrat"),
];

#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[(c_long, &str)] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_fit() {
        assert!(allow_list().len() < 4096, "the kernel takes at most 4096 instructions");
        let bytes = encoded();
        let first = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        assert_eq!(bytes.len(), 4 + first * 8 + 4 + 5 * 8);
    }

    #[test]
    fn what_leads_out_of_a_container_is_not_allowed() {
        let rules = rules();
        for denied in [
            SYS_mount,
            SYS_umount2,
            SYS_pivot_root,
            SYS_setns,
            SYS_unshare,
            SYS_open_tree,
            SYS_move_mount,
            SYS_fsopen,
            SYS_fsconfig,
            SYS_fsmount,
            SYS_mount_setattr,
            SYS_bpf,
            SYS_perf_event_open,
            SYS_keyctl,
            SYS_add_key,
            SYS_request_key,
            SYS_userfaultfd,
            SYS_io_uring_setup,
            SYS_io_uring_enter,
            SYS_io_uring_register,
            SYS_open_by_handle_at,
            SYS_init_module,
            SYS_finit_module,
            SYS_delete_module,
            SYS_kexec_load,
            SYS_reboot,
            SYS_swapon,
            SYS_swapoff,
            SYS_acct,
            SYS_settimeofday,
            SYS_clock_settime,
            SYS_quotactl,
            SYS_syslog,
            SYS_sethostname,
            SYS_setdomainname,
            SYS_vhangup,
            SYS_move_pages,
            SYS_mbind,
            SYS_fanotify_init,
            SYS_kcmp,
        ] {
            assert!(!rules.contains_key(&denied), "system call {denied} is allowed");
        }
    }
}
