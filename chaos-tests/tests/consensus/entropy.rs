//! Where the standard library asks the kernel for randomness, it gets what follows from a seed on a thread that has
//! one. That is what tokio derives the order from in which it wakes those who wait for the same thing, and by which
//! a run would differ from the next.

use std::cell::Cell;

thread_local! {
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on, this thread's randomness follows from `seed`.
pub fn seed(seed: u64) {
    STATE.set(Some(seed));
}

/// Stands before the C library's, for this test program alone.
///
/// # Safety
/// As for the C library's: `buffer` must be writable for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, flags: u32) -> isize {
    let Ok(Some(mut state)) = STATE.try_with(Cell::get) else {
        // SAFETY: what the caller promised is what the system call asks for.
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    };
    // SAFETY: the caller promised that so many bytes can be written there.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer, length) };
    for byte in bytes {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        *byte = (state >> 56) as u8;
    }
    STATE.set(Some(state));
    length as isize
}
