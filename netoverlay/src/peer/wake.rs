//! A queue into the data thread, which sleeps in `poll`: whoever adds to it rings an eventfd.

use std::{
    io, mem,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
};

use rustix::event::EventfdFlags;

/// The queue. Bounded by those who send: one entry for each stream at most, and one for each call in progress.
#[derive(Debug)]
pub(super) struct Wake<T> {
    bell: OwnedFd,
    queue: Mutex<Vec<T>>,
}

impl<T> Wake<T> {
    pub fn new() -> io::Result<Self> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { bell, queue: Mutex::default() })
    }

    /// Adds an entry and wakes the thread.
    pub fn send(&self, item: T) {
        let first = {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.push(item);
            queue.len() == 1
        };
        if first {
            // Fails only when the counter is full, and then the bell rings already.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// Takes all entries and stops the bell.
    pub fn take(&self) -> Vec<T> {
        // Read before the queue is emptied: an entry added in between rings again.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T> AsFd for Wake<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}
