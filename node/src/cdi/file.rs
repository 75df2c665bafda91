//! What a file of the Container Device Interface holds: a kind of devices, the devices, and for all of them and for each
//! what a container needs to use it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use crate::executor::Hook;

/// A file. Its version is not asked after: what we do not know in it is refused where it is needed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct File {
    pub kind: String,
    /// For each of the devices.
    #[serde(default, rename = "containerEdits")]
    pub edits: Edits,
    #[serde(default)]
    pub devices: Vec<Device>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    pub name: String,
    #[serde(default, rename = "containerEdits")]
    pub edits: Edits,
}

/// What is to be done to a container.
#[derive(Clone, Default, Deserialize)]
#[serde(from = "Written")]
pub struct Edits {
    pub env: Vec<String>,
    pub device_nodes: Vec<DeviceNode>,
    pub mounts: Vec<Mount>,
    pub hooks: Vec<Hook>,
    pub groups: Vec<u32>,
    /// The names of what we know nothing of.
    pub unknown: Vec<String>,
    /// The device nodes that are one device's, and not those of all in the file.
    pub own_nodes: Vec<PathBuf>,
}

impl Edits {
    /// Those for all devices, and then those of one.
    pub fn with(mut self, own: Self) -> Self {
        self.own_nodes = own.device_nodes.iter().map(|node| (&node.path).into()).collect();
        self.env.extend(own.env);
        self.device_nodes.extend(own.device_nodes);
        self.mounts.extend(own.mounts);
        self.hooks.extend(own.hooks);
        self.groups.extend(own.groups);
        self.unknown.extend(own.unknown);
        self
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    device_nodes: Vec<DeviceNode>,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    hooks: Vec<Hook>,
    #[serde(default)]
    additional_gids: Vec<u32>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

impl From<Written> for Edits {
    fn from(written: Written) -> Self {
        let Written { env, device_nodes, mounts, hooks, additional_gids, rest } = written;
        let unknown = rest.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, _)| name).collect();
        Self {
            env,
            device_nodes,
            mounts,
            hooks,
            // The root's own group is nothing that a device could give.
            groups: additional_gids.into_iter().filter(|gid| *gid != 0).collect(),
            unknown,
            own_nodes: Vec::new(),
        }
    }
}

/// Which device it is, the machine says: numbers, mode and owner in the file are not heeded.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceNode {
    pub path: String,
    pub host_path: Option<PathBuf>,
    pub permissions: Option<String>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Mount {
    pub host_path: PathBuf,
    pub container_path: String,
    #[serde(default)]
    pub options: Vec<String>,
    #[serde(rename = "type")]
    pub kind: Option<String>,
}
