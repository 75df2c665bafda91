use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

fn packed(root: &Path, path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack(&directory(root).unwrap().into(), Path::new(path), false, &mut bytes).unwrap();
    bytes
}

fn named(name: &str) -> Target {
    Target { name: Some(name.into()), ..Target::default() }
}

fn put(root: &Path, path: &str, target: &Target, archive: &[u8]) -> io::Result<()> {
    unpack(&directory(root).unwrap().into(), Path::new(path), target, archive)
}

/// A directory `src` with a file, a link and a directory.
fn tree() -> tempfile::TempDir {
    let from = tempfile::tempdir().unwrap();
    fs::create_dir_all(from.path().join("src/deep")).unwrap();
    fs::write(from.path().join("src/file"), "one").unwrap();
    fs::set_permissions(from.path().join("src/file"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(from.path().join("src/deep/file"), vec![7; 100_000]).unwrap();
    symlink("file", from.path().join("src/link")).unwrap();
    from
}

#[test]
fn what_is_copied_is_named_as_by_cp() {
    let from = tree();
    let (file, tree) = (packed(from.path(), "/src/file"), packed(from.path(), "/src"));
    let to = tempfile::tempdir().unwrap();
    let there = |path: &str| to.path().join(path);
    fs::create_dir(there("dir")).unwrap();
    put(to.path(), "/new", &named("file"), &file).unwrap();
    put(to.path(), "/dir", &named("file"), &file).unwrap();
    assert_eq!(fs::read_to_string(there("new")).unwrap(), "one");
    assert_eq!(fs::metadata(there("dir/file")).unwrap().permissions().mode() & 0o777, 0o640);
    put(to.path(), "/dir", &named("src"), &tree).unwrap();
    assert_eq!(fs::read(there("dir/src/deep/file")).unwrap().len(), 100_000);
    assert_eq!(fs::read_link(there("dir/src/link")).unwrap(), Path::new("file"));
    put(to.path(), "/renamed", &named("src"), &tree).unwrap();
    assert!(there("renamed/deep/file").exists());
    put(to.path(), "/dir", &Target { contents: true, ..named("src") }, &tree).unwrap();
    assert!(there("dir/deep/file").exists());
    put(to.path(), "/dir", &Target::default(), &file).unwrap();
    for (path, target, archive, words) in [
        ("/new", named("src"), &tree, "is not a directory"),
        ("/none/", named("file"), &file, "no directory"),
        ("/none/file", named("file"), &file, "/none"),
        ("/none", Target::default(), &file, "not a directory"),
    ] {
        let error = put(to.path(), path, &target, archive).expect_err(path).to_string();
        assert!(error.contains(words), "{path}: {error}");
    }
}

#[test]
fn the_root_has_no_name_that_could_be_taken_for_what_lies_in_it() {
    let from = tree();
    let whole = packed(from.path(), "/");
    let root = |contents| Target { contents, ..named(".") };
    for (path, contents) in [("/into", false), ("/contents", true), ("/new", false)] {
        let to = tempfile::tempdir().unwrap();
        let there = to.path().join(&path[1..]);
        if path != "/new" {
            fs::create_dir(&there).unwrap();
        }
        put(to.path(), path, &root(contents), &whole).unwrap();
        assert_eq!(fs::read(there.join("src/deep/file")).unwrap().len(), 100_000, "{path}");
        assert_eq!(fs::read_link(there.join("src/link")).unwrap(), Path::new("file"), "{path}");
    }
}

#[test]
fn neither_links_nor_names_lead_out() {
    let (outside, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), to.path().join("out")).unwrap();
    symlink("../../../../../../..", to.path().join("up")).unwrap();
    fs::create_dir(to.path().join("in")).unwrap();
    symlink(outside.path(), to.path().join("in/out")).unwrap();
    let archive = |name: &str| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o644);
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        builder.append(&header, &b"evil"[..]).unwrap();
        builder.into_inner().unwrap()
    };
    for name in ["../evil", "out/evil", "a/../../evil", "in/out/evil"] {
        assert!(put(to.path(), "/", &Target::default(), &archive(name)).is_err(), "{name}");
    }
    // An absolute name is meant from where it is unpacked, a link to where nothing is inside leads nowhere.
    put(to.path(), "/", &Target::default(), &archive("/evil")).unwrap();
    assert!(to.path().join("evil").exists());
    assert!(put(to.path(), "/out/evil", &named("x"), &archive("x")).is_err());
    put(to.path(), "/up/climbed", &named("x"), &archive("x")).unwrap();
    assert!(to.path().join("climbed").exists());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    let mut bytes = Vec::new();
    let root = directory(to.path()).unwrap().into();
    assert!(pack(&root, Path::new("/out/secret"), true, &mut bytes).is_err());
    // A link in the way of a file is replaced, and not followed.
    symlink(outside.path().join("secret"), to.path().join("in/x")).unwrap();
    put(to.path(), "/in", &named("x"), &archive("x")).unwrap();
    assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
    assert_eq!(fs::read_to_string(to.path().join("in/x")).unwrap(), "evil");
}

#[test]
fn damage_is_an_error_and_no_panic() {
    let from = tree();
    let whole = packed(from.path(), "/src");
    // Between two entries an archive may end.
    for cut in [1, 100, 513, 1500] {
        let to = tempfile::tempdir().unwrap();
        assert!(put(to.path(), "/x", &named("src"), &whole[..cut]).is_err(), "{cut}");
    }
    for at in (0..2048).step_by(7) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x55;
        let to = tempfile::tempdir().unwrap();
        let _ = put(to.path(), "/x", &named("src"), &damaged);
    }
}
