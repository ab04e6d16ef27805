//! A disk in memory for the seeded simulation.

/// What goes wrong, and how often; all zero is a disk that works.
#[derive(Debug, Clone, Default)]
pub struct Faults {}

/// A disk in memory. Clones share it, as restarts of a process share a disk.
#[derive(Debug, Clone)]
pub struct SimulatedDisk {}

impl SimulatedDisk {
    /// An empty disk whose faults replay from `seed`.
    pub fn new(_seed: u64, _faults: Faults) -> Self {
        Self {}
    }

    /// The machine loses power: any subset of the unsynced sectors is lost, all locks are free, old handles are dead.
    pub fn crash(&self) {}

    /// Changes what goes wrong from now on.
    pub fn set_faults(&self, _faults: Faults) {}
}
