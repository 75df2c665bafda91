//! Builds the container shim for the same target, so that it can be embedded in the binary.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let variable =
        |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"));
    let target = variable("TARGET");
    let workspace = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    let target_dir = PathBuf::from(variable("OUT_DIR")).join("shim");
    for watched in ["build.rs", "shim/src", "shim/Cargo.toml", "../Cargo.toml", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={watched}");
    }

    let mut cargo = Command::new(variable("CARGO"));
    cargo.current_dir(workspace);
    cargo.args([
        "build",
        "--package",
        "rswarm-shim",
        "--bin",
        "rswarm-shim",
        "--profile",
        "shim",
        "--locked",
    ]);
    cargo.args(["--target", &target, "--target-dir"]).arg(&target_dir);
    // What this build was told about itself would confuse the inner one, whose wrappers and flags are its own.
    let told = ["CARGO_", "RUSTC", "RUSTDOC", "DEP_"];
    let kept = [
        "CARGO_HOME",
        "CARGO_NET_OFFLINE",
        "CARGO_HTTP_",
        "CARGO_TARGET_",
        "CARGO_REGISTRIES_",
        "CARGO_SOURCE_",
    ];
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let begins = |list: &[&str]| list.iter().any(|prefix| name.starts_with(prefix));
        if begins(&told) && !begins(&kept)
            || ["PROFILE", "OPT_LEVEL", "DEBUG", "TARGET", "HOST"].contains(&&*name)
        {
            cargo.env_remove(&*name);
        }
    }
    // Not position-independent: relocations would be private memory, once for each container.
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\x1f-Crelocation-model=static");
    let status = cargo.status().unwrap_or_else(|error| panic!("cannot run cargo to build the shim: {error}"));
    assert!(status.success(), "the shim does not build; `cargo build -p rswarm-shim` shows why");
    let program = target_dir.join(&target).join("shim/rswarm-shim");
    println!("cargo::rustc-env=RSWARM_SHIM={}", program.display());
}
