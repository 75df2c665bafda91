//! The Linux half against the real kernel: namespaces, links, filters and whole networks. Needs root.

use std::{net::IpAddr, path::PathBuf};

use rswarm_netoverlay::device::{
    link::{Links, Route},
    netns::Netns,
};

/// A directory for pins, removed with all pins in it.
struct Pins {
    dir: tempfile::TempDir,
}

impl Pins {
    /// `None`, and the reason on stderr, if this is not root.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: namespaces need root");
            return None;
        }
        Some(Self { dir: tempfile::tempdir().unwrap() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn netns(&self, name: &str) -> Netns {
        Netns::create(&self.path(name)).unwrap()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                Netns::remove(&path).unwrap();
            }
        }
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_namespace_is_pinned_opened_and_removed() {
    let Some(pins) = Pins::new() else { return };
    let path = pins.path("deep/er/one");
    let netns = Netns::create(&path).unwrap();
    assert!(Netns::create(&path).unwrap_err().is_present());
    assert!(Netns::open(&path).unwrap().is_same(&netns));
    assert!(!Netns::current().unwrap().is_same(&netns));
    let (again, made) = Netns::ensure(&path).unwrap();
    assert!(again.is_same(&netns) && !made);
    netns.set_sysctls(&[("net/ipv4/ip_forward", "1")]).unwrap();
    assert_eq!(netns.sysctl("net/ipv4/ip_forward").unwrap(), "1");
    let error = netns.set_sysctls(&[("net/ipv4/no_such_thing", "1")]).unwrap_err();
    assert!(error.to_string().contains("no_such_thing") && error.is_missing(), "{error}");
    Netns::remove(&path).unwrap();
    Netns::remove(&path).unwrap();
    assert!(Netns::open(&path).unwrap_err().is_missing());
    std::fs::write(&path, "").unwrap();
    Netns::create(&path).unwrap();
    Netns::remove(&path).unwrap();
    std::fs::remove_dir_all(pins.path("deep")).unwrap();
}

#[tokio::test]
async fn links_addresses_and_routes_are_made_once() {
    let Some(pins) = Pins::new() else { return };
    let (a, b) = (pins.netns("a"), pins.netns("b"));
    let (here, there) = (Links::open(&a).unwrap(), Links::open(&b).unwrap());

    assert!(here.ensure_veth("left", 1400, "right", &there).await.unwrap());
    assert!(!here.ensure_veth("left", 1300, "right", &there).await.unwrap());
    assert_eq!(there.get("right").await.unwrap().mtu, 1300);
    assert_eq!(there.get("right").await.unwrap().kind, "veth");
    assert_eq!(there.find("left").await.unwrap(), None);
    let error = here.get("nowhere").await.unwrap_err();
    assert_eq!(error.to_string(), format!("cannot find link nowhere in netns {}", pins.path("a").display()));

    for links in [&here, &there] {
        links.set_up("lo").await.unwrap();
    }
    for _ in 0..2 {
        here.set_up("left").await.unwrap();
        there.set_up("right").await.unwrap();
        here.ensure_address("left", ip("10.9.0.1"), 24).await.unwrap();
        there.ensure_address("right", ip("10.9.0.2"), 24).await.unwrap();
        there.ensure_route(&Route::default_via(ip("10.9.0.1"))).await.unwrap();
        here.ensure_route(&Route::direct(ip("10.8.0.0"), 24, "left")).await.unwrap();
        here.ensure_mark_rule(false, 1, 100, 50).await.unwrap();
        let local = Route { table: Some(100), local: true, dev: Some("lo".into()), ..Route::default() };
        here.ensure_route(&local).await.unwrap();
        assert_eq!(here.routes(false, Some(100)).await.unwrap(), [local]);
    }
    assert_eq!(here.addresses("left").await.unwrap()[0], (ip("10.9.0.1"), 24));
    assert_eq!(there.routes(false, Some(254)).await.unwrap().len(), 2);
    for _ in 0..2 {
        here.remove_mark_rule(false, 1, 100).await.unwrap();
        here.remove_route(&Route::direct(ip("10.8.0.0"), 24, "left")).await.unwrap();
        here.remove_address("left", ip("10.9.0.1"), 24).await.unwrap();
    }
    assert_eq!(here.routes(false, Some(254)).await.unwrap(), []);

    here.ensure_bridge("br0").await.unwrap();
    here.ensure_bridge("br0").await.unwrap();
    here.set_bridge("left", "br0").await.unwrap();
    let bridge = here.get("br0").await.unwrap();
    assert_eq!(here.get("left").await.unwrap().controller, Some(bridge.index));
    here.rename("br0", "br1").await.unwrap();
    here.set_down("left").await.unwrap();
    assert!(!here.get("left").await.unwrap().up);
    here.delete("left").await.unwrap();
    here.delete("left").await.unwrap();
    assert_eq!(there.find("right").await.unwrap(), None);
}

#[tokio::test]
async fn a_name_held_by_a_dying_namespace_is_waited_for() {
    let Some(pins) = Pins::new() else { return };
    let home = pins.netns("home");
    let here = Links::open(&home).unwrap();
    for round in 0..5 {
        let path = pins.path("container");
        let netns = Netns::create(&path).unwrap();
        let there = Links::open(&netns).unwrap();
        assert!(here.ensure_veth("vsame", 1400, "eth0", &there).await.unwrap(), "round {round}");
        Netns::remove(&path).unwrap();
    }
}
