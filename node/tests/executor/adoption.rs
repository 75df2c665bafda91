//! What becomes of containers whose daemon or shim is killed.

use super::bench::{Bench, Claim, PATIENCE, claims, signal, until};
use rswarm::executor::{Config, ContainerRequest, Event, Executor, State};
use std::fs::{self, File};
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

pub const CLAIMS: &[Claim] = claims![
    a_container_survives_its_starter_and_is_adopted,
    an_end_nobody_watched_is_known_after_a_restart,
    a_container_dies_with_its_shim_and_is_known_to_be_lost,
    a_half_made_container_is_swept_away,
];

/// Starts a container in a process that is then killed: `starter ROOT RUN CGROUP IMAGE ID WORDS...`.
pub fn starter(args: &[String]) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let [root, run, cgroup, image, id, words @ ..] = args else {
        panic!("starter ROOT RUN CGROUP IMAGE ID WORDS...");
    };
    runtime.block_on(async {
        let config = Config {
            root_dir: root.into(),
            run_dir: run.into(),
            cgroup_parent: cgroup.into(),
            cgroup_mount: "/sys/fs/cgroup".into(),
            user_ids: Default::default(),
            runtime: None,
        };
        let executor = Executor::open(config).await.unwrap();
        let args =
            ["/bin/inside".to_owned(), "inside".to_owned()].into_iter().chain(words.to_vec()).collect();
        let mut request = ContainerRequest::new(id, vec![image.into()], args);
        request.labels.insert("task".into(), "t1".into());
        executor.create(request).await.unwrap();
        println!("{}", executor.start(id).await.unwrap().pid);
        std::future::pending::<()>().await;
    });
    ExitCode::SUCCESS
}

/// The pid of a container whose starter has been killed.
fn orphan(bench: &Bench, id: &str, words: &[&str]) -> i32 {
    let config = &bench.config;
    let mut starter = Command::new(std::env::current_exe().unwrap())
        .arg("starter")
        .args([&config.root_dir, &config.run_dir, &PathBuf::from(&config.cgroup_parent), &bench.image()])
        .arg(id)
        .args(words)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(starter.stdout.take().unwrap()).read_line(&mut line).unwrap();
    starter.kill().unwrap();
    starter.wait().unwrap();
    line.trim().parse().unwrap()
}

fn a_container_survives_its_starter_and_is_adopted(bench: &mut Bench) {
    let pid = orphan(bench, "orphan", &["obey"]);
    bench.reopen();
    assert_eq!(bench.pid("orphan"), pid);
    assert_eq!(bench.executor.inspect("orphan").unwrap().labels["task"], "t1");
    bench.until_said("orphan", "ready");
    let mut events = bench.executor.events();
    let exit = bench.wait(bench.executor.stop("orphan", PATIENCE)).unwrap().unwrap();
    assert_eq!(exit.code, 7);
    assert_eq!(bench.wait(events.next()), Some(Event::Exited { id: "orphan".into(), exit }));
}

fn an_end_nobody_watched_is_known_after_a_restart(bench: &mut Bench) {
    let pid = orphan(bench, "orphan", &["wait-for", "/data/go"]);
    File::create(format!("/proc/{pid}/root/data/go")).unwrap();
    let record = bench.config.root_dir.join("containers/orphan/exit.json");
    until("the exit record is written", || record.exists());
    bench.reopen();
    let State::Exited(exit) = bench.executor.inspect("orphan").unwrap().state else {
        panic!("it is not known to have ended");
    };
    assert_eq!((exit.code, exit.error), (3, None));
}

fn a_container_dies_with_its_shim_and_is_known_to_be_lost(bench: &mut Bench) {
    for (adopted, rebooted) in [(false, false), (true, false), (true, true)] {
        let request = bench.request(&["hang"]);
        let id = bench.start(request).unwrap();
        let State::Running(running) = bench.executor.inspect(&id).unwrap().state else {
            panic!("it does not run");
        };
        let dead = || !Path::new(&format!("/proc/{}/exe", running.pid)).exists();
        if adopted {
            // The old executor's tasks end with its runtime, so that only the new one sees what has happened.
            let fresh =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            std::mem::replace(&mut bench.runtime, fresh).shutdown_timeout(PATIENCE);
        }
        signal(running.shim_pid, 9);
        if rebooted {
            until("the program is dead", dead);
            fs::remove_dir_all(&bench.config.run_dir).unwrap();
        }
        if adopted {
            bench.reopen();
        }
        let exit = bench.wait(bench.executor.wait(&id)).unwrap();
        assert_eq!(exit.code, 255);
        assert!(exit.error.unwrap().contains("shim is gone"));
        until("the program is dead", dead);
        // It is told the same way ever after.
        bench.reopen();
        assert!(
            matches!(bench.executor.inspect(&id).unwrap().state, State::Exited(exit) if exit.code == 255)
        );
    }
}

fn a_half_made_container_is_swept_away(bench: &mut Bench) {
    let request = bench.request(&["exit", "0"]);
    let id = request.id.clone();
    bench.wait(bench.executor.create(request)).unwrap();
    let containers = bench.config.root_dir.join("containers");
    for name in ["half.partial", "empty"] {
        fs::create_dir(containers.join(name)).unwrap();
    }
    bench.reopen();
    assert_eq!(bench.executor.list().len(), 1);
    assert_eq!(bench.executor.inspect(&id).unwrap().state, State::Created);
    assert!(!containers.join("half.partial").exists() && !containers.join("empty").exists());
    // What was made before the restart can be started after it.
    bench.wait(bench.executor.start(&id)).unwrap();
    assert_eq!(bench.wait(bench.executor.wait(&id)).unwrap().code, 0);
}
