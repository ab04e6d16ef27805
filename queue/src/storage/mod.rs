//! Where bytes go: the real disk, or an injected one that loses, fails and lies under a seed.

#[cfg(feature = "simulation")]
pub mod simulated;

/// Which storage a queue stands on.
#[derive(Debug, Clone)]
pub enum Storage {
    /// Files.
    Real,
    /// Memory that outlives the simulated process, with faults.
    #[cfg(feature = "simulation")]
    Simulated(simulated::SimulatedDisk),
}
