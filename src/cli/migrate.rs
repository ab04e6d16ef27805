//! `floodgate migrate`: production never changes a schema at start.

use clap::Args;
use order_worker::Database;

use super::Failure;
use crate::config::Config;

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
    pub(super) fn run(self, config: &Config) -> Result<(), Failure> {
        let url = config.orders.database_url.reveal();
        if self.print {
            print!("{}", order_worker::schema_sql());
        } else if self.apply {
            let applied = Database::migrate_sqlite(url)?;
            println!("{}; applied just now: {applied:?}", Database::check_sqlite(url)?);
        } else {
            let state = Database::check_sqlite(url)?;
            if !state.is_usable() {
                return Err(Failure::Failed(format!(
                    "the schema is {state}; run `floodgate migrate --apply`"
                )));
            }
            println!("the schema is {state}");
        }
        Ok(())
    }
}
