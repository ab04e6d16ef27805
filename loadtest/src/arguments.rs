//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::crowd::Arrival;

/// Plays a flash sale from outside and audits what it was promised.
///
/// Exit codes: 0 everything held, 1 an invariant broke or the target failed, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "loadtest", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) scenario: Scenario,
}

#[derive(Debug, Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one of it")]
pub(crate) enum Scenario {
    /// One sale, one crowd: passes, the opening, the sell-out, the drain, the audit.
    ///
    /// Without --target it builds floodgate, starts the all-in-one in a temporary directory on free loopback ports and stops it
    /// again. Arrivals are open-loop: nobody waits for anybody else's answer, and latency counts from the moment at which the
    /// button was to be pressed. Of 1,000 users about 150 press twice at once, 80 hang up in mid-request and come again, 50 press
    /// too early, 50 want a second helping, 50 come when everything is gone, 20 ask for more than the limit; bots hammer.
    Spike(SpikeOptions),
    /// Kills the all-in-one at random moments of a spike, restarts it on the same directory, and audits each round.
    ///
    /// Rounds alternate between a fresh sale and a restock of the one before; after every third kill, on average, the next life is killed
    /// in the middle of its recovery too. After the restart every promised order is asked for, and two in three people press once
    /// more with the same pass, which must name the same order; the others' orders must come about without help.
    Crash(CrashOptions),
    /// Measures the server: refusals a second and CPU a refusal, accepted orders a second, latency, memory.
    Bench(BenchOptions),
}

#[derive(Debug, Args)]
pub(crate) struct SpikeOptions {
    /// People in the crowd.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=200_000))]
    pub(crate) users: u32,
    /// Units on offer.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) units: u32,
    /// When the crowd asks for its passes.
    #[arg(long, value_enum, default_value_t = Arrival::Presale)]
    pub(crate) arrival: Arrival,
    /// Buttons are pressed within this time after the opening, in milliseconds.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub(crate) spread_ms: u64,
    /// Scripts that hammer the button, 50 times a second each [default: one per 1,000 users, at least 2].
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub(crate) bots: Option<u32>,
    /// Draws the crowd; printed, so that a run can be repeated [default: random].
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Sockets at most; people beyond that wait in line, which their latency shows.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(crate) connections: u32,

    /// Buyers' address of a running target, http://HOST:PORT; given several times, or as a list with commas, for a target of
    /// several gateways: calls alternate between them. It must not ask image questions: set gate.challenge to "off"; proofs of
    /// work are solved as long as the whole crowd needs at most 2^31 hashes.
    #[arg(long, value_name = "URL", value_delimiter = ',', requires_all = ["database", "jwt_secret_file"], help_heading = "A target of your own")]
    pub(crate) target: Vec<String>,
    /// The target's admin listener: publishes a fresh sale and shows the ledger's side of the audit. Of several gateways name all,
    /// also behind a balancer: the target is at rest when each of them is.
    #[arg(long, value_name = "URL", value_delimiter = ',', requires_all = ["target", "admin_token_file"], help_heading = "A target of your own")]
    pub(crate) admin_url: Vec<String>,
    /// The file of admin.token_file: one for all gateways, or of each its own.
    #[arg(
        long,
        value_name = "FILE",
        value_delimiter = ',',
        requires = "admin_url",
        help_heading = "A target of your own"
    )]
    pub(crate) admin_token_file: Vec<PathBuf>,
    /// The orders database, read for the audit: sqlite://PATH, or mysql://USER:PASSWORD@HOST:PORT/DATABASE if this load tester was
    /// built with --features mysql.
    #[arg(
        long,
        value_name = "URL",
        group = "database",
        requires = "target",
        help_heading = "A target of your own"
    )]
    pub(crate) database_url: Option<String>,
    /// The file of orders.database_url_file, instead of --database-url: a password on the command line shows to everybody.
    #[arg(
        long,
        value_name = "FILE",
        group = "database",
        requires = "target",
        help_heading = "A target of your own"
    )]
    pub(crate) database_url_file: Option<PathBuf>,
    /// The file of auth.hs256_secret, to sign the users' tokens.
    #[arg(long, requires = "target", help_heading = "A target of your own")]
    pub(crate) jwt_secret_file: Option<PathBuf>,
    /// auth.issuer of the target.
    #[arg(long, requires = "target", help_heading = "A target of your own")]
    pub(crate) jwt_issuer: Option<String>,
    /// auth.audience of the target.
    #[arg(long, requires = "target", help_heading = "A target of your own")]
    pub(crate) jwt_audience: Option<String>,
    /// Plays this sale, which nobody else may have bought from, instead of publishing a fresh one; needed without --admin-url.
    #[arg(long, requires = "target", help_heading = "A target of your own")]
    pub(crate) sale: Option<String>,
    /// drain.orders_per_second_max of the target, for the report.
    #[arg(long, requires = "target", help_heading = "A target of your own")]
    pub(crate) drain_limit: Option<u32>,

    #[command(flatten)]
    pub(crate) own: OwnServer,
    /// Writes the report as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Writes the report as one HTML page with charts.
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
}

/// The all-in-one that the load tester starts itself.
#[derive(Debug, Args)]
pub(crate) struct OwnServer {
    /// A floodgate program to start instead of building one.
    #[arg(long, value_name = "PROGRAM", help_heading = "The server that is started")]
    pub(crate) server: Option<PathBuf>,
    /// Runs the server in this new directory and leaves it there: configuration, log, database.
    #[arg(long, value_name = "DIRECTORY", help_heading = "The server that is started")]
    pub(crate) keep: Option<PathBuf>,
    /// drain.orders_per_second_max of the server that is started [default: 2000; crash: 400, so that there is a backlog;
    /// bench: 1000000].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000), help_heading = "The server that is started")]
    pub(crate) orders_per_second_max: Option<u32>,
}

impl OwnServer {
    /// Whether anything is said of it.
    pub(crate) fn is_named(&self) -> bool {
        self.server.is_some() || self.keep.is_some() || self.orders_per_second_max.is_some()
    }
}

/// How a life of the server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Ending {
    /// SIGKILL.
    Kill,
    /// SIGTERM: nobody may be left uncertain.
    Term,
    /// One SIGTERM after every three SIGKILLs.
    Mixed,
}

#[derive(Debug, Args)]
pub(crate) struct CrashOptions {
    /// Rounds: one end and one restart each.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rounds: u32,
    /// Draws crowds and moments; printed, so that a run can be repeated [default: random].
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// How the server ends.
    #[arg(long, value_enum, default_value_t = Ending::Mixed)]
    pub(crate) ending: Ending,
    /// People in each round's crowd.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(10..=50_000))]
    pub(crate) users: u32,
    /// Units added in each round: half of this, this, or three times this, as the seed draws.
    #[arg(long, default_value_t = 800, value_parser = clap::value_parser!(u32).range(2..=1_000_000))]
    pub(crate) units: u32,
    /// Buttons are pressed within this time after the opening, in milliseconds.
    #[arg(long, default_value_t = 1_500, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pub(crate) spread_ms: u64,
    /// Sockets at most.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub(crate) connections: u32,
    #[command(flatten)]
    pub(crate) own: OwnServer,
    /// Writes the rounds as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchOptions {
    /// Refused requests, in all.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    pub(crate) refusals: u64,
    /// Orders accepted at full speed.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub(crate) orders: u32,
    /// Orders a second in the run that measures latency.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) rate: u32,
    /// Connections that are kept busy.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub(crate) connections: u32,
    /// No single measurement takes longer, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub(crate) seconds_max: u64,
    #[command(flatten)]
    pub(crate) own: OwnServer,
    /// Writes the figures as JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn half_a_target_is_wrong_usage() {
        let code =
            |line: &str| Arguments::try_parse_from(line.split(' ')).err().map(|error| error.exit_code());
        assert_eq!(code("loadtest spike --target http://127.0.0.1:1"), Some(2));
        assert_eq!(code("loadtest spike --users 0"), Some(2));
        assert_eq!(code("loadtest spike --arrival never"), Some(2));
        assert_eq!(code("loadtest spike --admin-url http://127.0.0.1:1"), Some(2));
        assert_eq!(code("loadtest spike --users 20000 --units 1000 --arrival at-open"), None);
        let target = "loadtest spike --target http://x --database-url sqlite://o --jwt-secret-file f";
        assert_eq!(code(target), None);
        assert_eq!(
            code(&format!("{target} --target http://y --admin-url http://a,http://b --admin-token-file t")),
            None
        );
    }
}
