//! A container's own streams and terminal, for whoever attaches.

use super::bench::{Bench, Claim, claims};
use rswarm::executor::{AttachEnd, LogOptions, LogQuery, Mount};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

pub const CLAIMS: &[Claim] = claims![
    standard_input_is_fed_by_whoever_attaches,
    a_containers_own_terminal_is_attached_to,
    who_listens_too_slowly_is_let_go,
];

/// The reading end of what a container writes, which is listened to.
fn listen(bench: &Bench, id: &str) -> (rswarm::executor::Attached, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let error = OwnedFd::from(writer.try_clone().unwrap());
    let attached = bench.wait(bench.executor.attach(id, vec![writer.into(), error])).unwrap();
    (attached, reader)
}

fn standard_input_is_fed_by_whoever_attaches(bench: &mut Bench) {
    let mut request = bench.request(&["echo"]);
    request.stdin = true;
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "ready");
    let (mut attached, mut reader) = listen(bench, &id);
    let mut input = File::from(attached.take_input().expect("its standard input"));
    input.write_all(b"one\n").unwrap();
    let mut answer = [0; 8];
    reader.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"got one\n");
    // Another one may come and go.
    let (mut other, mut also) = listen(bench, &id);
    File::from(other.take_input().unwrap()).write_all(b"two\n").unwrap();
    also.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"got two\n");
    drop((other, also));
    bench.wait(bench.executor.close_stdin(&id)).unwrap();
    drop(input);
    match bench.wait(attached.wait()).unwrap() {
        AttachEnd::Exited(exit) => assert_eq!(exit.code, 5),
        AttachEnd::Lagging => panic!("nobody lags"),
    }
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got two\nend\n");
    // The log has all of it too.
    assert_eq!(bench.output(&id), "ready\ngot one\ngot two\nend\n");
    // Without being asked for there is none.
    let request = bench.request(&["echo"]);
    let (code, output) = bench.run(request);
    assert_eq!((code, output.as_str()), (5, "ready\nend\n"));
}

fn a_containers_own_terminal_is_attached_to(bench: &mut Bench) {
    let mut request = bench.request(&["terminal"]);
    // Another runtime has no init of ours, and nobody but an init heeds the key as process 1.
    let init = bench.config.runtime.is_none();
    (request.tty, request.init) = (true, init);
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "24x80 on /dev/pts/0\r");
    let (mut attached, mut reader) = listen(bench, &id);
    let terminal = attached.take_input().expect("its terminal");
    let size = rustix::termios::Winsize { ws_row: 9, ws_col: 33, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&terminal, size).unwrap();
    let mut terminal = File::from(terminal);
    terminal.write_all(b"\n").unwrap();
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains("9x33 on /dev/pts/0") {
        let mut buffer = [0; 64];
        let count = reader.read(&mut buffer).unwrap();
        assert!(count > 0, "it has ended");
        heard.extend_from_slice(&buffer[..count]);
    }
    // The interrupt key is for the program.
    terminal.write_all(b"\x03").unwrap();
    let end = match init {
        true => (130, None),
        false => {
            bench.wait(bench.executor.kill(&id, 9)).unwrap();
            (137, Some(9))
        }
    };
    match bench.wait(attached.wait()).unwrap() {
        AttachEnd::Exited(exit) => assert_eq!((exit.code, exit.signal), end),
        AttachEnd::Lagging => panic!("nobody lags"),
    }
}

fn who_listens_too_slowly_is_let_go(bench: &mut Bench) {
    let mut request = bench.request(&["count", "200000"]);
    request.log = LogOptions { file_bytes_max: 4 << 20, files_max: 2, ..LogOptions::default() };
    let gate = bench.directory.path().join("gate");
    fs::create_dir(&gate).unwrap();
    request.args.splice(2..2, ["gated".into(), "/gate/open".into()]);
    request.mounts = vec![Mount::Bind { source: gate.clone(), target: "/gate".into(), readonly: true }];
    let id = bench.start(request).unwrap();
    let (mut attached, reader) = listen(bench, &id);
    fs::write(gate.join("open"), "").unwrap();
    assert_eq!(bench.wait(attached.wait()).unwrap(), AttachEnd::Lagging);
    drop(reader);
    assert_eq!(bench.wait(bench.executor.wait(&id)).unwrap().code, 0);
    let tail = bench.entries(&id, LogQuery { tail: Some(1), ..LogQuery::default() });
    assert_eq!(tail[0].text, b"199999");
}
