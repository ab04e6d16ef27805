//! Who comes to the sale, how they behave and when they press: drawn from a seed before the first request.

use std::net::Ipv4Addr;
use std::time::Duration;

use clap::ValueEnum;

use crate::random::Random;

/// When the crowd asks for its passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arrival {
    /// Before the opening, as on a page that counts down; only the button is pressed at the opening.
    Presale,
    /// At the opening: everybody asks for a pass and then presses.
    AtOpen,
}

impl Arrival {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Presale => "presale",
            Self::AtOpen => "at-open",
        }
    }
}

/// How one simulated person behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Presses once.
    Plain,
    /// Presses twice at nearly the same moment, with the same pass.
    DoublePress,
    /// Loses the network in mid-request, then asks for the order and presses again.
    HangUp,
    /// Presses before the opening and again when told.
    Impatient,
    /// Having won, gets another pass and presses again.
    SecondHelping,
    /// Asks for more than the limit, and then for one.
    Greedy,
    /// Comes when everything is gone.
    Late,
    /// A script that hammers the button with one true pass.
    BotWithPass,
    /// A script that hammers the button with a forged pass.
    BotForging,
}

impl Role {
    /// Whether this person wants a unit from the opening on, and so counts as demand.
    pub(crate) fn is_demand(self) -> bool {
        matches!(self, Self::Plain | Self::DoublePress | Self::HangUp | Self::Impatient | Self::SecondHelping)
    }

    pub(crate) fn is_bot(self) -> bool {
        matches!(self, Self::BotWithPass | Self::BotForging)
    }
}

/// Shares of a thousand users; what is left is [`Role::Plain`].
const SHARES: [(u64, Role); 6] = [
    (150, Role::DoublePress),
    (80, Role::HangUp),
    (50, Role::Impatient),
    (50, Role::SecondHelping),
    (20, Role::Greedy),
    (50, Role::Late),
];

/// One person of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Person {
    /// The `sub` of the token and the `user_id` of the row.
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) role: Role,
    /// When a presale pass is asked for, counted from the start of the plan.
    pub(crate) pass_after: Duration,
    /// When the button is pressed, counted from the opening (from the sell-out for [`Role::Late`]).
    pub(crate) press_after: Duration,
    /// Seeds what the person decides on the way.
    pub(crate) lane: u64,
}

/// How a crowd is drawn.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Told apart in names and lanes from other crowds of the same seed.
    pub(crate) round: u32,
    pub(crate) users: u32,
    pub(crate) bots: u32,
    /// Passes are asked for in this time.
    pub(crate) presale: Duration,
    /// Buttons are pressed in this time after the opening.
    pub(crate) spread: Duration,
}

impl Plan {
    /// The crowd: `users` people, then `bots` scripts.
    pub(crate) fn draw(&self) -> Vec<Person> {
        (0..self.users + self.bots).map(|index| self.person(index)).collect()
    }

    fn person(&self, index: u32) -> Person {
        let lane = u64::from(self.round) << 32 | u64::from(index);
        let mut random = Random::new(self.seed, lane);
        let role = match index.checked_sub(self.users) {
            Some(bot) if bot % 2 == 0 => Role::BotWithPass,
            Some(_) => Role::BotForging,
            None => role(random.below(1000)),
        };
        let pass_after = micros_below(&mut random, self.presale);
        let press_after = match role {
            // Impatience is at most half a second; it is taken off the opening by whoever plays the person.
            Role::Impatient => micros_below(&mut random, Duration::from_millis(500)),
            _ => micros_below(&mut random, self.spread),
        };
        // 10.0.0.0/8 is never a real client's: every person has an address of its own, as behind a proxy.
        let address = Ipv4Addr::from(0x0A00_0000 | (index & 0x00FF_FFFF));
        Person {
            name: format!("u-{:x}-{}-{index}", self.seed, self.round),
            address,
            role,
            pass_after,
            press_after,
            lane,
        }
    }
}

fn role(mut drawn: u64) -> Role {
    for (share, role) in SHARES {
        if drawn < share {
            return role;
        }
        drawn -= share;
    }
    Role::Plain
}

fn micros_below(random: &mut Random, bound: Duration) -> Duration {
    Duration::from_micros(random.below(bound.as_micros() as u64))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn plan() -> Plan {
        Plan {
            seed: 42,
            round: 0,
            users: 10_000,
            bots: 4,
            presale: Duration::from_secs(5),
            spread: Duration::from_secs(1),
        }
    }

    #[test]
    fn the_same_seed_draws_the_same_crowd() {
        assert_eq!(plan().draw(), plan().draw());
        assert_ne!(plan().draw(), Plan { seed: 43, ..plan() }.draw());
        let round = Plan { round: 1, ..plan() }.draw();
        assert_ne!(plan().draw()[0].name, round[0].name, "a continuing sale gets new people");
    }

    #[test]
    fn everybody_differs_and_stays_within_the_window() {
        let crowd = plan().draw();
        assert_eq!(crowd.len(), 10_004);
        assert_eq!(crowd.iter().map(|person| &person.name).collect::<BTreeSet<_>>().len(), crowd.len());
        assert_eq!(crowd.iter().map(|person| person.address).collect::<BTreeSet<_>>().len(), crowd.len());
        assert!(crowd.iter().all(|person| person.press_after < Duration::from_secs(1)));
        assert!(crowd.iter().all(|person| person.pass_after < Duration::from_secs(5)));
        assert!(crowd.iter().any(|person| person.press_after > Duration::from_millis(900)));
    }

    #[test]
    fn roles_come_in_their_shares() {
        let mut counts = BTreeMap::new();
        for person in plan().draw() {
            *counts.entry(person.role).or_insert(0u32) += 1;
        }
        assert_eq!((counts[&Role::BotWithPass], counts[&Role::BotForging]), (2, 2));
        for (share, role) in SHARES {
            let expected = share as u32 * 10;
            assert!(counts[&role].abs_diff(expected) < expected / 3, "{role:?}: {}", counts[&role]);
        }
        assert!(counts[&Role::Plain] > 5_500);
    }
}
