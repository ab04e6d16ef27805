//! Named places between two steps of the protocol at which a seeded simulation may crash the process or fail the step.
//!
//! Without the feature `simulation` a failpoint is nothing: [`hit`] is a constant `false` and is compiled away.

#[cfg(feature = "simulation")]
use std::cell::RefCell;

/// What a hook panics with to crash the simulated process at a failpoint.
#[cfg(feature = "simulation")]
#[derive(Debug, Clone, Copy)]
pub struct Crash(pub &'static str);

#[cfg(feature = "simulation")]
type Hook = Box<dyn FnMut(&'static str) -> bool>;

#[cfg(feature = "simulation")]
thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Installs this thread's hook, or removes it. The hook may panic with [`Crash`]; `true` fails the step.
#[cfg(feature = "simulation")]
pub fn set_hook(hook: Option<Hook>) {
    HOOK.with(|cell| *cell.borrow_mut() = hook);
}

/// Passes the named place. `true` means that the step behind it has to fail as the world would make it fail.
#[cfg(feature = "simulation")]
pub fn hit(name: &'static str) -> bool {
    HOOK.with(|cell| cell.borrow_mut().as_mut().is_some_and(|hook| hook(name)))
}

/// Passes the named place: nothing outside the simulation.
#[cfg(not(feature = "simulation"))]
#[inline(always)]
pub fn hit(_name: &'static str) -> bool {
    false
}
