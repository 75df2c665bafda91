//! Images: hostile layers, archives, a registry in this process, and the built-in image.

use std::fs;
use std::io::{self, BufRead as _, Cursor, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

mod image_kit;

use image_kit::registry::{Door, Fault, Registry};
use image_kit::{
    Layer, Place, config_of, docker_archive, gzip, oci_archive, oci_blobs, pull, pull_with, tarball,
    this_architecture, two_layers,
};
use rswarm::image::{Digest, Error, Limits, Progress, Reference, Registries, Store, is_builtin};
use serde_json::json;
use tar::EntryType;

fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: {test} makes devices and owners, which needs root");
    }
    root
}

/// The whiteout of overlayfs: a character device 0:0.
fn is_whiteout(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_char_device() && file.rdev() == 0)
}

fn is_opaque(path: &Path) -> bool {
    let mut value = [0; 1];
    ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|key| rustix::fs::getxattr(path, *key, &mut value[..]).is_ok() && value == *b"y")
}

// ---- hostile and odd layers ----

#[test]
fn hostile_layers_are_refused_and_leave_nothing() {
    if !is_root("hostile_layers_are_refused_and_leave_nothing") {
        return;
    }
    let l = Layer::new;
    let deep = "a/".repeat(45);
    let huge_pax = {
        let mut header = Layer::header(EntryType::XHeader, "pax", 0o644);
        header.set_size(8 << 20);
        l().push(header, &[b'x'; 512])
    };
    let bad_size = {
        let mut header = Layer::header(EntryType::Regular, "f", 0o644);
        header.as_old_mut().size = [0xff; 12];
        l().push(header, b"")
    };
    let bad_owner = {
        let mut header = Layer::header(EntryType::Regular, "f", 0o644);
        header.set_uid(u64::from(u32::MAX));
        l().push(header, b"")
    };
    let bad_sum = {
        let mut bytes = l().file("f", "x").0;
        bytes[0] ^= 1;
        Layer(bytes)
    };
    let cases: Vec<(&str, Layer, &str)> = vec![
        ("a path with ..", l().file("../canary", "x"), "`..`"),
        ("a path with .. inside", l().dir("a").file("a/../../canary", "x"), "`..`"),
        ("an absolute path with ..", l().file("/../../canary", "x"), "`..`"),
        ("a long name with ..", l().pax("path", b"../../canary").file("f", "x"), "`..`"),
        ("a directory ..", l().dir(".."), "`..`"),
        ("a hard link to ..", l().hard_link("h", "../../../canary"), "`..`"),
        ("a hard link to the machine's file", l().hard_link("h", "/etc/passwd"), "does not have"),
        (
            "a hard link through an outward symlink",
            l().symlink("s", "/etc").hard_link("h", "s/passwd"),
            "does not have",
        ),
        ("a hard link to a directory", l().dir("d").hard_link("h", "d"), "directory"),
        ("a hard link to a deleted file", l().file(".wh.w", "").hard_link("h", "w"), "deleted"),
        ("a hard link to nothing", l().hard_link("h", ""), "without a target"),
        ("a file beneath a dangling symlink", l().symlink("s", "/nowhere").file("s/f", "x"), "leads to none"),
        (
            "a file beneath an upward symlink",
            l().symlink("s", "../../gone").file("s/f", "x"),
            "leads to none",
        ),
        ("a file beneath a symlink to itself", l().symlink("s", "s").file("s/f", "x"), "symbolic links"),
        ("a file beneath a file", l().file("f", "x").file("f/g", "x"), "not a directory"),
        ("a symlink without target", l().symlink("s", ""), "without a target"),
        ("a symlink over a full directory", l().file("d/f", "x").symlink("d", "/etc"), "not empty"),
        ("a whiteout of ..", l().file(".wh...", ""), "whiteout of nothing"),
        ("a whiteout of .", l().file(".wh..", ""), "whiteout of nothing"),
        ("a whiteout of nothing", l().file(".wh.", ""), "whiteout of nothing"),
        ("a file inside a whiteout", l().file(".wh.d/f", "x"), "inside a whiteout"),
        ("overlayfs's own whiteout", l().device(EntryType::Char, "w", 0, 0), "device nodes"),
        ("a memory device", l().device(EntryType::Char, "mem", 1, 1), "device nodes"),
        ("a disk", l().device(EntryType::Block, "etc/sda", 8, 0), "device nodes"),
        (
            "a device by way of a link to dev",
            l().symlink("x", "dev").dir("dev").device(EntryType::Block, "x/sda", 8, 0),
            "device nodes",
        ),
        (
            "an overlayfs redirect",
            l().pax("SCHILY.xattr.trusted.overlay.redirect", b"/etc").dir("d"),
            "not allowed",
        ),
        (
            "an overlayfs mark",
            l().pax("SCHILY.xattr.user.overlay.whiteout", b"y").file("f", ""),
            "not allowed",
        ),
        ("any trusted attribute", l().pax("SCHILY.xattr.trusted.x", b"y").file("f", ""), "not allowed"),
        ("a huge extended header", huge_pax, "claims 8388608 bytes"),
        (
            "a malformed extended header",
            l().push(
                {
                    let mut h = Layer::header(EntryType::XHeader, "p", 0);
                    h.set_size(3);
                    h
                },
                b"9 a",
            ),
            "malformed",
        ),
        ("an extended header for nothing", l().pax("path", b"f"), "never comes"),
        ("a negative size", bad_size, "negative"),
        ("an owner out of range", bad_owner, "owner"),
        ("a wrong checksum", bad_sum, "checksum"),
        ("a zero byte in a name", l().pax("path", b"a\0b").file("f", ""), "zero byte"),
        ("an overlong name", l().pax("path", &[b'a'; 5000]).file("f", ""), "longer than"),
        ("an overlong component", l().pax("path", &[b'a'; 300]).file("f", ""), "name too long"),
        ("a path too deep", l().pax("path", "a/".repeat(600).as_bytes()).dir("f"), "deeper"),
        ("a sparse file", l().push(Layer::header(EntryType::GNUSparse, "f", 0o644), b""), "sparse"),
        ("a sparse file in PAX", l().pax("GNU.sparse.major", b"1").file("f", "x"), "sparse"),
        ("an unknown entry", l().push(Layer::header(EntryType::new(b'Z'), "f", 0o644), b""), "not supported"),
        (
            "a file cut off",
            Layer({
                let mut bytes = l().mode("f", &[1; 2000], 0o644).0;
                bytes.truncate(1500);
                bytes
            }),
            "too early",
        ),
        (
            "a long relative target",
            l().dir(&deep).symlink("s", &deep).hard_link("h", "s/../../../../x"),
            "`..`",
        ),
    ];
    assert!(cases.len() >= 40);
    for (what, layer, why) in cases {
        let place = Place::new();
        let layer = if what == "a file cut off" { layer.0 } else { layer.end() };
        match place.load(docker_archive(&["x"], &[layer])) {
            Err(Error::Refused { what: _, why: said }) => {
                assert!(said.to_lowercase().contains(&why.to_lowercase()), "{what}: {said}");
            }
            other => panic!("{what}: {other:?}"),
        }
        place.assert_empty(what);
    }
}

#[test]
fn wicked_but_harmless_layers_stay_inside() {
    if !is_root("wicked_but_harmless_layers_stay_inside") {
        return;
    }
    let place = Place::new();
    let layer = Layer::new()
        .file("/canary", "absolute")
        .symlink("escape", "../../../../../../..")
        .file("escape/through", "contained")
        .symlink("etc-link", "/etc")
        .dir("etc")
        .file("etc-link/passwd", "ours")
        .file("etc/hostname", "first")
        .file("etc/hostname", "second")
        .symlink("late", "/canary")
        .dir("one")
        .dir("two")
        .symlink("turn", "one")
        .file("turn/a", "first")
        .symlink("turn", "two")
        .file("turn/b", "second")
        .file("late", "replaces the link")
        .hard_link("h", "etc-link/passwd")
        .hard_link("h", "h")
        .hard_link("etc-hard", "etc-link")
        .device(EntryType::Block, "dev/sda", 8, 0)
        .file(".wh..wh.plnk/1", "aufs")
        .end();
    place.load(docker_archive(&["x"], &[layer])).unwrap();
    let root = place.top_layer("x");
    for (path, text) in [
        ("canary", "absolute"),
        ("through", "contained"),
        ("etc/passwd", "ours"),
        ("etc/hostname", "second"),
        ("late", "replaces the link"),
        ("one/a", "first"),
        ("two/b", "second"),
        ("h", "ours"),
    ] {
        assert_eq!(fs::read_to_string(root.join(path)).unwrap(), text, "{path}");
    }
    assert_eq!(
        fs::metadata(root.join("h")).unwrap().ino(),
        fs::metadata(root.join("etc/passwd")).unwrap().ino()
    );
    assert!(fs::symlink_metadata(root.join("etc-hard")).unwrap().is_symlink());
    assert!(!root.join("dev/sda").exists() && !root.join(".wh..wh.plnk").exists());
    place.assert_tidy("harmless");
}

#[test]
fn bombs_meet_their_bounds() {
    let small =
        Limits { layer_bytes: 1 << 20, layer_entries: 100, blob_bytes: 1 << 20, archive_bytes: 4 << 20 };
    let zeros = vec![0; 600_000];
    let many = (0..200).fold(Layer::new(), |layer, i| layer.file(&format!("f{i}"), ""));
    let cases: [(&str, Vec<u8>, &str); 4] = [
        ("data", Layer::new().mode("a", &zeros, 0o644).mode("b", &zeros, 0o644).end(), "1048576 bytes"),
        ("entries", many.end(), "100 entries"),
        ("padding", [Layer::new().end(), vec![0; 3 << 20]].concat(), "larger than allowed"),
        (
            "a claim",
            Layer::new()
                .push(
                    {
                        let mut h = Layer::header(EntryType::Regular, "f", 0o644);
                        h.set_size(1 << 40);
                        h
                    },
                    b"",
                )
                .end(),
            "1048576 bytes",
        ),
    ];
    for (what, layer, why) in cases {
        let place = Place::with(small);
        // Compressed, each is far below the bound for what is transferred.
        let error = place.load(oci_archive("x", &[layer], gzip)).unwrap_err().to_string();
        assert!(error.contains(why), "{what}: {error}");
        place.assert_empty(what);
    }
    let place = Place::with(small);
    let error = place.load(docker_archive(&["x"], &[vec![1; 2 << 20]])).unwrap_err().to_string();
    assert!(error.contains("larger than 1048576 bytes"), "{error}");
    place.assert_empty("blob");
}

#[test]
fn owners_modes_times_and_attributes_are_kept() {
    if !is_root("owners_modes_times_and_attributes_are_kept") {
        return;
    }
    let place = Place::new();
    if place.store.userxattr() {
        eprintln!("skipped: this user namespace does not have the owners that the test sets");
        return;
    }
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0];
    let mut owned = Layer::header(EntryType::Regular, "setuid", 0o4755);
    owned.set_uid(12);
    owned.set_gid(3_000_000_000);
    let mut sticky = Layer::header(EntryType::Directory, "tmp", 0o1777);
    sticky.set_uid(5);
    let layer = Layer::new()
        .push(owned, b"")
        .push(sticky, b"")
        .file("tmp/f", "x")
        .pax("SCHILY.xattr.security.capability", &capability)
        .file("ping", "")
        .pax("SCHILY.xattr.user.note", b"two\nlines")
        .file("noted", "")
        .push(Layer::header(EntryType::Fifo, "pipe", 0o620), b"")
        .end();
    place.load(docker_archive(&["x"], &[layer])).unwrap();
    let root = place.top_layer("x");
    let look = |path: &str| fs::symlink_metadata(root.join(path)).unwrap();
    let setuid = look("setuid");
    assert_eq!((setuid.mode() & 0o7777, setuid.uid(), setuid.gid()), (0o4755, 12, 3_000_000_000));
    assert_eq!(
        (look("tmp").mode() & 0o7777, look("tmp").uid(), look("tmp").mtime()),
        (0o1777, 5, 1_000_000_000)
    );
    assert_eq!(look("tmp/f").mtime(), 1_000_000_000);
    assert!(look("pipe").file_type().is_fifo() && look("pipe").permissions().mode() & 0o777 == 0o620);
    let mut value = [0; 64];
    let n = rustix::fs::getxattr(root.join("ping"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..n], capability);
    let n = rustix::fs::getxattr(root.join("noted"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..n], b"two\nlines");
}

#[test]
fn whiteouts_become_overlayfs_marks() {
    if !is_root("whiteouts_become_overlayfs_marks") {
        return;
    }
    let place = Place::new();
    let layer = Layer::new()
        .file("etc/.wh.gone", "")
        .file("a", "a")
        .hard_link(".wh.linked", "a")
        .dir("fresh")
        .file("fresh/.wh..wh..opq", "")
        .file("fresh/new", "x")
        // A layer's own entries win over its whiteouts, in either order.
        .file(".wh.before", "")
        .file("before", "mine")
        .file("after", "mine")
        .file(".wh.after", "")
        .file(".wh.dir", "")
        .file("dir/mine", "x")
        .end();
    place.load(docker_archive(&["x"], &[layer])).unwrap();
    let root = place.top_layer("x");
    for path in ["etc/gone", "linked"] {
        assert!(is_whiteout(&root.join(path)), "{path}");
    }
    for path in ["fresh", "dir"] {
        assert!(is_opaque(&root.join(path)), "{path}");
    }
    assert!(!is_opaque(&root.join("etc")));
    for path in ["before", "after"] {
        assert_eq!(fs::read_to_string(root.join(path)).unwrap(), "mine");
    }
    assert!(!root.join("fresh/.wh..wh..opq").exists());
}

#[test]
fn overlayfs_shows_what_the_layers_mean() {
    if !is_root("overlayfs_shows_what_the_layers_mean") {
        return;
    }
    let place = Place::new();
    let lower = Layer::new()
        .file("usr/lib/libc", "old")
        .symlink("lib", "usr/lib")
        .file("etc/gone", "x")
        .file("etc/kept", "x")
        .file("data/old", "x")
        .file("dir/old", "x")
        .end();
    let upper = Layer::new()
        .symlink("lib", "usr/lib")
        .dir("usr/lib")
        .file("lib/libc", "new")
        .file("etc/.wh.gone", "")
        .file("data/.wh..wh..opq", "")
        .file("data/new", "x")
        .file(".wh.dir", "")
        .end();
    // A layer that appears twice must not confuse overlayfs.
    let empty = Layer::new().end();
    place.load(docker_archive(&["x"], &[empty.clone(), lower, empty, upper])).unwrap();
    let lowers = place.store.layers(&place.store.resolve("x").unwrap()).unwrap();
    let target = place.directory.path().join("mnt");
    fs::create_dir(&target).unwrap();

    let lowerdir: Vec<String> = lowers.iter().map(|path| path.display().to_string()).collect();
    let merged = target.clone();
    let userxattr = if place.store.userxattr() { ",userxattr" } else { "" };
    let options = format!("lowerdir={}{userxattr}", lowerdir.join(":"));
    // A mount namespace of this thread's own goes with it, and the mount with the namespace.
    let looked = std::thread::spawn(move || {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("overlay"), &merged, Some("overlay"), MsFlags::MS_RDONLY, Some(&*options)).unwrap();
        let exists = |path: &str| fs::symlink_metadata(merged.join(path)).is_ok();
        assert_eq!(fs::read_to_string(merged.join("lib/libc")).unwrap(), "new");
        assert!(exists("etc/kept") && !exists("etc/gone"));
        assert!(exists("data/new") && !exists("data/old"));
        assert!(!exists("dir"));
    });
    looked.join().unwrap();
    fs::remove_dir(target).unwrap();
}

#[test]
fn an_opaque_root_hides_all_layers_below() {
    if !is_root("an_opaque_root_hides_all_layers_below") {
        return;
    }
    let place = Place::new();
    let layers =
        [Layer::new().file("a", "").end(), Layer::new().file(".wh..wh..opq", "").file("b", "").end()];
    let loaded = place.load(docker_archive(&["x"], &layers)).unwrap();
    assert_eq!(loaded[0].image.layers.len(), 2);
    assert_eq!(place.store.layers(&loaded[0].image).unwrap().len(), 1);
}

#[test]
fn a_tree_deeper_than_open_files_allow_is_removed_again() {
    let place = Place::new();
    let step = "d/".repeat(500);
    let mut layer = Layer::new();
    // Each link starts where the last one ended, so the tree is far deeper than a path can be long.
    for i in 0..6 {
        let base = if i == 0 { String::new() } else { format!("l{i}/") };
        layer = layer.pax("path", format!("{base}{step}").as_bytes()).dir("x");
        layer =
            layer.pax("linkpath", format!("{base}{step}").as_bytes()).symlink(&format!("l{}", i + 1), "x");
    }
    let loaded = place.load(docker_archive(&["x"], &[layer.end()])).unwrap();
    assert_eq!(loaded.len(), 1);
    place.store.remove("x", false).unwrap();
    place.assert_empty("deep");
}

// ---- archives ----

#[test]
fn archives_of_both_kinds_load_and_say_the_same() {
    let layers = [Layer::new().file("a", "1").end(), Layer::new().file("b", "2").end()];
    let plain = |bytes: &[u8]| bytes.to_vec();
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    let docker = docker_archive(&["shop/web:1", "shop/web:latest"], &layers);
    let archives = [
        ("docker", docker.clone()),
        ("docker in gzip", gzip(&docker)),
        ("docker in zstd", zstd(&docker)),
        ("oci", oci_archive("shop/web:1", &layers, plain)),
        ("oci with gzip layers", oci_archive("docker.io/shop/web:1", &layers, gzip)),
        ("oci with zstd layers", oci_archive("shop/web:1", &layers, zstd)),
    ];
    for (what, archive) in archives {
        let place = Place::new();
        let loaded = place.load(archive).unwrap();
        assert_eq!(loaded[0].references[0].familiar(), "shop/web:1", "{what}");
        let image = place.store.resolve("shop/web:1").unwrap();
        assert_eq!(image, loaded[0].image, "{what}");
        assert_eq!(image.layers, layers.iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>(), "{what}");
        assert_eq!(image.created.as_deref(), Some("2024-01-01T00:00:00Z"));
        let config = place.store.config(&image).unwrap();
        assert_eq!(
            (&config.entrypoint[..], &config.cmd[..]),
            (&["/bin/x".to_owned()][..], &["y".to_owned()][..])
        );
        assert_eq!((&*config.user, &*config.working_dir, &*config.stop_signal), ("7:8", "/w", "SIGQUIT"));
        assert_eq!((&config.exposed_ports[..], &*config.labels["l"]), (&["80/tcp".to_owned()][..], "m"));
        let directories = place.store.layers(&image).unwrap();
        assert!(
            directories[0].join("b").exists() && directories[1].join("a").exists(),
            "{what}: topmost first"
        );
        place.assert_tidy(what);
    }
}

#[test]
fn an_archive_may_come_through_a_pipe_and_share_layers_by_links() {
    let layer = Layer::new().file("a", "1").end();
    let config = config_of(&[layer.clone(), layer.clone()]);
    let manifest =
        json!([{"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["one/layer.tar", "two/layer.tar"]}]);
    let archive = Layer::new()
        .mode("c.json", &config, 0o644)
        .mode("one/layer.tar", &layer, 0o644)
        .symlink("two/layer.tar", "../one/layer.tar")
        .mode("manifest.json", manifest.to_string().as_bytes(), 0o644)
        .end();
    let place = Place::new();
    let (reader, mut writer) = io::pipe().unwrap();
    let writing =
        std::thread::spawn(move || archive.chunks(777).try_for_each(|chunk| writer.write_all(chunk)));
    place.store.load(reader).unwrap();
    writing.join().unwrap().unwrap();
    assert_eq!(
        place.store.layers(&place.store.resolve("x:1").unwrap()).unwrap().len(),
        1,
        "the layer appears once"
    );
}

#[test]
fn corrupt_archives_give_one_clear_error_and_leave_nothing() {
    let layers = [Layer::new().mode("a", &[7; 5000], 0o644).end()];
    let good = docker_archive(&["x"], &layers);
    let flip = |archive: &[u8], needle: &[u8]| {
        let mut archive = archive.to_vec();
        let at = archive.windows(needle.len()).position(|window| window == needle).unwrap();
        archive[at] ^= 0x20;
        archive
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing", vec![], "it is empty"),
        ("noise", b"this is a text, not an archive ".repeat(100), "not a tar archive"),
        ("short noise", b"hello".to_vec(), "ends too early"),
        ("a cut archive", good[..good.len() / 2].to_vec(), "ends too early"),
        (
            "a cut gzip",
            {
                let packed = gzip(&good);
                packed[..packed.len() / 2].to_vec()
            },
            "too early",
        ),
        (
            "damaged gzip",
            {
                let mut packed = gzip(&good);
                packed[30..60].fill(0xaa);
                packed
            },
            "the archive",
        ),
        ("an empty archive", vec![0; 1024], "neither a docker archive"),
        ("a text in a tar", tarball(&[("readme".into(), b"x".to_vec())]), "neither a docker archive"),
        ("a manifest of nothing", tarball(&[("manifest.json".into(), b"[]".to_vec())]), "no image in it"),
        ("a broken manifest", tarball(&[("manifest.json".into(), b"{".to_vec())]), "manifest.json"),
        (
            "a missing config",
            tarball(&[("manifest.json".into(), br#"[{"Config":"c"}]"#.to_vec())]),
            "`c` is not in the archive",
        ),
        ("a changed layer", flip(&good, &[7; 5000]), "but the image promises"),
        ("a path outside", tarball_raw("../../evil", b"x"), "outside"),
        ("a bad name", docker_archive(&["shop/UPPER"], &layers), "lower case"),
        (
            "another machine's image",
            {
                let (manifest, _) = oci_blobs(&layers, gzip);
                let index = json!({"manifests": [
                {"digest": Digest::of(&manifest), "size": manifest.len(), "platform": {"os": "linux", "architecture": "vax"}},
                {"digest": Digest::of(b"x"), "size": 1, "platform": {"os": "plan9", "architecture": "mips"}}]});
                tarball(&[("index.json".into(), index.to_string().into_bytes())])
            },
            "only for linux/vax, plan9/mips",
        ),
    ];
    for (what, archive, why) in cases {
        let place = Place::new();
        let error = place.load(archive).unwrap_err().to_string();
        assert!(error.contains(why), "{what}: {error}");
        assert!(!error.contains('\n'), "{what}: {error}");
        place.assert_empty(what);
    }
}

fn tarball_raw(path: &str, data: &[u8]) -> Vec<u8> {
    Layer::new().mode(path, data, 0o644).end()
}

#[test]
fn a_blob_that_is_not_its_digest_is_refused() {
    let layers = [Layer::new().file("a", "1").end()];
    let (manifest, blobs) = oci_blobs(&layers, gzip);
    for victim in blobs.keys().chain([&Digest::of(&manifest)]) {
        let archive = oci_archive("x", &layers, gzip);
        let name = format!("blobs/sha256/{}", victim.hex());
        let at = archive.windows(name.len()).position(|window| window == name.as_bytes()).unwrap() + 512;
        let mut archive = archive;
        archive[at] ^= 1;
        let place = Place::new();
        let error = place.load(archive).unwrap_err().to_string();
        assert!(error.contains(victim.as_str()) && error.contains("damaged"), "{error}");
        place.assert_empty(&name);
    }
}

#[test]
fn a_layer_cut_off_inside_a_valid_blob_is_refused() {
    let layer = Layer::new().mode("a", &[7; 50_000], 0o644).end();
    let cut = |bytes: &[u8]| gzip(bytes)[..40].to_vec();
    for (what, compress) in
        [("gzip", cut as fn(&[u8]) -> Vec<u8>), ("zstd", |b| zstd::encode_all(b, 1).unwrap()[..20].to_vec())]
    {
        let place = Place::new();
        let error =
            place.load(oci_archive("x", std::slice::from_ref(&layer), compress)).unwrap_err().to_string();
        assert!(error.contains("too early") || error.contains("incomplete"), "{what}: {error}");
        place.assert_empty(what);
    }
}

#[test]
fn a_full_disk_is_told_apart_from_a_bad_image_and_leaves_nothing() {
    if !is_root("a_full_disk_is_told_apart_from_a_bad_image_and_leaves_nothing") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_path_buf();
    // The small file system lives in this thread's own mount namespace and ends with it.
    let filled = std::thread::spawn(move || {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=3m")).unwrap();
        let store = Store::open(path.join("store")).unwrap();
        let layer = |megabytes: usize| [Layer::new().mode("a", &vec![7; megabytes << 20], 0o644).end()];
        // The first does not fit as it comes, the second not unpacked.
        for archive in [docker_archive(&["x"], &layer(4)), oci_archive("x", &layer(4), gzip)] {
            let error = store.load(Cursor::new(archive)).unwrap_err();
            assert!(
                matches!(error, Error::Io { .. }) && error.to_string().contains("No space left"),
                "{error}"
            );
            for part in ["tmp", "blobs/sha256", "layers"] {
                assert_eq!(fs::read_dir(path.join("store").join(part)).unwrap().count(), 0, "{part}");
            }
        }
        store.load(Cursor::new(docker_archive(&["x"], &layer(1)))).unwrap();
    });
    filled.join().unwrap();
}

#[test]
fn damage_anywhere_neither_panics_nor_leaves_anything() {
    use proptest::prelude::*;
    let layer = Layer::new()
        .pax("SCHILY.xattr.user.a", b"b")
        .dir("d")
        .file("d/f", "text")
        .symlink("s", "d")
        .hard_link("h", "s/f")
        .file("d/.wh.w", "")
        .file("s/g", "more")
        .end();
    let layer_length = layer.len();
    // Damage inside the layer is only seen by the unpacker if the digests follow it.
    let strategy = proptest::collection::vec((0..layer_length, any::<u8>(), any::<bool>()), 1..6);
    proptest!(ProptestConfig { failure_persistence: None, cases: 150, ..ProptestConfig::default() }, |(damage in strategy)| {
        let mut layer = layer.clone();
        for (at, byte, fix) in damage {
            layer[at] = byte;
            let start = at / 512 * 512;
            if fix && layer[start..].len() >= 512 {
                let sum: u32 = (0..512).map(|i| if (148..156).contains(&i) { 32 } else { u32::from(layer[start + i]) }).sum();
                layer[start + 148..start + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        let place = Place::new();
        match place.load(docker_archive(&["x"], &[layer])) {
            Ok(_) => place.assert_tidy("damaged"),
            Err(_) => place.assert_empty("damaged"),
        }
    });
}

// ---- names, leases, removal ----

#[test]
fn images_are_found_by_name_id_and_digest_and_removed_with_their_last_name() {
    let place = Place::new();
    let one = place
        .load(docker_archive(&["x:1", "x:2"], &[Layer::new().file("a", "1").end()]))
        .unwrap()
        .remove(0)
        .image;
    let two =
        place.load(docker_archive(&["y"], &[Layer::new().file("a", "2").end()])).unwrap().remove(0).image;
    for name in [
        "x:1",
        "docker.io/library/x:2",
        one.digest.as_str(),
        one.id.as_str(),
        one.id.short(),
        one.digest.short(),
    ] {
        assert_eq!(place.store.resolve(name).unwrap().digest, one.digest, "{name}");
    }
    assert_eq!(place.store.resolve(&format!("x@{}", one.digest)).unwrap().digest, one.digest);
    assert!(matches!(place.store.resolve(&format!("z@{}", one.digest)), Err(Error::NotFound(_))));
    assert!(matches!(place.store.resolve("x:3"), Err(Error::NotFound(_))));
    assert!(matches!(place.store.resolve("X:3"), Err(Error::Reference(_))));
    assert_eq!(place.store.list().unwrap().len(), 2);

    place.store.remove("x:1", false).unwrap();
    assert_eq!(place.store.resolve("x:2").unwrap().references.len(), 1);
    place.store.remove("x:2", false).unwrap();
    assert!(matches!(place.store.resolve(one.digest.as_str()), Err(Error::NotFound(_))));
    assert!(matches!(place.store.remove("x:2", false), Err(Error::NotFound(_))));
    place.store.remove(two.digest.as_str(), false).unwrap();
    place.assert_empty("all removed");
}

#[test]
fn a_name_moves_to_the_newest_image_and_prune_takes_the_rest() {
    let place = Place::new();
    let old =
        place.load(docker_archive(&["x"], &[Layer::new().file("a", "1").end()])).unwrap().remove(0).image;
    let new =
        place.load(docker_archive(&["x"], &[Layer::new().file("a", "2").end()])).unwrap().remove(0).image;
    assert_eq!(place.store.resolve("x").unwrap().digest, new.digest);
    assert!(place.store.resolve(old.digest.as_str()).unwrap().references.is_empty());
    assert_eq!(place.store.prune(false).unwrap().swept.layers, 1);
    assert_eq!(place.store.list().unwrap().len(), 1);
    place.store.lease("task", &new).unwrap();
    assert_eq!(place.store.prune(true).unwrap().swept.layers, 0, "it is used");
    place.store.release("task").unwrap();
    assert_eq!(place.store.prune(true).unwrap().swept.layers, 1);
    place.assert_empty("pruned");
}

#[test]
fn a_lease_keeps_an_image_until_it_is_released() {
    let place = Place::new();
    let image =
        place.load(docker_archive(&["x"], &[Layer::new().file("a", "1").end()])).unwrap().remove(0).image;
    place.store.lease("task-1", &image).unwrap();
    match place.store.remove("x", false) {
        Err(Error::InUse { holders, .. }) => assert_eq!(holders, "task-1"),
        other => panic!("{other:?}"),
    }
    place.store.remove("x", true).unwrap();
    assert!(matches!(place.store.resolve("x"), Err(Error::NotFound(_))));
    assert!(place.store.layers(&image).unwrap()[0].join("a").exists(), "a container still runs on it");

    // The lease is on disk: another process sees it.
    let again = Store::open(place.directory.path().join("store")).unwrap();
    assert_eq!(again.leases().unwrap().len(), 1);
    again.release("task-1").unwrap();
    again.release("task-1").unwrap();
    place.assert_empty("released");
    assert!(matches!(place.store.lease("task-2", &image), Err(Error::NotFound(_))));
    assert!(place.store.lease("../evil", &image).is_err());
}

#[test]
fn leftovers_of_a_crash_are_cleared_at_the_next_start() {
    let place = Place::new();
    let tmp = place.directory.path().join("store/tmp/half/fs/deep");
    fs::create_dir_all(&tmp).unwrap();
    fs::write(tmp.join("f"), "x").unwrap();
    Store::open(place.directory.path().join("store")).unwrap();
    place.assert_empty("reopened");
}

#[test]
fn a_damaged_index_is_reported_with_the_cure() {
    let place = Place::new();
    fs::write(place.directory.path().join("store/index.json"), "{").unwrap();
    let error = Store::open(place.directory.path().join("store")).err().unwrap().to_string();
    assert!(error.contains("index.json") && error.contains("remove the image directory"), "{error}");
}

#[test]
fn many_may_load_and_remove_at_once() {
    let place = Place::new();
    let archives: Vec<Vec<u8>> = (0..4)
        .map(|i| docker_archive(&[&format!("x:{i}")], &[Layer::new().file("shared", "").end()]))
        .collect();
    std::thread::scope(|scope| {
        for (i, archive) in archives.iter().enumerate() {
            let store = place.store.clone();
            scope.spawn(move || {
                for _ in 0..5 {
                    store.load(Cursor::new(archive.clone())).unwrap();
                    assert!(
                        store.layers(&store.resolve(&format!("x:{i}")).unwrap()).unwrap()[0]
                            .join("shared")
                            .exists()
                    );
                    store.remove(&format!("x:{i}"), false).unwrap();
                }
            });
        }
    });
    place.store.prune(false).unwrap();
    place.assert_empty("all removed");
}

// ---- pulling ----

#[test]
fn an_image_is_pulled_once_and_pinned() {
    let (registry, place) = (Registry::start(), Place::new());
    let (digest, blobs) = registry.offer("shop/web", "1", &two_layers());
    let seen = Mutex::new(Vec::new());
    let reference = registry.reference("shop/web:1");
    let image = pull_with(&place, &reference, &Registries::default(), |step| seen.lock().unwrap().push(step))
        .unwrap();
    assert_eq!((&image.digest, &image.references[..]), (&digest, &[reference.clone()][..]));
    assert_eq!(image.repo_digests, [reference.by_digest(digest.clone())]);
    assert!(place.store.layers(&image).unwrap()[1].join("big").exists());

    let seen = seen.into_inner().unwrap();
    assert!(
        matches!(&seen[0], Progress::Resolved { digest: d, layers } if *d == digest && layers.len() == 2)
    );
    for blob in &blobs {
        let whole = |step: &Progress| matches!(step, Progress::Downloading { layer, done, total } if layer == blob && done == total);
        assert!(seen.iter().any(whole) && seen.contains(&Progress::Ready(blob.clone())));
    }

    pull(&place, &reference).unwrap();
    pull(&place, &reference.pinned(digest.clone())).unwrap();
    assert_eq!(registry.requests("/blobs/").len(), 3, "two layers and a configuration, once");
    let pinned = format!("{}@{digest}", reference.name());
    assert_eq!(place.store.resolve(&pinned).unwrap().digest, digest);
    place.assert_tidy("pulled");
}

#[test]
fn of_many_platforms_ours_is_taken() {
    let (registry, place) = (Registry::start(), Place::new());
    let (digest, _) = registry.offer("x", "one", &[Layer::new().file("a", "").end()]);
    let entry = |digest: &Digest, os: &str, arch: &str| json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 1, "platform": {"os": os, "architecture": arch}});
    let put = |tag: &str, entries: &[serde_json::Value]| {
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries});
        let bytes = index.to_string().into_bytes();
        let top = Digest::of(&bytes);
        let kind = "application/vnd.oci.image.index.v1+json".to_owned();
        registry.shelves.lock().unwrap().content.insert(format!("/v2/x/manifests/{tag}"), (kind, bytes));
        top
    };
    let other = Digest::of(b"other");
    let top = put(
        "1",
        &[
            entry(&other, "linux", "vax"),
            entry(&digest, "linux", this_architecture()),
            entry(&other, "unknown", "unknown"),
        ],
    );
    put("2", &[entry(&other, "linux", "vax"), entry(&other, "windows", "amd64")]);

    let image = pull(&place, &registry.reference("x:1")).unwrap();
    assert_eq!(image.digest, digest);
    assert_eq!(image.repo_digests[0].digest(), Some(&top), "pinned to what other machines can use, too");
    assert_eq!(place.store.resolve(&registry.reference("x").by_digest(top).to_string()).unwrap(), image);
    let error = pull(&place, &registry.reference("x:2")).unwrap_err().to_string();
    assert!(error.contains("only for linux/vax, windows/amd64"), "{error}");
}

#[test]
fn an_interrupted_blob_is_resumed_where_it_broke_off() {
    let (registry, place) = (Registry::start(), Place::new());
    let (_, blobs) = registry.offer("x", "1", &two_layers());
    let path = format!("/v2/x/blobs/{}", blobs[0]);
    registry.spoil(&path, &[Fault::Cut(100_000)]);
    pull(&place, &registry.reference("x:1")).unwrap();
    let requests = registry.requests(&path);
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(requests[1].ends_with("bytes=100000-"), "{requests:?}");
}

#[test]
fn what_a_registry_sends_is_checked() {
    let registry = Registry::start();
    let (digest, blobs) = registry.offer("x", "1", &two_layers());
    let spoil = |path: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut shelves = registry.shelves.lock().unwrap();
        let (_, bytes) = shelves.content.get_mut(path).unwrap();
        let before = bytes.clone();
        change(bytes);
        before
    };
    let blob = format!("/v2/x/blobs/{}", blobs[1]);
    let manifest = format!("/v2/x/manifests/{digest}");
    let by_digest = registry.reference("x").by_digest(digest.clone());
    let by_tag = registry.reference("x:1");
    type Case<'a> = (&'a str, &'a str, &'a Reference, &'a dyn Fn(&mut Vec<u8>), &'a str);
    let cases: [Case; 4] = [
        ("a changed layer", &blob, &by_tag, &|bytes| bytes[20] ^= 1, "damaged"),
        ("a longer layer", &blob, &by_tag, &|bytes| bytes.push(0), "more than"),
        ("a shorter layer", &blob, &by_tag, &|bytes| bytes.truncate(50), "instead of"),
        ("another manifest", &manifest, &by_digest, &|bytes| bytes.push(b' '), "igest"),
    ];
    for (what, path, reference, change, why) in cases {
        let place = Place::new();
        let before = spoil(path, change);
        let error = pull(&place, reference).unwrap_err().to_string();
        assert!(error.contains(why), "{what}: {error}");
        place.assert_empty(what);
        spoil(path, &|bytes| bytes.clone_from(&before));
    }
    pull(&Place::new(), &by_tag).unwrap();
}

#[test]
fn an_unknown_image_and_a_dead_registry_are_told_apart() {
    let (registry, place) = (Registry::start(), Place::new());
    let error = pull(&place, &registry.reference("nothing:1")).unwrap_err().to_string();
    assert!(error.contains("manifest unknown") && error.contains("nothing:1"), "{error}");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = pull(&place, &format!("127.0.0.1:{port}/x").parse().unwrap()).unwrap_err().to_string();
    assert!(error.contains("refused") && error.contains(&port.to_string()), "{error}");
    place.assert_empty("nothing pulled");
}

#[test]
fn credentials_come_from_dockers_configuration() {
    let (registry, place) = (Registry::start(), Place::new());
    registry.offer("x", "1", &[Layer::new().file("a", "").end()]);
    registry.guard(Door::Basic("Basic dTpw".into()));
    let error = pull(&place, &registry.reference("x:1")).unwrap_err().to_string();
    assert!(error.contains("credentials"), "{error}");

    let file = tempfile::NamedTempFile::new().unwrap();
    let auths = json!({"auths": {registry.address.to_string(): {"auth": "dTpw"}}});
    fs::write(file.path(), auths.to_string()).unwrap();
    let registries = Registries { credentials: Some(file.path().into()), ..Registries::default() };
    pull_with(&place, &registry.reference("x:1"), &registries, |_| {}).unwrap();
}

#[test]
fn a_mirror_is_asked_first_and_may_be_out() {
    let (registry, place) = (Registry::start(), Place::new());
    registry.offer("library/x", "1", &[Layer::new().file("a", "").end()]);
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let mirrors = [("docker.io".to_owned(), vec![dead, registry.address.to_string()])].into();
    let registries = Registries { mirrors, ..Registries::default() };
    let image = pull_with(&place, &"x:1".parse().unwrap(), &registries, |_| {}).unwrap();
    assert_eq!(image.references[0].familiar(), "x:1", "the mirror does not show in the name");
}

#[test]
fn two_pulls_of_one_name_fetch_it_once() {
    let (registry, place) = (Registry::start(), Place::new());
    registry.offer("x", "1", &two_layers());
    let reference = registry.reference("x:1");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| pull(&place, &reference).unwrap());
        }
    });
    assert_eq!(registry.requests("/blobs/").len(), 3);
}

// ---- the built-in image ----

#[test]
fn the_builtin_image_is_this_program_and_always_the_same() {
    let (one, two) = (Place::new(), Place::new());
    let image = one.store.resolve("rswarm/demo").unwrap();
    assert_eq!(image, two.store.resolve("rswarm/demo").unwrap(), "the same program, the same digest");
    assert!(image.references.iter().all(is_builtin));
    assert_eq!(one.store.resolve("rswarm/demo:1").unwrap().digest, image.digest);

    let version = |tag: &str| {
        let image = one.store.resolve(&format!("rswarm/demo:{tag}")).unwrap();
        let config = one.store.config(&image).unwrap();
        assert_eq!(config.entrypoint, ["/rswarm", "demo"]);
        (image.digest, config.env.into_iter().find(|env| env.starts_with("VERSION=")).unwrap())
    };
    assert_eq!(version("latest").1, "VERSION=1");
    assert_eq!((version("2").1, version("3").1), ("VERSION=2".into(), "VERSION=3".into()));
    assert_ne!(version("2").0, version("3").0);

    let root = &one.store.layers(&image).unwrap()[0];
    let program = fs::read(std::env::current_exe().unwrap()).unwrap();
    assert!(fs::read(root.join("rswarm")).unwrap() == program);
    assert_eq!(fs::metadata(root.join("rswarm")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(root.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert!(fs::read_to_string(root.join("etc/passwd")).unwrap().starts_with("root:x:0:0:"));
    assert!(fs::read_to_string(root.join("etc/nsswitch.conf")).unwrap().contains("hosts: files dns"));
    assert_eq!(one.count("layers"), 1, "all versions share one layer");
    one.assert_tidy("builtin");
}

#[test]
fn the_builtin_image_is_made_once_by_pull_too_and_again_after_removal() {
    let place = Place::new();
    let image = pull(&place, &"rswarm/demo:2".parse().unwrap()).unwrap();
    let layer = place.store.layers(&image).unwrap().remove(0);
    let made = fs::metadata(&layer).unwrap().ino();
    place.store.resolve("rswarm/demo:3").unwrap();
    Store::open(place.directory.path().join("store")).unwrap().resolve("rswarm/demo").unwrap();
    assert_eq!(fs::metadata(&layer).unwrap().ino(), made, "not made anew");
    place.store.remove("rswarm/demo:2", false).unwrap();
    assert_eq!(place.store.resolve("rswarm/demo:2").unwrap().digest, image.digest);
    let error = place.store.resolve("rswarm/demo:99").unwrap_err().to_string();
    assert!(error.contains("latest, 1, 2, 3"), "{error}");
}

// ---- the demo program ----

/// The program running, killed at the end if it has not ended.
struct Demo {
    child: Child,
    out: io::BufReader<ChildStdout>,
}

impl Demo {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rswarm"));
        command.args(["demo", "--port", "0", "--echo-port", "0"]).args(args);
        command.env("RSWARM_SERVICE", "web").env("RSWARM_SLOT", "3").env("VERSION", "7");
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = io::BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// The next line it prints that contains `part`.
    fn line(&mut self, part: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "it ended without saying `{part}`");
            if line.contains(part) {
                return line.trim().to_owned();
            }
        }
    }

    fn http_port(&mut self) -> u16 {
        self.line("HTTP on port").rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status.code(),
                None if Instant::now() > until => panic!("it does not end"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body.
fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[test]
fn the_demo_says_who_it_is() {
    let mut demo = Demo::start(&[]);
    let port = demo.http_port();
    let (status, body) = get(port, "/");
    assert_eq!(status, 200);
    for line in ["service: web", "slot: 3", "version: 7", "client: 127.0.0.1", "address: 127.0.0.1"] {
        assert!(body.lines().any(|have| have == line), "{line} in {body}");
    }
    let facts: serde_json::Value = serde_json::from_str(&get(port, "/?json").1).unwrap();
    assert_eq!((&facts["service"], &facts["node"]), (&json!("web"), &json!(null)));
    assert!(get(port, "/env").1.contains("RSWARM_SLOT=3\n"));
    assert_eq!(get(port, "/nowhere").0, 404);
    for path in ["/fail?code=300", "/burn?mem=x", "/slow?ms=x", "/cpu?seconds=-1"] {
        assert_eq!(get(port, path).0, 400, "{path}");
    }
}

#[test]
fn the_demo_misbehaves_when_told() {
    let mut demo = Demo::start(&[]);
    let port = demo.http_port();
    assert_eq!(get(port, "/healthz").0, 200);
    get(port, "/unhealthy");
    assert_eq!(get(port, "/healthz").0, 503);
    get(port, "/healthy");
    assert_eq!(get(port, "/healthz").0, 200);
    assert_eq!(get(port, "/burn?mem=1m").1, "holding 1048576 bytes\n");
    assert_eq!(get(port, "/slow?ms=1").0, 200);
    assert_eq!(get(port, "/cpu?seconds=0").0, 200);
    assert_eq!(get(port, "/fail?code=42").0, 200);
    assert_eq!(demo.code(), Some(42));

    let mut demo = Demo::start(&[]);
    let port = demo.http_port();
    assert_eq!(get(port, "/hang").0, 200);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(stream.read(&mut [0; 1]).is_err(), "no answer");
}

#[test]
fn the_demo_echoes_both_protocols() {
    let mut demo = Demo::start(&[]);
    let line = demo.line("echo on");
    let ports: Vec<u16> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    let mut stream = TcpStream::connect(("127.0.0.1", ports[0])).unwrap();
    stream.write_all(b"hello").unwrap();
    let mut buffer = [0; 5];
    stream.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"hello");
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(b"world", ("127.0.0.1", ports[1])).unwrap();
    assert_eq!(socket.recv(&mut buffer).unwrap(), 5);
    assert_eq!(&buffer, b"world");
}

#[test]
fn the_demo_ends_as_its_flags_say() {
    for (args, code) in [
        (&["--fail-at-start"][..], 1),
        (&["--fail-at-start", "--exit-code", "9"], 9),
        (&["--fail-after", "10ms", "--exit-code", "7"], 7),
        (&["--start-delay", "1h", "--fail-after", "10ms"], 1),
    ] {
        assert_eq!(Demo::start(args).code(), Some(code), "{args:?}");
    }
    let mut demo = Demo::start(&["--print-every", "1ms"]);
    demo.line("line 3 after");
}

#[test]
fn the_demo_finishes_open_requests_on_sigterm() {
    let mut demo = Demo::start(&[]);
    let port = demo.http_port();
    demo.line("echo on");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /slow?ms=500 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    // Answered on a connection accepted later, so the slow request has been read.
    get(port, "/healthz");
    demo.signal(rustix::process::Signal::TERM);
    demo.line("stopping");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("after 500 ms"), "{answer}");
    assert_eq!(demo.code(), Some(0));

    let mut demo = Demo::start(&["--ignore-sigterm"]);
    let port = demo.http_port();
    demo.line("echo on");
    demo.signal(rustix::process::Signal::TERM);
    demo.line("ignored");
    assert_eq!(get(port, "/healthz").0, 200);
}
