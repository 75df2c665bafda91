//! Images made by hand, a store to put them in, and a registry that misbehaves on demand.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod registry;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use rswarm::image::{Digest, Error, Limits, Loaded, Progress, Reference, Registries, Store};
use serde_json::json;
use tar::EntryType;

// ---- writing layers and archives ----

/// A layer in the making. Names are written as they are, however wicked.
#[derive(Default)]
pub struct Layer(pub Vec<u8>);

impl Layer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn header(kind: EntryType, path: &str, mode: u32) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(0);
        header
    }

    pub fn push(mut self, mut header: tar::Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn mode(self, path: &str, data: &[u8], mode: u32) -> Self {
        let mut header = Self::header(EntryType::Regular, path, mode);
        header.set_size(data.len() as u64);
        self.push(header, data)
    }

    pub fn file(self, path: &str, data: &str) -> Self {
        self.mode(path, data.as_bytes(), 0o644)
    }

    pub fn dir(self, path: &str) -> Self {
        self.push(Self::header(EntryType::Directory, path, 0o755), b"")
    }

    pub fn link(self, kind: EntryType, path: &str, target: &str) -> Self {
        let mut header = Self::header(kind, path, 0o777);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.push(header, b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, path, target)
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.link(EntryType::Link, path, target)
    }

    pub fn device(self, kind: EntryType, path: &str, major: u32, minor: u32) -> Self {
        let mut header = Self::header(kind, path, 0o666);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        self.push(header, b"")
    }

    /// A PAX header for the next entry.
    pub fn pax(self, key: &str, value: &[u8]) -> Self {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let length =
            (1..).map(|digits| body.len() + digits).find(|n| n.to_string().len() + body.len() == *n).unwrap();
        let record = [length.to_string().as_bytes(), &body].concat();
        let mut header = Self::header(EntryType::XHeader, "pax", 0o644);
        header.set_size(record.len() as u64);
        self.push(header, &record)
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn config_of(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({
        "architecture": this_architecture(), "os": "linux", "created": "2024-01-01T00:00:00Z",
        "config": {"Entrypoint": ["/bin/x"], "Cmd": ["y"], "Env": ["A=b"], "User": "7:8", "WorkingDir": "/w",
            "StopSignal": "SIGQUIT", "Labels": {"l": "m"}, "ExposedPorts": {"80/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
    .to_string()
    .into_bytes()
}

pub fn this_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub fn tarball(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

pub fn docker_archive(names: &[&str], layers: &[Vec<u8>]) -> Vec<u8> {
    let mut files = vec![("config.json".to_owned(), config_of(layers))];
    let path = |i: usize| format!("{i}/layer.tar");
    files.extend(layers.iter().enumerate().map(|(i, layer)| (path(i), layer.clone())));
    let paths: Vec<String> = (0..layers.len()).map(path).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": names, "Layers": paths}]);
    files.push(("manifest.json".into(), manifest.to_string().into_bytes()));
    tarball(&files)
}

/// The blobs of an OCI image, by digest; the manifest is returned apart.
pub fn oci_blobs(layers: &[Vec<u8>], compress: fn(&[u8]) -> Vec<u8>) -> (Vec<u8>, BTreeMap<Digest, Vec<u8>>) {
    let config = config_of(layers);
    let packed: Vec<Vec<u8>> = layers.iter().map(|layer| compress(layer)).collect();
    let describe = |media: &str, blob: &Vec<u8>| json!({"mediaType": media, "digest": Digest::of(blob), "size": blob.len()});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": describe("application/vnd.oci.image.config.v1+json", &config),
        "layers": packed.iter().map(|blob| describe("application/vnd.oci.image.layer.v1.tar+gzip", blob)).collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    let blobs = packed.into_iter().chain([config]).map(|blob| (Digest::of(&blob), blob)).collect();
    (manifest, blobs)
}

pub fn oci_archive(name: &str, layers: &[Vec<u8>], compress: fn(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let (manifest, blobs) = oci_blobs(layers, compress);
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": Digest::of(&manifest), "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": name},
    }]});
    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index.to_string().into_bytes()),
        (format!("blobs/sha256/{}", Digest::of(&manifest).hex()), manifest),
    ];
    files.extend(blobs.into_iter().map(|(digest, blob)| (format!("blobs/sha256/{}", digest.hex()), blob)));
    tarball(&files)
}

// ---- the store under test ----

pub struct Place {
    pub directory: tempfile::TempDir,
    pub store: Store,
}

impl Place {
    pub fn new() -> Self {
        Self::with(Limits::default())
    }

    pub fn with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("canary"), "untouched").unwrap();
        let store = Store::open_with(directory.path().join("store"), limits).unwrap();
        Self { directory, store }
    }

    pub fn load(&self, archive: Vec<u8>) -> Result<Vec<Loaded>, Error> {
        self.store.load(Cursor::new(archive))
    }

    pub fn top_layer(&self, name: &str) -> PathBuf {
        self.store.layers(&self.store.resolve(name).unwrap()).unwrap()[0].clone()
    }

    pub fn count(&self, part: &str) -> usize {
        fs::read_dir(self.directory.path().join("store").join(part)).unwrap().count()
    }

    /// Nothing appeared beside the store, and nothing half-made is in it.
    pub fn assert_tidy(&self, what: &str) {
        let beside: Vec<_> =
            fs::read_dir(&self.directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(beside.len(), 2, "{what}: {beside:?}");
        assert_eq!(fs::read_to_string(self.directory.path().join("canary")).unwrap(), "untouched", "{what}");
        assert_eq!(self.count("tmp"), 0, "{what}");
    }

    pub fn assert_empty(&self, what: &str) {
        self.assert_tidy(what);
        assert_eq!((self.count("blobs/sha256"), self.count("layers")), (0, 0), "{what}");
        assert!(self.store.list().unwrap().is_empty(), "{what}");
    }
}

// ---- pulling ----

pub fn pull(place: &Place, reference: &Reference) -> Result<rswarm::image::Image, Error> {
    pull_with(place, reference, &Registries::default(), |_| {})
}

pub fn pull_with(
    place: &Place,
    reference: &Reference,
    registries: &Registries,
    report: impl Fn(Progress) + Send + Sync,
) -> Result<rswarm::image::Image, Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let bound = Duration::from_secs(60);
    runtime
        .block_on(async {
            tokio::time::timeout(bound, place.store.pull(reference, registries, report)).await
        })
        .unwrap()
}

pub fn two_layers() -> [Vec<u8>; 2] {
    let noise: Vec<u8> = (0..200_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    [Layer::new().mode("big", &noise, 0o644).end(), Layer::new().file("small", "x").end()]
}
