//! The ledger's steps in Redis, embedded: see `lua/redis/README.md`.

use std::sync::LazyLock;

/// One step.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) name: &'static str,
    pub(super) code: &'static str,
    /// SHA-1 of the code, in hex, as Redis names it.
    pub(super) sha: String,
}

macro_rules! scripts {
    ($($name:ident = $file:literal),* $(,)?) => {
        $(
            pub(super) static $name: LazyLock<Script> = LazyLock::new(|| {
                let code = include_str!(concat!("../../../../lua/redis/", $file, ".lua"));
                Script { name: $file, code, sha: redis::Script::new(code).get_hash().to_owned() }
            });
        )*

        /// Every step.
        pub(super) fn all() -> impl Iterator<Item = &'static Script> {
            [$(&*$name),*].into_iter()
        }
    };
}

scripts! {
    RESERVE = "reserve",
    RESERVE_ONE = "reserve_one",
    GRANT = "grant",
    SETTLE = "settle",
    STATES = "states",
    PENDING = "pending",
    MINE = "mine",
    SNAPSHOT = "snapshot",
    PUSH_SALE = "push_sale",
    INSTALL = "install",
    RESTORE = "restore",
    OPEN = "open",
    FORGET = "forget",
    ADOPT = "adopt",
    PROBE = "probe",
    RIGHTS = "rights",
    NOW = "now",
    RENEW_LEASE = "renew_lease",
    END_LEASE = "end_lease",
    LEASES = "leases",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_tells_what_it_takes_and_leaves() {
        for script in all() {
            assert!(script.code.starts_with("#!lua"), "{}: needs a shebang", script.name);
            for part in ["-- KEYS ", "-- ARGV ", "-- result ", "-- crash "] {
                assert!(script.code.contains(part), "{}: its header lacks {part:?}", script.name);
            }
            assert_eq!(script.sha.len(), 40);
        }
    }
}
