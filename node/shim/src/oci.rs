//! The specification as another runtime is to have it: complete, with numbers where ours has names, and without what
//! the shim sees to itself.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::process::User;
use crate::rootfs::DEFAULT_SYSCTLS;

/// What is to be known of this machine, and found out in the container's root.
pub struct Facts<'a> {
    /// Where the container's root is.
    pub root: &'a Path,
    /// Who its program runs as.
    pub user: &'a User,
    /// Whether this process may raise limits of processes.
    pub may_raise: bool,
    /// How far a limit of processes goes for this process.
    pub ceiling: &'a dyn Fn(&str) -> Option<u64>,
    /// How readily the kernel kills this process.
    pub oom_score_adj: i32,
    /// Whether the kernel has a setting.
    pub has_sysctl: &'a dyn Fn(&str) -> bool,
}

/// Makes of our specification one for a runtime that only does what is written there.
pub fn adapted(mut spec: Value, facts: &Facts<'_>) -> Value {
    spec["root"]["path"] = json!(facts.root);
    adapt_process(&mut spec["process"], facts);
    // Limits are set by the shim, now and whenever they change; which devices may be used is only said once.
    if let Value::Object(resources) = &mut spec["linux"]["resources"] {
        resources.retain(|name, _| name == "devices");
    }
    if let Value::Object(sysctls) = &mut spec["linux"]["sysctl"] {
        sysctls.retain(|name, _| !DEFAULT_SYSCTLS.contains(&name.as_str()) || (facts.has_sysctl)(name));
    }
    spec
}

fn adapt_process(process: &mut Value, facts: &Facts<'_>) {
    let user = facts.user;
    process["user"] =
        json!({"uid": user.uid, "gid": user.gid, "additionalGids": user.groups, "umask": 0o022});
    if user.uid != 0 {
        // As when somebody who is not root executes a program.
        for set in ["effective", "permitted"] {
            process["capabilities"][set] = json!([]);
        }
    }
    if let Value::Array(env) = &mut process["env"]
        && !env.iter().any(|entry| entry.as_str().is_some_and(|entry| entry.starts_with("HOME=")))
    {
        env.push(json!(format!("HOME={}", user.home)));
    }
    if facts.may_raise {
        return;
    }
    // Others would refuse to start the container.
    if let Value::Array(limits) = &mut process["rlimits"] {
        limits.iter_mut().filter_map(Value::as_object_mut).for_each(|limit| lower(limit, facts.ceiling));
    }
    if process["oomScoreAdj"].as_i64().is_some_and(|wanted| wanted < facts.oom_score_adj.into()) {
        process["oomScoreAdj"] = json!(facts.oom_score_adj);
    }
}

/// Lowers a limit to what may be had.
fn lower(limit: &mut Map<String, Value>, ceiling: &dyn Fn(&str) -> Option<u64>) {
    let Some(most) = limit.get("type").and_then(Value::as_str).and_then(ceiling) else { return };
    for side in ["soft", "hard"] {
        if limit.get(side).and_then(Value::as_u64).is_some_and(|wanted| wanted > most) {
            limit.insert(side.into(), json!(most));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u32) -> User {
        User { uid, gid: 34, groups: vec![40], home: "/srv".into() }
    }

    fn of(user: &User, may_raise: bool) -> Value {
        let spec = json!({
            "root": {"path": "rootfs"},
            "process": {
                "env": ["A=b"], "oomScoreAdj": -5,
                "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 99}],
            },
            "linux": {
                "resources": {"memory": {"limit": 5}, "devices": [{"allow": false}]},
                "sysctl": {"net.ipv4.ping_group_range": "0 1", "kernel.shmmax": "7"},
            },
        });
        let facts = Facts {
            root: Path::new("/there/rootfs"),
            user,
            may_raise,
            ceiling: &|_| Some(20),
            oom_score_adj: 3,
            has_sysctl: &|_| false,
        };
        adapted(spec, &facts)
    }

    #[test]
    fn names_become_numbers_and_only_root_has_capabilities_in_effect() {
        let web = of(&user(33), true);
        assert_eq!(web["root"]["path"], "/there/rootfs");
        assert_eq!(
            web["process"]["user"],
            json!({"uid": 33, "gid": 34, "additionalGids": [40], "umask": 18})
        );
        assert_eq!(web["process"]["env"], json!(["A=b", "HOME=/srv"]));
        let sets = |spec: &Value| {
            ["bounding", "effective", "permitted"]
                .map(|set| spec["process"]["capabilities"][set].as_array().unwrap().len())
        };
        assert_eq!(sets(&web), [1, 0, 0]);
        assert_eq!(sets(&of(&user(0), true)), [1, 1, 1]);
    }

    #[test]
    fn what_the_shim_sees_to_and_what_cannot_be_had_here_is_left_out() {
        let free = of(&user(0), true);
        assert_eq!(free["linux"]["resources"], json!({"devices": [{"allow": false}]}));
        assert_eq!(free["linux"]["sysctl"], json!({"kernel.shmmax": "7"}));
        assert_eq!(free["process"]["oomScoreAdj"], -5);
        assert_eq!(free["process"]["rlimits"][0]["hard"], 99);
        let bound = of(&user(0), false);
        assert_eq!(bound["process"]["oomScoreAdj"], 3);
        assert_eq!(bound["process"]["rlimits"], json!([{"type": "RLIMIT_NOFILE", "soft": 9, "hard": 20}]));
    }
}
