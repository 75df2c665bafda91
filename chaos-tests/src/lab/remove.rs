//! Removing a lab, whole or in pieces.

use std::{fs, os::unix::ffi::OsStrExt, thread};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use super::{
    Lab, PATIENCE, disks, machine,
    process::{self, Process},
    record::Record,
    rootless, wire,
};

impl Lab {
    /// Removes everything. What a crash kept out of the record is found by control group and by
    /// command line.
    pub(super) fn remove(&self) -> Result<bool> {
        let lock = match self.lock() {
            Err(_) if !self.directory.exists() => return Ok(false),
            lock => lock?,
        };
        self.stop_everything()?;
        disks::remove(&self.directory)?;
        let removed = fs::remove_dir_all(&self.directory);
        removed.with_context(|| format!("cannot remove {}", self.directory.display()))?;
        drop(lock);
        if let Some(base) = self.directory.parent() {
            // Others may have labs in there.
            let _ = fs::remove_dir(base);
        }
        Ok(true)
    }

    /// Ends all processes and takes back all the kernel holds for the lab. Files stay.
    pub(super) fn stop_everything(&self) -> Result<()> {
        let record = Record::read(&self.directory).ok().flatten();
        let known = record.iter().flat_map(|record| {
            record.switch.into_iter().chain(record.nodes.iter().filter_map(|node| node.init))
        });
        let directory = self.directory.as_os_str().as_bytes();
        let found = [machine::SWITCH, machine::INIT, machine::ENTER]
            .map(|command| process::with_arguments(&[command.as_bytes(), directory]));
        for switch in &found[0] {
            // One that has ended meanwhile has taken its cable along. In a user namespace both ends are the
            // user's, and go with the namespaces they are in.
            if let Err(error) = wire::disconnect_host(*switch)
                && switch.is_alive()
                && !rootless::is_inside()
            {
                return Err(error);
            }
        }
        let processes: Vec<Process> = known.chain(found.into_iter().flatten()).collect();
        for process in &processes {
            process.signal(Signal::KILL).with_context(|| format!("cannot kill process {}", process.pid))?;
        }
        let groups = self.groups();
        groups.kill()?;
        for process in &processes {
            if !process.wait(PATIENCE).context("cannot wait for a process to end")? {
                bail!("process {} does not die; look at its state in /proc", process.pid);
            }
        }
        groups.remove()?;
        groups.remove_root();
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let result = if thread::panicking() || std::env::var_os("RSWARM_LAB_KEEP").is_some() {
            eprintln!("the lab's files are kept in {}", self.directory.display());
            self.stop_everything()
        } else {
            self.remove().map(drop)
        };
        if let Err(error) = result {
            eprintln!("the lab \"{}\" was not removed: {error:#}", self.name);
        }
    }
}
