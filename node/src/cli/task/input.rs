//! Standard input, as it is passed on to a task: as much of it as the task takes, so that signals and sizes never wait
//! behind what it does not read.

use super::input;
use rswarm_proto::v1 as pb;
use rswarm_proto::v1::enter_input::What as Input;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use tokio::sync::mpsc;

/// How much is read at once, in bytes.
const CHUNK: usize = 32 * 1024;

/// How many bytes the other side takes, all in all. Until it says so, any number: one of an older version never does.
#[derive(Clone, Default)]
pub struct Room(Arc<(Mutex<Option<u64>>, Condvar)>);

impl Room {
    /// It takes so many.
    pub fn grant(&self, bytes: u64) {
        let (granted, grown) = &*self.0;
        *granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        grown.notify_all();
    }

    /// Waits until there is room for something after so many.
    fn wait(&self, sent: u64) {
        let (granted, grown) = &*self.0;
        let guard = granted.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |granted: &mut Option<u64>| granted.is_some_and(|granted| sent >= granted);
        drop(grown.wait_while(guard, full));
    }
}

/// Passes standard input on until its end, or until `take` says that it is over; says which. What `take` returns is
/// passed on. On a thread of its own, because a read that waits for somebody to type cannot be given up otherwise.
pub fn feed(
    sender: &mpsc::Sender<pb::EnterInput>,
    room: &Room,
    mut take: impl FnMut(&[u8]) -> (Vec<u8>, bool),
) -> bool {
    let mut stdin = std::io::stdin().lock();
    let mut buffer = vec![0; CHUNK];
    let mut sent = 0;
    while let Ok(count @ 1..) = stdin.read(&mut buffer) {
        let (bytes, over) = take(&buffer[..count]);
        if !bytes.is_empty() {
            room.wait(sent);
            sent += bytes.len() as u64;
            if sender.blocking_send(input(Input::Data(bytes.into()))).is_err() {
                return false;
            }
        }
        if over {
            return true;
        }
    }
    let _ = sender.blocking_send(input(Input::End(true)));
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_until_it_is_said_how_much_and_then_as_much_as_was_said() {
        let room = Room::default();
        room.wait(u64::MAX);
        room.grant(10);
        room.wait(9);
        let waiting = std::thread::spawn({
            let room = room.clone();
            move || room.wait(10)
        });
        room.grant(20);
        waiting.join().unwrap();
    }
}
