//! What a container sees of files, and how they get in and out.

use super::bench::{Bench, Claim, claims};
use rswarm::executor::{Error, Mount};
use rswarm::files;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub const CLAIMS: &[Claim] = claims![
    mounts_are_what_was_asked_for,
    links_in_the_image_do_not_lead_out,
    files_are_copied_out_of_containers_and_their_remains,
    files_are_copied_into_a_container_and_nowhere_else,
];

fn mounts_are_what_was_asked_for(bench: &mut Bench) {
    let shared = bench.directory.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "from outside").unwrap();
    let mut request = bench.request(&["mounts"]);
    let bind =
        |source: PathBuf, target: &str, readonly| Mount::Bind { source, target: target.into(), readonly };
    request.mounts = vec![
        bind(shared.clone(), "/mnt/ro", true),
        bind(shared.clone(), "/mnt/deep/rw", false),
        bind(shared.join("file"), "/etc/one-file", true),
        Mount::Tmpfs { target: "/scratch".into(), size_bytes: Some(1 << 20), mode: 0o1777 },
    ];
    request.privileges.read_only_root = true;
    let (code, output) = bench.run(request);
    assert_eq!(code, 0, "{output}");
    assert_eq!(
        output,
        "/mnt/ro/file: from outside\n/etc/one-file: from outside\nwrite /mnt/ro/new: EROFS\n\
         write /mnt/deep/rw/new: ok\nwrite /scratch/new: ok\nfill /scratch/big: ENOSPC\nwrite /new: EROFS\n"
    );
    assert_eq!(fs::read_to_string(shared.join("new")).unwrap(), "from inside");
    // The image stays as it was: what a container writes goes to its own layer.
    let request = bench.request(&["write", "/data/own"]);
    assert_eq!(bench.run(request).0, 0);
    assert!(!bench.image().join("data/own").exists());
    let request = bench.request(&["write", "/data/own"]);
    assert_eq!(bench.run(request).0, 0, "another container sees what the first has written");
}

fn links_in_the_image_do_not_lead_out(bench: &mut Bench) {
    let outside = bench.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let layer = bench.directory.path().join("links");
    fs::create_dir_all(layer.join("data/real")).unwrap();
    symlink(&outside, layer.join("data/absolute")).unwrap();
    symlink("../../../../../../..", layer.join("data/climbing")).unwrap();
    symlink("/data/real", layer.join("data/inner")).unwrap();
    let mount = |target: &str| Mount::Tmpfs { target: target.into(), size_bytes: None, mode: 0o755 };

    let mut request = bench.request(&["write", "/data/real/under/x"]);
    request.lower.insert(0, layer.clone());
    request.mounts =
        vec![mount("/data/inner/under"), mount(&format!("/data/climbing{}/y", outside.display()))];
    request.workdir = "/data/inner/work".into();
    assert_eq!(bench.run(request).0, 0);

    // A link to where nothing is inside is refused, whatever is there outside.
    let mut request = bench.request(&["exit", "0"]);
    request.lower.insert(0, layer);
    request.mounts = vec![mount("/data/absolute/z")];
    assert!(matches!(bench.start(request), Err(Error::Start { code: 125, .. })));
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
}

/// Unpacks what is at a path in a container, and gives the directory.
fn copy_out(bench: &Bench, id: &str, path: &str) -> Result<tempfile::TempDir, String> {
    let root = bench.wait(bench.executor.root(id, false)).map_err(|error| error.to_string())?;
    let mut archive = Vec::new();
    files::pack(&root, Path::new(path), false, &mut archive).map_err(|error| error.to_string())?;
    let to = tempfile::tempdir().unwrap();
    let target = files::Target { name: Some("copy".into()), ..files::Target::default() };
    let here = files::directory(to.path()).unwrap().into();
    files::unpack(&here, Path::new("/copy"), &target, &archive[..]).map_err(|error| error.to_string())?;
    Ok(to)
}

fn files_are_copied_out_of_containers_and_their_remains(bench: &mut Bench) {
    let mut request = bench.request(&["write-and-wait", "/data/own", "/scratch/own"]);
    request.mounts = vec![Mount::Tmpfs { target: "/scratch".into(), size_bytes: None, mode: 0o1777 }];
    let id = bench.start(request).unwrap();
    bench.until_said(&id, "written");
    let read = |directory: tempfile::TempDir| fs::read_to_string(directory.path().join("copy")).unwrap();
    assert_eq!(read(copy_out(bench, &id, "/data/own").unwrap()), "from inside");
    assert_eq!(read(copy_out(bench, &id, "/scratch/own").unwrap()), "from inside");
    assert!(copy_out(bench, &id, "/etc").unwrap().path().join("copy/passwd").exists());
    // A link that climbs leads to what is inside, and an absolute one likewise.
    symlink("/proc/self/root/../../../../..", bench.image().join("data/climb")).unwrap();
    let outside = bench.directory.path().join("outside-file");
    fs::write(&outside, "secret").unwrap();
    let link = format!("/data/climb{}", outside.display());
    assert!(copy_out(bench, &id, &link).is_err());
    bench.wait(bench.executor.stop(&id, Duration::ZERO)).unwrap();
    // What it has written is there when it has ended; what was in memory is gone.
    assert_eq!(read(copy_out(bench, &id, "/data/own").unwrap()), "from inside");
    assert!(copy_out(bench, &id, "/bin/inside").is_ok(), "the image is below");
    assert!(copy_out(bench, &id, "/scratch/own").is_err());
    assert!(copy_out(bench, &id, &link).is_err());
    assert!(matches!(bench.wait(bench.executor.root(&id, true)), Err(Error::NotRunning(_))));
}

fn files_are_copied_into_a_container_and_nowhere_else(bench: &mut Bench) {
    let outside = bench.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let layer = bench.directory.path().join("links");
    fs::create_dir_all(layer.join("data")).unwrap();
    symlink(&outside, layer.join("data/out")).unwrap();
    let mut request = bench.request(&["wait-for", "/data/arrived"]);
    request.lower.insert(0, layer.clone());
    let id = bench.start(request).unwrap();
    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("arrived"), "hello").unwrap();
    let mut archive = Vec::new();
    let here = files::directory(from.path()).unwrap().into();
    files::pack(&here, Path::new("/arrived"), false, &mut archive).unwrap();
    let root = bench.wait(bench.executor.root(&id, true)).unwrap();
    let target = files::Target { name: Some("arrived".into()), ..files::Target::default() };
    let put = |path: &str| files::unpack(&root, Path::new(path), &target, &archive[..]);
    assert!(put("/data/out/").is_err(), "the link leads to nothing inside");
    assert!(put("/data/out/x").is_err());
    put("/data/").unwrap();
    assert_eq!(bench.wait(bench.executor.wait(&id)).unwrap().code, 3);
    assert_eq!(fs::read_dir(outside).unwrap().count(), 0);
    assert!(!layer.join("data/arrived").exists());
    let mut request = bench.request(&["hang"]);
    request.privileges.read_only_root = true;
    let id = bench.start(request).unwrap();
    let root = bench.wait(bench.executor.root(&id, true)).unwrap();
    let error = files::unpack(&root, Path::new("/data/"), &target, &archive[..]).unwrap_err();
    assert!(error.to_string().to_lowercase().contains("read-only"), "{error}");
}
