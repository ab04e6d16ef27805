//! `floodgate migrate`: production never changes a schema at start.

use clap::Args;

use super::Failure;
use crate::config::Config;
use crate::{engines, stdout};

/// Exactly one of the three.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Migrate {
    /// Print the whole schema as SQL
    #[arg(long)]
    print: bool,
    /// Tell whether the database's schema is the one that this version needs; exit 1 if not
    #[arg(long)]
    check: bool,
    /// Bring the database's schema to this version
    #[arg(long)]
    apply: bool,
}

impl Migrate {
    pub(super) async fn run(self, config: &Config) -> Result<(), Failure> {
        if self.print {
            stdout::print(engines::schema_sql(config))?;
        } else if self.apply {
            let applied = engines::migrate_database(config).await?;
            let applied: Vec<_> = applied.iter().map(u32::to_string).collect();
            let just_now = match applied.as_slice() {
                [] => "nothing was to be done".to_owned(),
                versions => format!("applied just now: version {}", versions.join(", ")),
            };
            let state = engines::check_database(config).await?;
            stdout::line(format_args!("the schema is {state}; {just_now}"))?;
        } else {
            let state = engines::check_database(config).await?;
            if !state.is_usable() {
                return Err(Failure::Failed(format!("the schema is {state}")));
            }
            stdout::line(format_args!("the schema is {state}"))?;
        }
        Ok(())
    }
}
