//! What tests change of an ordinary gateway and its sale.

use std::sync::Arc;

use gateway::config::{
    AuthConfig, ChallengeKind, GateConfig, GatewayConfig, LimitsConfig, PassSecret, Secret,
};
use queue::Storage;
use stock::{Ledger, SaleDefinition};

use super::{JWT_SECRET, SALE, now_ms, sale};

/// What a test changes of an ordinary sale and gateway.
pub struct Options {
    pub gateway: GatewayConfig,
    pub auth: AuthConfig,
    pub gate: GateConfig,
    pub limits: LimitsConfig,
    pub sale: SaleDefinition,
    pub backlog_max: u64,
    pub segment_bytes: u64,
    pub ring_bytes: usize,
    pub storage: Storage,
    /// Instead of an embedded one that goes by the wall clock.
    pub ledger: Option<Ledger>,
    /// The process's wall clock.
    pub wall: stock::Now,
}

impl Default for Options {
    fn default() -> Self {
        let key = |id: &str| Some(Secret::new(id.repeat(32)));
        let secret = |id: &str| PassSecret { id: id.into(), secret: key(id), secret_file: None };
        Self {
            gateway: GatewayConfig {
                listen: ([127, 0, 0, 1], 0).into(),
                threads: 2,
                shutdown_max_s: 5,
                ..GatewayConfig::default()
            },
            auth: AuthConfig {
                hs256_secret: Some(Secret::new(JWT_SECRET)),
                demo: true,
                ..AuthConfig::default()
            },
            gate: GateConfig {
                challenge: ChallengeKind::Off,
                pass_secrets: vec![secret("k2"), secret("k1")],
                ..GateConfig::default()
            },
            limits: LimitsConfig { per_user_rps: 0, ..LimitsConfig::default() },
            sale: sale(SALE),
            backlog_max: 1_000_000,
            segment_bytes: 4 << 20,
            ring_bytes: 8 << 20,
            storage: Storage::Real,
            ledger: None,
            wall: Arc::new(now_ms),
        }
    }
}
