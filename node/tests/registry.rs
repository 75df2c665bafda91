//! Registries: tokens over TLS, resumption, damage, slowness and death, mirrors, credentials and their helpers; and
//! the real one of Debian's package `docker-registry`, where it is installed.

mod image_kit;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use image_kit::registry::{Door, Fault, Registry};
use image_kit::{Layer, Place, docker_archive, gzip, oci_archive, pull, pull_with, two_layers};
use rswarm::image::{Digest, Error, Pushed, Reference, Registries};
use serde_json::json;

fn small() -> [Vec<u8>; 1] {
    [Layer::new().file("a", "").end()]
}

/// Registries of this test, with the certificate of one that speaks TLS.
fn trusting(registry: &Registry, directory: &tempfile::TempDir) -> Registries {
    let path = directory.path().join("root.pem");
    fs::write(&path, registry.root.as_ref().expect("it speaks TLS")).unwrap();
    Registries { roots: [(registry.address.to_string(), path)].into(), ..Registries::default() }
}

/// The credentials u:p in Docker's configuration.
fn docker_config(directory: &tempfile::TempDir, registry: &Registry) -> PathBuf {
    let path = directory.path().join("config.json");
    let auths = json!({"auths": {registry.address.to_string(): {"auth": "dTpw"}}});
    fs::write(&path, auths.to_string()).unwrap();
    path
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(60), work).await.expect("it ends") })
}

#[test]
fn a_registry_with_tokens_over_tls_is_understood() {
    let (registry, place) = (Registry::start_tls(), Place::new());
    let directory = tempfile::tempdir().unwrap();
    let (digest, _) = registry.offer("x", "1", &two_layers());
    registry.guard(Door::Bearer("Basic dTpw".into()));
    let reference = registry.reference("x:1");

    // Who has no certificate of its authority does not even speak with it.
    let distrusting = Registries { insecure: Vec::new(), ..trusting(&registry, &directory) };
    let stranger = Registry::start_tls();
    let other = Registries {
        roots: [(registry.address.to_string(), {
            let path = directory.path().join("other.pem");
            fs::write(&path, stranger.root.as_ref().unwrap()).unwrap();
            path
        })]
        .into(),
        ..distrusting.clone()
    };
    let error = pull_with(&place, &reference, &other, |_| {}).unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");

    let error = pull_with(&place, &reference, &distrusting, |_| {}).unwrap_err().to_string();
    assert!(error.contains("incorrect username or password") && error.contains("rswarm login"), "{error}");
    place.assert_empty("let in by nobody");

    let registries = Registries { credentials: Some(docker_config(&directory, &registry)), ..distrusting };
    let image = pull_with(&place, &reference, &registries, |_| {}).unwrap();
    assert_eq!(image.digest, digest);
    let looked_up = block_on(place.store.look_up(&reference, &registries)).unwrap();
    assert_eq!(looked_up, digest);
    // The password goes to the token server alone.
    let shelves = registry.shelves.lock().unwrap();
    for (seen, shown) in shelves.seen.iter().zip(&shelves.shown) {
        let password = shown.as_ref().is_some_and(|shown| shown.starts_with("Basic"));
        assert!(!password || seen.contains("/token"), "{seen}");
    }
}

#[test]
fn a_login_is_checked_before_it_is_kept() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    registry.offer("x", "1", &small());
    let host = registry.address.to_string();
    for door in [Door::Basic("Basic dTpw".into()), Door::Bearer("Basic dTpw".into())] {
        registry.guard(door);
        let logins = directory.path().join("logins.json");
        let registries = Registries { logins: Some(logins.clone()), ..Registries::default() };
        let error = block_on(registries.login(&host, "u", "wrong")).unwrap_err().to_string();
        assert!(error.contains("cannot log in") && error.contains("it says: "), "{error}");
        assert!(!logins.exists());
        assert_eq!(block_on(registries.login(&format!("http://{host}/v2/"), "u", "p")).unwrap(), host);
        pull_with(&Place::new(), &registry.reference("x:1"), &registries, |_| {}).unwrap();
        assert!(registries.logout(&host).unwrap().1);
        pull_with(&Place::new(), &registry.reference("x:1"), &registries, |_| {}).unwrap_err();
        fs::remove_file(logins).unwrap();
    }
    let registries = Registries::default();
    assert!(block_on(registries.login("not a host", "u", "p")).is_err());
}

#[test]
fn credential_helpers_are_asked() {
    let (registry, place) = (Registry::start(), Place::new());
    registry.offer("x", "1", &small());
    registry.guard(Door::Basic("Basic dTpw".into()));
    let directory = tempfile::tempdir().unwrap();
    let helper = directory.path().join("docker-credential-vault");
    let host = registry.address.to_string();
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = get ] && [ \"$(cat)\" = {host} ] || exit 1\n\
         printf '{{\"ServerURL\":\"x\",\"Username\":\"u\",\"Secret\":\"p\"}}'\n"
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let config = directory.path().join("config.json");
    // The search path is the process's, so the helper is run by a process of its own.
    let child = std::env::var_os("RSWARM_TEST_HELPER");
    if child.is_none() {
        for (settings, works) in [
            (json!({"credHelpers": {&host: "vault"}}), true),
            (json!({"credsStore": "vault"}), true),
            (json!({"credsStore": "vault", "credHelpers": {&host: "missing"}}), false),
            (json!({"credsStore": "../vault"}), false),
        ] {
            fs::write(&config, settings.to_string()).unwrap();
            let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap());
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["credential_helpers_are_asked", "--exact", "-q"])
                .env("RSWARM_TEST_HELPER", format!("{host} {}", config.display()))
                .env("PATH", path)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            assert_eq!(status.success(), works, "{settings}");
        }
        return;
    }
    let told = child.unwrap().into_string().unwrap();
    let (host, config) = told.split_once(' ').unwrap();
    let registries = Registries { credentials: Some(config.into()), ..Registries::default() };
    pull_with(&place, &format!("{host}/x:1").parse().unwrap(), &registries, |_| {}).unwrap();
}

#[test]
fn a_blob_that_breaks_off_again_and_again_arrives_by_parts() {
    for no_ranges in [false, true] {
        let (registry, place) = (Registry::start(), Place::new());
        let (_, blobs) = registry.offer("x", "1", &two_layers());
        let path = format!("/v2/x/blobs/{}", blobs[0]);
        registry.shelves.lock().unwrap().no_ranges = no_ranges;
        let length = registry.shelves.lock().unwrap().content[&path].1.len();
        // More often than anything is tried in vain; each time some more has come.
        let cuts: Vec<Fault> =
            (1..=6).map(|n| Fault::Cut(if no_ranges { n * 1000 } else { length / 10 })).collect();
        registry.spoil(&path, &cuts);
        let pulled = pull(&place, &registry.reference("x:1"));
        let requests = registry.requests(&path);
        assert!(pulled.is_ok(), "{pulled:?} {requests:?}");
        assert_eq!(requests.len(), 7, "{requests:?}");
        if !no_ranges {
            assert!(requests[6].ends_with(&format!("bytes={}-", length / 10 * 6)), "{requests:?}");
        }
        place.assert_tidy("pulled by parts");
    }
}

#[test]
fn a_registry_that_falls_silent_is_asked_again_and_one_that_stays_so_is_given_up() {
    let (registry, place) = (Registry::start(), Place::new());
    let (_, blobs) = registry.offer("x", "1", &two_layers());
    let path = format!("/v2/x/blobs/{}", blobs[0]);
    let registries = Registries { patience: Duration::from_millis(300), ..Registries::default() };
    registry.spoil(&path, &[Fault::Stall(1000)]);
    pull_with(&place, &registry.reference("x:1"), &registries, |_| {}).unwrap();
    assert!(registry.requests(&path)[1].ends_with("bytes=1000-"));

    let place = Place::new();
    registry.spoil(&path, &[Fault::Stall(0); 20]);
    let error = pull_with(&place, &registry.reference("x:1"), &registries, |_| {}).unwrap_err().to_string();
    assert!(error.contains("nothing came for 0.3 s"), "{error}");
    place.assert_empty("given up");
}

#[test]
fn a_registry_that_is_overloaded_is_asked_again_and_a_refusal_is_final() {
    let (registry, place) = (Registry::start(), Place::new());
    registry.offer("x", "1", &small());
    registry.spoil("/v2/x/manifests/1", &[Fault::Status(503), Fault::Status(429), Fault::Cut(10)]);
    pull(&place, &registry.reference("x:1")).unwrap();
    assert_eq!(registry.requests("/manifests/1").len(), 4);

    let (registry, place) = (Registry::start(), Place::new());
    registry.offer("x", "1", &small());
    registry.spoil("/v2/x/manifests/1", &[Fault::Status(403)]);
    let error = pull(&place, &registry.reference("x:1")).unwrap_err().to_string();
    assert!(error.contains("403") && error.contains("credentials"), "{error}");
    assert_eq!(registry.requests("/manifests/1").len(), 1);
}

#[test]
fn a_manifest_is_refused_for_its_size_before_it_is_read() {
    let (registry, place) = (Registry::start(), Place::new());
    let huge = vec![b' '; 5 << 20];
    let kind = "application/vnd.oci.image.manifest.v1+json".to_owned();
    registry.shelves.lock().unwrap().content.insert("/v2/x/manifests/1".into(), (kind, huge));
    // The rest never comes: who waits for it waits in vain.
    registry.spoil("/v2/x/manifests/1", &[Fault::Stall(10)]);
    let registries = Registries { patience: Duration::from_secs(20), ..Registries::default() };
    let began = Instant::now();
    let error = pull_with(&place, &registry.reference("x:1"), &registries, |_| {}).unwrap_err().to_string();
    assert!(error.contains("larger than") && began.elapsed() < Duration::from_secs(15), "{error}");
    place.assert_empty("too large");
}

#[test]
fn a_blob_may_lie_elsewhere_and_credentials_stay_at_home() {
    let (registry, elsewhere, place) = (Registry::start(), Registry::start(), Place::new());
    let (_, blobs) = registry.offer("x", "1", &two_layers());
    registry.guard(Door::Basic("Basic dTpw".into()));
    let path = format!("/v2/x/blobs/{}", blobs[0]);
    let blob = registry.shelves.lock().unwrap().content[&path].clone();
    elsewhere.shelves.lock().unwrap().content.insert("/there".into(), blob);
    let to = format!("{}/there", elsewhere.base());
    registry.shelves.lock().unwrap().moved.insert(path.clone(), to);
    let directory = tempfile::tempdir().unwrap();
    let registries =
        Registries { credentials: Some(docker_config(&directory, &registry)), ..Registries::default() };
    elsewhere.spoil("/there", &[Fault::Cut(5000)]);
    pull_with(&place, &registry.reference("x:1"), &registries, |_| {}).unwrap();
    assert_eq!(elsewhere.requests("/there"), ["GET /there", "GET /there bytes=5000-"]);
    assert_eq!(elsewhere.shelves.lock().unwrap().shown, [None, None]);

    // Round and round.
    registry.shelves.lock().unwrap().moved.insert(path.clone(), path.clone());
    let error = pull_with(&Place::new(), &registry.reference("x:1"), &registries, |_| {}).unwrap_err();
    assert!(error.to_string().contains("sends us on"), "{error}");
}

// ---- the real one ----

/// `docker-registry` with a directory of its own.
struct Real {
    child: Child,
    host: String,
    directory: tempfile::TempDir,
}

impl Real {
    /// `None` if it is not installed; that is said.
    fn start(test: &str, extra: &str) -> Option<Self> {
        if Command::new("docker-registry").arg("--version").stdout(Stdio::null()).status().is_err() {
            eprintln!("skipped: {test} needs the program docker-registry (Debian's package of that name)");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let (at, config) = (directory.path().display(), directory.path().join("config.yml"));
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {at}/data}}}}\nhttp: {{addr: {host}}}\n{}",
            extra.replace("DIRECTORY", &at.to_string())
        );
        fs::write(&config, text).unwrap();
        // u:p, as htpasswd writes it.
        fs::write(
            directory.path().join("htpasswd"),
            "u:$2b$05$abcdefghijklmnopqrstuuqwWMzKt5N8p.u2GX5MuH1t19BMWuLOW\n",
        )
        .unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let real = Self { child, host, directory };
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(&real.host).is_err() {
            assert!(Instant::now() < deadline, "it does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(real)
    }

    fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.host).parse().unwrap()
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn debians_registry_takes_gives_and_guards() {
    let auth = "auth: {htpasswd: {realm: vault, path: DIRECTORY/htpasswd}}\n";
    let Some(real) = Real::start("debians_registry_takes_gives_and_guards", auth) else { return };
    let (place, reference) = (Place::new(), real.reference("shop/web:1"));
    let error = pull(&place, &reference).unwrap_err().to_string();
    assert!(error.contains("authentication required") && error.contains("rswarm login"), "{error}");

    let directory = tempfile::tempdir().unwrap();
    let registries =
        Registries { logins: Some(directory.path().join("logins.json")), ..Registries::default() };
    block_on(registries.login(&real.host, "u", "wrong")).unwrap_err();
    block_on(registries.login(&real.host, "u", "p")).unwrap();
    let error = pull_with(&place, &reference, &registries, |_| {}).unwrap_err().to_string();
    assert!(error.contains("manifest unknown"), "{error}");

    let archive = docker_archive(&[&reference.to_string()], &two_layers());
    let sent = place.load(archive).unwrap().remove(0).image;
    let pushed = push(&place, &reference, &registries).unwrap();
    assert_eq!(pushed.digest, sent.digest);
    let other = Place::new();
    let got = pull_with(&other, &reference, &registries, |_| {}).unwrap();
    assert_eq!((got.digest, got.layers), (sent.digest.clone(), sent.layers));
    assert_eq!(block_on(place.store.look_up(&reference, &registries)).unwrap(), sent.digest);
}

#[test]
fn debians_registry_with_a_damaged_blob_is_found_out() {
    let Some(real) = Real::start("debians_registry_with_a_damaged_blob_is_found_out", "") else { return };
    let (place, reference) = (Place::new(), real.reference("web:1"));
    place.load(docker_archive(&[&reference.to_string()], &two_layers())).unwrap();
    push(&place, &reference, &Registries::default()).unwrap();
    let hex = Digest::of(&two_layers()[0]).hex().to_owned();
    let data = real.directory.path().join("data/docker/registry/v2/blobs/sha256");
    let path = data.join(&hex[..2]).join(&hex).join("data");
    let mut bytes = fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let other = Place::new();
    let error = pull(&other, &reference).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
    other.assert_empty("damaged");
    bytes[1000] ^= 1;
    fs::write(&path, &bytes[..5000]).unwrap();
    let error = pull(&other, &reference).unwrap_err().to_string();
    assert!(error.contains(&hex[..12]) || error.contains("instead of"), "{error}");
    other.assert_empty("cut short");
    fs::write(&path, &bytes).unwrap();
    pull(&other, &reference).unwrap();
}

// ---- pushing, and archives ----

fn push(place: &Place, reference: &Reference, registries: &Registries) -> Result<Pushed, Error> {
    block_on(place.store.push(reference, registries, |_| {}))
}

#[test]
fn what_the_registry_has_is_not_sent_again() {
    let (registry, place) = (Registry::start(), Place::new());
    registry.guard(Door::Bearer("Basic dTpw".into()));
    let directory = tempfile::tempdir().unwrap();
    let registries =
        Registries { credentials: Some(docker_config(&directory, &registry)), ..Registries::default() };
    let (first, second) = (registry.reference("x:1"), registry.reference("x:2"));
    let [big, small] = two_layers();
    place.load(docker_archive(&[&first.to_string()], std::slice::from_ref(&big))).unwrap();
    place.load(docker_archive(&[&second.to_string()], &[big, small])).unwrap();
    registry.spoil("/v2/x/blobs/uploads/", &[Fault::Status(500)]);
    push(&place, &first, &registries).unwrap();
    let sent = |registry: &Registry| registry.requests("PUT /v2/x/blobs").len();
    assert_eq!(sent(&registry), 2, "a layer and a configuration");
    let pushed = push(&place, &second, &registries).unwrap();
    assert_eq!(sent(&registry), 4, "the other layer and the other configuration");
    let other = Place::new();
    let image = pull_with(&other, &second, &registries, |_| {}).unwrap();
    assert_eq!(image.digest, pushed.digest);
    let known = place.store.resolve(&second.to_string()).unwrap().repo_digests;
    assert_eq!(known, [second.by_digest(pushed.digest)], "now it has a digest there");

    assert!(matches!(push(&place, &registry.reference("y:1"), &registries), Err(Error::NotFound(_))));
    registry.guard(Door::Basic("another".into()));
    let error = push(&place, &first, &registries).unwrap_err().to_string();
    assert!(error.contains("cannot push `") && error.contains("authentication required"), "{error}");
    let error = push(&place, &"rswarm/demo".parse().unwrap(), &registries).unwrap_err().to_string();
    assert!(error.contains("on every node"), "{error}");
}

#[test]
fn a_saved_image_is_the_same_when_it_is_loaded() {
    let place = Place::new();
    let archive = oci_archive("shop/web:1", &two_layers(), gzip);
    let image = place.load(archive).unwrap().remove(0).image;
    place.store.tag(&image, &"shop/web:2".parse().unwrap()).unwrap();
    place.load(docker_archive(&["db:1"], &two_layers()[1..])).unwrap();
    let save = |names: &[&str]| {
        let mut bytes = Vec::new();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        place.store.save(&names, &mut bytes).map(|()| bytes)
    };
    let bytes = save(&["shop/web:1", "shop/web:2", "db:1"]).unwrap();
    assert_eq!(
        bytes,
        save(&["db:1", "shop/web:2", "shop/web:1"]).unwrap(),
        "it depends on what is in it alone"
    );
    let other = Place::new();
    let loaded = other.load(bytes).unwrap();
    assert_eq!(loaded.len(), 2);
    let same = other.store.resolve("shop/web:2").unwrap();
    assert_eq!((same.digest, same.id, same.references.len()), (image.digest, image.id.clone(), 2));
    assert!(other.store.resolve("db:1").is_ok());

    let nameless = other.load(save(&[image.id.short()]).unwrap()).unwrap();
    assert!(nameless[0].references.is_empty());
    assert!(matches!(save(&["nosuch"]), Err(Error::NotFound(_))));
    let blob =
        place.directory.path().join("store/blobs/sha256").join(Digest::of(&gzip(&two_layers()[0])).hex());
    let mut bytes = fs::read(&blob).unwrap();
    bytes[100] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let error = save(&["shop/web:1"]).unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
}

#[test]
fn archives_are_exchanged_with_skopeo() {
    let skopeo = |words: &[&str]| Command::new("skopeo").args(words).stdout(Stdio::null()).output();
    if skopeo(&["--version"]).is_err() {
        eprintln!("skipped: archives_are_exchanged_with_skopeo needs the program skopeo");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let place = Place::new();
    let image = place.load(oci_archive("shop/web:1", &two_layers(), gzip)).unwrap().remove(0).image;
    let mut out = fs::File::create(path("ours.tar")).unwrap();
    place.store.save(&["shop/web:1".to_owned()], &mut out).unwrap();
    for (kind, name) in [("docker-archive", "d.tar"), ("oci-archive", "o.tar")] {
        let from = format!("{kind}:{}", path("ours.tar"));
        let to = format!("{kind}:{}:shop/web:7", path(name));
        let copied = skopeo(&["--insecure-policy", "copy", "-q", &from, &to]).unwrap();
        assert!(copied.status.success(), "{kind}: {}", String::from_utf8_lossy(&copied.stderr));
        let other = Place::new();
        let loaded = other.load(fs::read(path(name)).unwrap()).unwrap();
        assert_eq!(loaded[0].image.layers, image.layers, "{kind}");
        assert!(other.store.resolve("shop/web:7").is_ok(), "{kind}: {:?}", loaded[0].references);
    }
}

#[test]
fn only_unwanted_images_are_pruned() {
    let place = Place::new();
    place.load(docker_archive(&["a:1"], &two_layers()[..1])).unwrap();
    place.load(docker_archive(&["b:1"], &two_layers()[1..])).unwrap();
    let image = place.store.resolve("b:1").unwrap();
    let pruned = place.store.prune_if(true, |image, config| {
        config.labels.contains_key("l") && image.references[0].familiar() == "a:1"
    });
    let pruned = pruned.unwrap();
    assert_eq!(pruned.images.len(), 1);
    assert!(pruned.swept.bytes > 1_600_000, "{pruned:?}");
    assert_eq!(place.store.list().unwrap(), [image]);
    let details = place.store.details("b:1").unwrap();
    assert_eq!(details.layers[0].size, two_layers()[1].len() as u64);
}
