//! An operator's slip: a process is started over another deployment's orders database, which must not get its log.

use order_worker::Database;
use order_worker::membership::tie::{TieError, tie};
use queue::Queue;
use stock::DeploymentId;

use crate::census::STARTED_ELSEWHERE;
use crate::world::World;

/// The start over another deployment's orders database; answers with why it came to nothing.
pub(crate) async fn start(world: &World, queue: &Queue, candidate: DeploymentId) -> Result<String, String> {
    let database = Database::over_connection(world.elsewhere.clone(), world.now.clone())
        .map_err(|error| error.to_string())?;
    let theirs = database.deployment(candidate).await.map_err(|error| error.to_string())?;
    match tie(queue, &database, theirs, "elsewhere").await {
        Err(TieError::Misfit(misfit)) => {
            world.census.saw(STARTED_ELSEWHERE);
            Ok(format!("started over another orders database: the log {misfit}"))
        }
        Err(error) => Err(error.to_string()),
        Ok(opening) => panic!("the log was opened for another orders database: {opening}"),
    }
}
