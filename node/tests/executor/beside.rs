//! Other programs in a running container, probes among them.

use super::bench::{Bench, Claim, PATIENCE, claims, inside_words, processes, until};
use rswarm::executor::{Error, Exec, Probe, State, WindowSize};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

pub const CLAIMS: &[Claim] = claims![
    another_program_runs_inside,
    a_probe_tells_the_well_from_the_ill,
    a_probe_that_hangs_is_killed_with_its_children,
    a_port_is_probed_inside_the_containers_network,
    a_program_beside_has_a_terminal_of_the_containers_own,
    a_program_beside_is_signalled_and_listed,
    a_program_that_is_held_up_on_its_way_in_holds_up_nobody_else,
    a_paused_container_stands_still_and_can_be_stopped,
];

pub fn another_program_runs_inside(bench: &mut Bench) {
    let mut request = bench.request(&["hang"]);
    request.env = vec!["COLOUR=blue".into()];
    let id = bench.start(request).unwrap();
    let run = |exec: Exec| {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let stdio = [null(), OwnedFd::from(writer), null()];
        let exit = bench.wait(bench.executor.exec(&id, exec, stdio));
        let mut output = String::new();
        reader.read_to_string(&mut output).unwrap();
        (exit, output)
    };
    let exec = |words: &[&str]| {
        let args = ["/bin/inside", "inside"].iter().chain(words).map(ToString::to_string).collect();
        Exec { args, env: vec!["SHAPE=round".into()], ..Exec::default() }
    };
    let (exit, output) = run(exec(&["names"]));
    assert_eq!(exit.unwrap().code, 0);
    assert!(output.contains("COLOUR=blue") && output.contains("SHAPE=round"), "{output}");
    let (exit, output) =
        run(Exec { user: Some("web".into()), workdir: Some("/data".into()), ..exec(&["who"]) });
    assert_eq!(exit.unwrap().code, 0);
    assert!(output.contains("33:34 [40] home=/srv in /data"), "{output}");
    let (exit, output) = run(exec(&["profile"]));
    assert_eq!(exit.unwrap().code, 0);
    assert!(output.contains("CapBnd: 00000000000405fb") && output.contains("Seccomp: 2"), "{output}");
    let (exit, _) = run(exec(&["exit", "9"]));
    assert_eq!((exit.as_ref().unwrap().code, exit.unwrap().timed_out), (9, false));
    let (exit, _) = run(Exec { timeout_ms: Some(50), ..exec(&["hang"]) });
    assert_eq!((exit.as_ref().unwrap().code, exit.unwrap().timed_out), (137, true));
    let (exit, _) = run(Exec { args: vec!["/nothing".into()], ..exec(&[]) });
    assert!(matches!(exit, Err(Error::Start { code: 127, .. })), "{exit:?}");
    // A program still running beside the first one ends with it.
    let executor = bench.executor.clone();
    let null = || OwnedFd::from(File::open("/dev/null").unwrap());
    let (hanging, beside) = (exec(&["hang"]), id.clone());
    bench.runtime.spawn(async move { executor.exec(&beside, hanging, [null(), null(), null()]).await });
    bench.wait(async {
        while bench.executor.stats(&id).await.is_ok_and(|usage| usage.pids == 1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bench.executor.stop(&id, Duration::ZERO).await.unwrap();
    });
}

fn a_probe_tells_the_well_from_the_ill(bench: &mut Bench) {
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    let probe = |words: &[&str]| {
        let probe = Probe::Exec { args: inside_words(words) };
        bench.wait(bench.executor.probe(&id, &probe, PATIENCE))
    };
    let well = probe(&["speak"]);
    assert!(well.healthy && well.output.starts_with("one\nwrong\ntwo\nxxx"), "{well:?}");
    // Far more was written, and nobody waited for it to be read.
    assert_eq!(well.output.len(), 4096);
    assert_eq!(
        probe(&["exit", "3"]),
        rswarm::executor::ProbeOutcome { healthy: false, output: "exit code 3".into() }
    );
    let missing = Probe::Exec { args: vec!["/nothing".into()] };
    let ill = bench.wait(bench.executor.probe(&id, &missing, PATIENCE));
    assert!(!ill.healthy && ill.output.contains("no such file"), "{ill:?}");
    bench.wait(bench.executor.stop(&id, Duration::ZERO)).unwrap();
    let ended = probe(&["exit", "0"]);
    assert!(!ended.healthy && ended.output.contains("is not running"), "{ended:?}");
    let unknown = bench.wait(bench.executor.probe("nobody", &missing, PATIENCE));
    assert!(!unknown.healthy && unknown.output.contains("there is no container nobody"), "{unknown:?}");
}

fn a_probe_that_hangs_is_killed_with_its_children(bench: &mut Bench) {
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    let alone = |bench: &Bench| {
        until("the probe's processes are gone", || {
            processes().iter().filter(|line| line.contains("brood")).count() == 0
        });
        for cgroup in bench.cgroups() {
            let own = fs::read_dir(cgroup).unwrap().map(|entry| entry.unwrap().path());
            let own = own.filter(|path| path.is_dir()).find(|path| path.ends_with(&id));
            assert!(
                own.is_none_or(|own| fs::read_dir(own).unwrap().all(|entry| !entry.unwrap().path().is_dir()))
            );
        }
    };
    // Its child has left its session, and holds its output open.
    let probe = Probe::Exec { args: inside_words(&["brood", "hang"]) };
    let ill = bench.wait(bench.executor.probe(&id, &probe, Duration::from_millis(300)));
    assert!(!ill.healthy && ill.output.contains("no answer within 300ms"), "{ill:?}");
    assert!(ill.output.contains("hatched"), "what it wrote is kept: {ill:?}");
    alone(bench);
    // One that ends in good order leaves nothing either.
    let probe = Probe::Exec { args: inside_words(&["brood", "leave"]) };
    let well = bench.wait(bench.executor.probe(&id, &probe, PATIENCE));
    assert!(well.healthy, "{well:?}");
    alone(bench);
    // Nor does one that nobody waits for any more.
    let probe = Probe::Exec { args: inside_words(&["brood", "hang"]) };
    bench.wait(async {
        let mut probing = std::pin::pin!(bench.executor.probe(&id, &probe, PATIENCE));
        let hatched = async {
            while !processes().iter().any(|line| line.contains("brood")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            found = &mut probing => panic!("it hangs, yet has answered {found:?}"),
            () = hatched => {}
        }
    });
    alone(bench);
    assert!(matches!(bench.executor.inspect(&id).unwrap().state, State::Running(_)));
}

fn a_port_is_probed_inside_the_containers_network(bench: &mut Bench) {
    let before = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let mut request = bench.request(&["serve"]);
    request.privileges.cap_add = vec!["NET_ADMIN".into()];
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "serving");
    let probe = |probe: Probe| bench.wait(bench.executor.probe(&id, &probe, PATIENCE));
    let http = |path: &str| probe(Probe::Http { port: 80, path: path.into() });
    let well = http("/fine?really");
    assert!(well.healthy && well.output == "HTTP 200 OK\nGET /fine?really", "{well:?}");
    assert!(http("/moved").healthy);
    let ill = http("/broken");
    assert!(!ill.healthy && ill.output.starts_with("HTTP 500"), "{ill:?}");
    let ill = http("/nonsense");
    assert!(!ill.healthy && ill.output.starts_with("no HTTP on port 80"), "{ill:?}");
    let hanging = Probe::Http { port: 80, path: "/hang".into() };
    let ill = bench.wait(bench.executor.probe(&id, &hanging, Duration::from_millis(200)));
    assert_eq!((ill.healthy, ill.output.as_str()), (false, "no answer within 200ms"));
    assert!(probe(Probe::Tcp { port: 80 }).healthy);
    let ill = probe(Probe::Tcp { port: 81 });
    assert!(!ill.healthy && ill.output.contains("cannot connect to port 81"), "{ill:?}");
    assert_eq!(fs::read_link("/proc/thread-self/ns/net").unwrap(), before);
}

fn a_program_beside_has_a_terminal_of_the_containers_own(bench: &mut Bench) {
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    for user in ["root", "web"] {
        let size = WindowSize { rows: 33, columns: 101 };
        let user = Some(user.to_owned());
        let exec = Exec { args: inside_words(&["terminal"]), tty: Some(size), user, ..Exec::default() };
        let mut execution = bench.wait(bench.executor.begin(&id, exec, Vec::new())).unwrap();
        let mut terminal = File::from(execution.take_terminal().unwrap());
        let mut said = String::new();
        let mut until_said = |words: &str, terminal: &mut File| {
            let mut buffer = [0; 4096];
            while !said.contains(words) {
                match terminal.read(&mut buffer) {
                    Ok(count @ 1..) => said.push_str(&String::from_utf8_lossy(&buffer[..count])),
                    ended => panic!("{words:?} is missing from {said:?}, and it is over: {ended:?}"),
                }
            }
        };
        until_said("33x101 on /dev/pts/", &mut terminal);
        let larger = rustix::termios::Winsize { ws_row: 50, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&terminal, larger).unwrap();
        terminal.write_all(b"again\n").unwrap();
        until_said("50x120 on /dev/pts/", &mut terminal);
        // What a terminal is for: the key that interrupts.
        terminal.write_all(b"\x03").unwrap();
        assert_eq!(bench.wait(execution.wait()).unwrap().code, 130);
    }
}

fn a_program_beside_is_signalled_and_listed(bench: &mut Bench) {
    let request = bench.request(&["hang"]);
    let id = bench.start(request).unwrap();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let null = OwnedFd::from(File::open("/dev/null").unwrap());
    let exec = Exec { args: inside_words(&["obey"]), ..Exec::default() };
    let begun = bench.executor.begin(&id, exec, vec![null, OwnedFd::from(writer)]);
    let mut execution = bench.wait(begun).unwrap();
    let mut said = [0; 6];
    reader.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"ready\n");
    let listed = bench.wait(bench.executor.processes(&id)).unwrap();
    let commands: Vec<(i32, &str)> =
        listed.iter().map(|process| (process.pid, process.command.as_str())).collect();
    let (first, beside) = (bench.pid(&id), execution.pid());
    assert_eq!(commands, [(first, "/bin/inside inside hang"), (beside, "/bin/inside inside obey")]);
    assert!(listed.iter().all(|process| process.uid == 0 && process.tty.is_none()), "{listed:?}");
    bench.wait(bench.executor.signal(&id, beside, 15)).unwrap();
    assert_eq!(bench.wait(execution.wait()).unwrap().code, 7);
    bench.wait(bench.executor.signal(&id, beside, 15)).unwrap();
}

fn a_program_that_is_held_up_on_its_way_in_holds_up_nobody_else(bench: &mut Bench) {
    // It stops whatever else comes to be in its container, over and over.
    let request = bench.request(&["stop-others"]);
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "ready");
    for _ in 0..3 {
        let timeout_ms = Some(300);
        let exec = Exec { args: inside_words(&["hang"]), timeout_ms, contained: true, ..Exec::default() };
        bench.wait(async {
            let beginning = async {
                match bench.executor.begin(&id, exec, Vec::new()).await {
                    Ok(mut begun) => assert!(begun.wait().await.unwrap().timed_out),
                    Err(error) => assert!(error.to_string().contains("in time"), "{error}"),
                }
            };
            let others = async {
                for _ in 0..50 {
                    bench.executor.stats(&id).await.unwrap();
                }
            };
            tokio::join!(beginning, others);
        });
    }
    assert_eq!(bench.wait(bench.executor.stop(&id, Duration::ZERO)).unwrap().unwrap().code, 137);
}

fn a_paused_container_stands_still_and_can_be_stopped(bench: &mut Bench) {
    let burning = bench.request(&["burn"]);
    let burning = bench.start(burning).unwrap();
    let obedient = bench.request(&["obey"]);
    let obedient = bench.start(obedient).unwrap();
    bench.until_said(&obedient, "ready");
    let pause = |id: &str| bench.wait(bench.executor.pause(id));
    if let Err(error) = pause(&burning) {
        assert!(bench.cgroups().is_empty(), "{error}");
        return eprintln!("skipped: {error}");
    }
    let used = || bench.wait(bench.executor.stats(&burning)).unwrap().cpu_ns;
    let before = used();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(used(), before);
    let exec = Exec { args: inside_words(&["exit", "0"]), ..Exec::default() };
    let refused = bench.wait(bench.executor.begin(&burning, exec, Vec::new())).err().unwrap();
    assert!(refused.to_string().contains("is paused"), "{refused}");
    pause(&burning).unwrap();
    bench.wait(bench.executor.unpause(&burning)).unwrap();
    until("it goes on", || used() > before);
    // One that is asked to end hears it, and one that is killed dies.
    pause(&obedient).unwrap();
    let exit = bench.wait(bench.executor.stop(&obedient, PATIENCE)).unwrap().unwrap();
    assert_eq!(exit.code, 7);
    pause(&burning).unwrap();
    bench.wait(bench.executor.remove(&burning)).unwrap();
}
