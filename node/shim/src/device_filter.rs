//! The device filter of cgroup v2: a BPF program that says which device nodes may be opened.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::cgroup::DeviceRule;

const BPF_PROG_LOAD: i64 = 5;
const BPF_PROG_ATTACH: i64 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

const LOAD_WORD: u8 = 0x61;
const MOVE_REG: u8 = 0xbf;
const MOVE_IMM: u8 = 0xb7;
const AND_IMM: u8 = 0x54;
const SHIFT_RIGHT_IMM: u8 = 0x74;
const JUMP_NOT_EQUAL_IMM: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Attaches the filter to the cgroup whose directory is `cgroup`.
pub(crate) fn attach(cgroup: BorrowedFd<'_>, allowed: &[DeviceRule]) -> io::Result<()> {
    let program = program(allowed);
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        licence: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }
    let load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: `load` is a prefix of union bpf_attr, and what it points at outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, mem::size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has just returned this descriptor.
    let filter = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attach: [u32; 4] =
        [cgroup.as_raw_fd() as u32, filter.as_raw_fd() as u32, BPF_CGROUP_DEVICE, BPF_F_ALLOW_MULTI];
    // SAFETY: `attach` is a prefix of union bpf_attr.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, attach.as_ptr(), mem::size_of_val(&attach)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The filter: registers 2, 3, 4, 5 hold kind, access, major, minor of the node to be opened or made.
fn program(allowed: &[DeviceRule]) -> Vec<u64> {
    const BLOCK_DEVICE: i32 = 1;
    const CHARACTER_DEVICE: i32 = 2;
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(MOVE_REG, 3, 2, 0, 0),
        instruction(AND_IMM, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_IMM, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    // Making a node is governed by CAP_MKNOD; only opening one is governed here.
    program.extend(allow_if(&[], READ | WRITE));
    for DeviceRule { block, major, minor, access } in allowed {
        let mut conditions = vec![(2, if *block { BLOCK_DEVICE } else { CHARACTER_DEVICE })];
        conditions.extend(major.map(|major| (4, major as i32)));
        conditions.extend(minor.map(|minor| (5, minor as i32)));
        let bits = [('m', MAKE_NODE), ('r', READ), ('w', WRITE)];
        let forbidden = bits.into_iter().filter(|(letter, _)| !access.contains(*letter));
        program.extend(allow_if(&conditions, forbidden.map(|(_, bit)| bit).sum()));
    }
    program.extend([instruction(MOVE_IMM, 0, 0, 0, 0), instruction(EXIT, 0, 0, 0, 0)]);
    program
}

const MAKE_NODE: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

/// Returns 1 if every register holds its value and nothing forbidden is asked for, else falls through to what
/// follows.
fn allow_if(conditions: &[(u8, i32)], forbidden: i32) -> Vec<u64> {
    let length = conditions.len() + if forbidden == 0 { 2 } else { 5 };
    let skip = |at: usize| (length - at - 1) as i16;
    let mut part: Vec<u64> = conditions
        .iter()
        .enumerate()
        .map(|(at, (register, value))| instruction(JUMP_NOT_EQUAL_IMM, *register, 0, skip(at), *value))
        .collect();
    if forbidden != 0 {
        part.push(instruction(MOVE_REG, 0, 3, 0, 0));
        part.push(instruction(AND_IMM, 0, 0, 0, forbidden));
        part.push(instruction(JUMP_NOT_EQUAL_IMM, 0, 0, skip(part.len()), 0));
    }
    part.extend([instruction(MOVE_IMM, 0, 0, 0, 1), instruction(EXIT, 0, 0, 0, 0)]);
    part
}

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(destination | source << 4) << 8
        | u64::from(offset as u16) << 16
        | u64::from(immediate as u32) << 32
}
