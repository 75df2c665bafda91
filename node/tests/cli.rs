//! The real command against a daemon that says what the test wants it to.

mod cli_fake;

use cli_fake::Fake;
use expect_test::{Expect, expect};
use std::process::{Command, Output};

fn rswarm(socket: &std::path::Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rswarm"));
    command
        .args(words)
        .env("RSWARM_SOCKET", socket)
        .env_remove("RSWARM_STATE_DIR")
        .env_remove("RSWARM_TOKEN");
    command.stdin(std::process::Stdio::null()).output().expect("the binary runs")
}

/// Exit code, standard output and standard error in one text.
fn told(output: &Output, socket: &std::path::Path) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&socket.display().to_string(), "SOCKET");
    let code = output.status.code().map_or("killed".into(), |code| code.to_string());
    format!("{}--- stderr\n{}--- exit {code}\n", text(&output.stdout), text(&output.stderr))
}

#[track_caller]
fn check(fake: &Fake, words: &[&str], expected: Expect) {
    expected.assert_eq(&told(&rswarm(fake.socket(), words), fake.socket()));
}

#[test]
fn without_a_daemon_the_cure_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("none.sock");
    expect![[r"
        --- stderr
        Error: no rswarm daemon answers at SOCKET
          help: start one with `rswarm init` or `rswarm join`, or `systemctl start rswarm`; if it listens elsewhere, name its socket with --socket or RSWARM_SOCKET
        --- exit 1
    "]]
    .assert_eq(&told(&rswarm(&socket, &["service", "ls"]), &socket));
    // A socket that nobody listens on any more is no better.
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    let output = rswarm(&socket, &["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no rswarm daemon answers"));
}

#[test]
fn what_was_asked_is_asked_again_under_its_name_when_the_daemon_was_lost_before_it_answered() {
    let fake = Fake::start();
    let words = ["service", "create", "--detach", "--name", "lost", "rswarm/demo"];
    check(
        &fake,
        &words,
        expect![[r"
            000000000000c
            --- stderr
            --- exit 0
        "]],
    );
    let names = fake.lost();
    let digits = |name: &String| name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(names.len() == 2 && names[0] == names[1] && digits(&names[0]), "{names:?}");
}

#[test]
fn only_what_looks_may_see_what_is_stale() {
    let fake = Fake::start();
    check(
        &fake,
        &["--stale", "service", "rm", "web"],
        expect![[r"
            --- stderr
            Error: --stale is for what lists or inspects nodes, services, tasks and networks
            --- exit 2
        "]],
    );
}

#[test]
fn a_malformed_token_starts_no_daemon() {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("none.sock");
    let output = rswarm(&socket, &["join", "--token", "RSWTKN-1-cut", "10.0.0.1:2377"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a whole join token"), "{output:?}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0);
}

#[test]
fn wrong_usage_ends_with_2() {
    let fake = Fake::start();
    for words in [
        &["service", "create"][..],
        &["service", "scale", "web"],
        &["serivce", "ls"],
        &["node", "update", "--availability", "sleepy", "n1"],
        &["service", "ls", "--filter", "nmae=web"],
        &["network", "create", "-d", "bridge", "x"],
    ] {
        assert_eq!(rswarm(fake.socket(), words).status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn a_service_is_created_and_waited_for() {
    let fake = Fake::start();
    let output =
        rswarm(fake.socket(), &["service", "create", "--name", "web", "--replicas", "2", "rswarm/demo"]);
    let told = told(&output, fake.socket());
    // The time it took is the only thing that is not the same each time.
    let told = told.rsplit_once(" (").map_or(told.as_str(), |(before, _)| before);
    expect![[r#"
        000000000000c
        --- stderr
        web: 1 of 2 tasks running
          web.1  running on n1
          web.2  preparing on n2
        web: 2 of 2 tasks running; watching that they stay so
          web.2  running on n2
        web: converged, 2 of 2 tasks run"#]]
    .assert_eq(told);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn self_is_the_node_the_command_runs_on_also_for_changes() {
    let fake = Fake::start();
    for words in [&["node", "update", "--availability", "drain", "self"][..], &["node", "demote", "self"]] {
        assert_eq!(rswarm(fake.socket(), words).status.code(), Some(0), "{words:?}");
    }
}

#[test]
fn detached_and_quiet_commands_say_only_the_id() {
    let fake = Fake::start();
    for flag in ["--detach", "--quiet"] {
        check(
            &fake,
            &["service", "create", flag, "--name", "web", "rswarm/demo"],
            expect![[r"
            000000000000c
            --- stderr
            --- exit 0
        "]],
        );
    }
}

#[test]
fn what_does_not_converge_is_told_in_the_tasks_words() {
    let fake = Fake::start();
    check(
        &fake,
        &["service", "create", "--name", "broken", "rswarm/demo"],
        expect![[r"
        000000000000c
        --- stderr
        broken: 0 of 1 task running
          broken.1  failed on n1: exited with 3: no such table
        Error: `broken` does not converge (task broken.1): exited with 3: no such table
          help: see `rswarm service ps --no-trunc broken` and `rswarm service logs broken`
        --- exit 3
    "]],
    );
    let output = rswarm(fake.socket(), &["service", "create", "--name", "paused", "-q", "rswarm/demo"]);
    assert_eq!(output.status.code(), Some(5));
    let words = ["service", "create", "--name", "stuck", "-q", "--timeout", "50ms", "rswarm/demo"];
    check(
        &fake,
        &words,
        expect![[r"
        000000000000c
        --- stderr
        Error: `stuck` has not converged after 50ms; task stuck.1 is pending: no node has 8GiB free
          help: follow it with `rswarm service ps stuck`
        --- exit 6
    "]],
    );
}

#[test]
fn a_refusal_names_the_object_and_the_cure() {
    let fake = Fake::start();
    check(
        &fake,
        &["service", "create", "--name", "taken", "rswarm/demo"],
        expect![[r"
        --- stderr
        Error: cannot create `taken`: a service named `taken` exists
          help: choose another --name
        --- exit 1
    "]],
    );
    check(
        &fake,
        &["service", "update", "--image", "x", "nosuch"],
        expect![[r"
        --- stderr
        Error: cannot update `nosuch`: there is no service `nosuch`
          help: `rswarm service ls` shows the services
        --- exit 1
    "]],
    );
    check(
        &fake,
        &["node", "inspect", "n7"],
        expect![[r"
        --- stderr
        Error: there is no node `n7`
          help: `rswarm node ls` shows the nodes
        --- exit 1
    "]],
    );
}

#[test]
fn an_update_carries_the_version_it_was_made_from() {
    let fake = Fake::start();
    let output = rswarm(fake.socket(), &["service", "update", "-d", "--image", "rswarm/demo:2", "web"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let request = fake.updated().expect("an update was asked for");
    assert_eq!(request.version, 7);
    let task = request.spec.expect("a spec").task.expect("a task");
    assert_eq!(task.containers[0].image, "rswarm/demo:2");
    assert_eq!(task.networks, ["000000000000n"], "what was there stays");
}

#[test]
fn networks_are_added_and_removed_by_name() {
    let fake = Fake::start();
    let words = ["service", "update", "-d", "--network-add", "front", "--network-rm", "backend", "web"];
    let output = rswarm(fake.socket(), &words);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(fake.updated().expect("an update was asked for").networks, ["front"]);
    let output = rswarm(fake.socket(), &["service", "update", "-d", "--network-rm", "backend", "web"]);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("it would join no network at all"),
        "{output:?}"
    );
}

#[test]
fn services_are_scaled_and_removed() {
    let fake = Fake::start();
    check(
        &fake,
        &["service", "scale", "-d", "web=5"],
        expect![[r"
        web scaled to 5
        --- stderr
        --- exit 0
    "]],
    );
    check(
        &fake,
        &["service", "rm", "-q", "web"],
        expect![[r"
        web
        --- stderr
        --- exit 0
    "]],
    );
}

#[test]
fn lists_are_tables_or_templates() {
    let fake = Fake::start();
    check(
        &fake,
        &["service", "ls"],
        expect![[r"
        ID              NAME      MODE         REPLICAS   IMAGE         PORTS
        000000000000c   web       replicated   2/2        rswarm/demo   *:8080->80/tcp
        --- stderr
        --- exit 0
    "]],
    );
    check(
        &fake,
        &["service", "ls", "--format", "{{.Name}}\\t{{.Replicas}}"],
        expect![[r"
        web	2/2
        --- stderr
        --- exit 0
    "]],
    );
    check(
        &fake,
        &["service", "inspect", "web", "--format", "{{.Spec.Name}} {{.Version.Index}}"],
        expect![[r"
        web 7
        --- stderr
        --- exit 0
    "]],
    );
    let output = rswarm(fake.socket(), &["service", "inspect", "web"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    assert_eq!(json[0]["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"], "rswarm/demo");
}

#[test]
fn logs_go_where_the_task_sent_them() {
    let fake = Fake::start();
    check(
        &fake,
        &["service", "logs", "--raw", "web"],
        expect![[r"
        hello
        --- stderr
        oops
        Note: node n2 cannot be reached
        --- exit 0
    "]],
    );
}

#[test]
fn init_prints_what_to_type_elsewhere() {
    let fake = Fake::start();
    let output = rswarm(fake.socket(), &["init", "--advertise-addr", "10.0.0.1"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("\n    rswarm join --token RSWTKN-1-d-w 10.0.0.1:2377\n"), "{text}");
    assert!(output.stderr.is_empty(), "a daemon that answers is not started: {output:?}");
    check(
        &fake,
        &["join-token", "-q", "manager"],
        expect![[r"
        RSWTKN-1-d-m
        --- stderr
        --- exit 0
    "]],
    );
}

#[test]
fn images_are_loaded_from_standard_input() {
    let fake = Fake::start();
    let archive = vec![7u8; 600_000];
    let mut command = Command::new(env!("CARGO_BIN_EXE_rswarm"));
    command.args(["image", "load"]).env("RSWARM_SOCKET", fake.socket());
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), &archive).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Loaded image: loaded:600000\n");
    let output = rswarm(fake.socket(), &["image", "load", "-i", "/nonexistent/image.tar"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot read /nonexistent/image.tar"));
}

#[test]
fn completions_are_printed_for_each_shell() {
    let fake = Fake::start();
    for shell in ["bash", "zsh", "fish"] {
        let output = rswarm(fake.socket(), &["completion", shell]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("rswarm"), "{shell}");
    }
}

#[test]
fn a_reader_who_goes_away_is_no_error() {
    let fake = Fake::start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_rswarm"));
    command.args(["completion", "bash"]).env("RSWARM_SOCKET", fake.socket());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output = command.stdout(writer).stderr(std::process::Stdio::piped()).output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn images_are_told_in_dockers_words() {
    let fake = Fake::start();
    check(
        &fake,
        &["image", "history", "web:1"],
        expect![[r#"
            IMAGE          CREATED   CREATED BY   SIZE      COMMENT
            abababababab   N/A       CMD x        0B
            <missing>      N/A       COPY x /     1.5MB
            --- stderr
            --- exit 0
        "#]],
    );
    check(
        &fake,
        &[
            "image",
            "inspect",
            "--format",
            "{{.Os}}/{{.Architecture}} {{.Config.Cmd}} {{.Size}} {{.RootFS.Layers}}",
            "web:1",
        ],
        expect![[r"
            linux/amd64 [/x] 2000000 [sha256:aa]
            --- stderr
            --- exit 0
        "]],
    );
    check(
        &fake,
        &["image", "inspect", "nosuch"],
        expect![[r"
            --- stderr
            Error: no image `nosuch` on this machine
            --- exit 1
        "]],
    );
    check(
        &fake,
        &["image", "prune", "-af", "--filter", "until=24h"],
        expect![[r"
            Deleted Images:
            untagged: web:1
            deleted: sha256:ab

            Total reclaimed space: 3MB
            --- stderr
            --- exit 0
        "]],
    );
    check(
        &fake,
        &["image", "prune"],
        expect![[r"
            --- stderr
            Error: standard input is no terminal, so nobody can be asked
              help: say --force
            --- exit 2
        "]],
    );
    check(
        &fake,
        &["image", "push", "lan:5000/web:1"],
        expect![[r"
            The push refers to repository [lan:5000/web]
            1: digest: sha256:cd size: 700
            --- stderr
            aaaa: Pushed
            --- exit 0
        "]],
    );
    check(
        &fake,
        &["image", "save", "web:1", "db"],
        expect![[r"
            archive of web:1,db--- stderr
            --- exit 0
        "]],
    );
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("x.tar");
    let output = rswarm(fake.socket(), &["image", "save", "-o", path.to_str().expect("text"), "broken"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 0, "nothing half written");
}

#[test]
fn a_login_is_told_apart_from_a_refusal() {
    let fake = Fake::start();
    check(
        &fake,
        &["login", "-u", "alice", "-p", "secret", "lan:5000"],
        expect![[r"
            Login Succeeded
            --- stderr
            Warning: using --password is insecure; use --password-stdin
            --- exit 0
        "]],
    );
    check(
        &fake,
        &["login", "-u", "alice", "--password-stdin", "lan:5000"],
        expect![[r"
            --- stderr
            Error: cannot log in: it says: incorrect username or password
            --- exit 1
        "]],
    );
    check(
        &fake,
        &["logout", "lan:5000"],
        expect![[r"
            Removing login credentials for lan:5000
            --- stderr
            --- exit 0
        "]],
    );
    check(
        &fake,
        &["logout"],
        expect![[r"
            Not logged in to docker.io
            --- stderr
            --- exit 0
        "]],
    );
}
