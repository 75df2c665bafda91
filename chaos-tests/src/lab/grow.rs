//! Labs that get more nodes, or fewer, while they are.

use std::{fs, sync::atomic::AtomicBool};

use anyhow::{Context, Result, bail};

use super::{
    Lab, disks,
    record::{NODES_MAX, NodeRecord},
};

impl Lab {
    /// Switches so many more nodes on, with daemons that wait to be told to join. Returns their names.
    ///
    /// What goes wrong takes all of them away again.
    pub fn grow(&self, count: u8) -> Result<Vec<String>> {
        let added = self.change(|record| {
            let last = record.nodes.iter().map(|node| node.number).max().unwrap_or(0);
            let Some(end) = last.checked_add(count).filter(|end| *end <= NODES_MAX) else {
                bail!(
                    "a lab has {NODES_MAX} nodes at most, and this one would have {}",
                    u16::from(last) + u16::from(count)
                );
            };
            let new = (last + 1..=end).map(|number| NodeRecord {
                name: format!("n{number}"),
                number,
                manager: false,
                disk: None,
                capacity: None,
                init: None,
                boots: 0,
            });
            let new: Vec<NodeRecord> = new.collect();
            let names: Vec<String> = new.iter().map(|node| node.name.clone()).collect();
            record.nodes.extend(new);
            let booted = self.boot_all(record, &names, &mut |_, _| (), &AtomicBool::new(false));
            Ok((names, booted))
        })?;
        let (names, booted) = added;
        let waits = |name: &String| self.await_daemon(name, &AtomicBool::new(false));
        if let Err(error) = booted.and_then(|()| names.iter().try_for_each(waits)) {
            self.shrink(&names)?;
            return Err(error);
        }
        Ok(names)
    }

    /// Takes nodes out of the lab, with all that is on them. What the cluster knows of them is its own affair.
    pub fn shrink(&self, names: &[String]) -> Result<()> {
        self.change(|record| {
            for name in names {
                let node = record.node(name)?.clone();
                self.power_off(record, &node)?;
                let own = self.directory.join(name);
                disks::remove(&own)?;
                fs::remove_dir_all(&own).with_context(|| format!("cannot remove {}", own.display()))?;
                record.nodes.retain(|node| node.name != *name);
                record.cuts.retain(|cut| cut.from != *name && cut.to != *name);
                record.links.retain(|worse| worse.from != *name && worse.to != *name);
            }
            Ok(())
        })
    }
}
