//! The command line: one file a command. What commands share is the set-up (`production.rs`) and the programs that it runs
//! (`programs.rs`).

mod buyer;
mod figures;
mod production;
mod programs;
mod round;
mod spike;
mod up;

use clap::{Parser, Subcommand};
use testbed::Error;

/// Starts the real servers that Floodgate stands on, with temporary data, on loopback ports.
///
/// Exit codes: 0 good, 1 failed, 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "testbed", version)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Do,
}

#[derive(Debug, Subcommand)]
enum Do {
    /// The production set-up on this machine: Redis, ZooKeeper, MariaDB, gateways, workers, and nginx in front
    ///
    /// Builds floodgate with all adapters unless --server names one, starts everything with a fresh sale that opens 20 s later,
    /// and prints where everything is, with process numbers and the commands that look at it. Kill what you like and watch: the
    /// rest runs on. Ctrl-C ends everything and removes all data. The servers come from Debian's packages, which `./test`
    /// installs and names in its --help.
    Up(up::Up),
    /// A crowd at the production set-up, while one of its parts is killed; audited before, during and after
    ///
    /// For each strike: brings a fresh set-up up (2 gateways, 2 workers, Redis, ZooKeeper, MariaDB, nginx in front) on free
    /// ports, lets loadtest's crowd in through nginx, strikes as soon as the gateways count accepted orders, starts what was
    /// killed again 0.5 s later, and waits for loadtest's verdict. `floodgate audit` runs before the crowd comes, once buyers
    /// are sold units again, and at the end: exit code 0 each time, or the line is bad. Prints a table, a line each strike, and
    /// exits 1 if one of them is bad.
    ///
    /// "sells again" is when a buyer who presses after the strike, through nginx, has a 202; "at rest" is when nothing is
    /// pending or in a log, both in seconds since the strike. About a minute a strike with 50,000 users; the release programs
    /// are built first unless they are named.
    Spike(spike::Spike),
    /// Figures of this build that once were bad: what a backlog costs, who gets in, what runs when nothing happens
    ///
    /// Starts Redis, ZooKeeper and MariaDB and for each figure gateways and workers of its own; prints a line a figure, on standard
    /// output, and judges none of them. About 20 minutes with the default sizes, on a machine that does nothing else; the release
    /// program is built first unless --server names one.
    Figures(figures::Figures),
}

impl Arguments {
    /// True when everything that must hold held.
    pub(crate) fn run(&self) -> Result<bool, Error> {
        match &self.command {
            Do::Up(options) => up::run(options).map(|()| true),
            Do::Spike(options) => spike::run(options),
            Do::Figures(options) => figures::run(options),
        }
    }
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
    fn wrong_usage_is_told_apart() {
        let code =
            |line: &str| Arguments::try_parse_from(line.split(' ')).err().map(|error| error.exit_code());
        assert_eq!(code("testbed up --restart --gateways 3"), None);
        assert_eq!(code("testbed spike"), None);
        assert_eq!(code("testbed figures --only idle,epochs --sales 100 --unpaid-sales 0"), None);
        assert_eq!(code("testbed spike --users 300 --units 20 --strike redis,flushall"), None);
        for wrong in [
            "up --gateways 0",
            "spike --users 0",
            "spike --units 0",
            "spike --strike everything",
            "figures --only all",
        ] {
            assert_eq!(code(&format!("testbed {wrong}")), Some(2), "{wrong}");
        }
    }
}
