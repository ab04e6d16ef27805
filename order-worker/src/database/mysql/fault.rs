//! What can go wrong in a conversation with the server, and what that means for the whole transaction.

use mysql_async::{DriverError, Error, ServerError};

use crate::database::DatabaseError;
use crate::database::schema::MIGRATE;

/// Why a transaction was not carried out.
#[derive(Debug)]
pub(super) enum Fault {
    /// The caller hears it. Nothing was written.
    Final(DatabaseError),
    /// A deadlock, a lock that was waited for too long, … The server may have undone the statement alone (1205) or all (1213): undo
    /// all, begin anew.
    Again(String),
    /// A row with this key is there. The statement was undone, the transaction lives.
    Duplicate(String),
    /// The connection is of no use any more; whether a COMMIT under way happened is unknown.
    Lost(String),
}

impl From<DatabaseError> for Fault {
    fn from(error: DatabaseError) -> Self {
        Self::Final(error)
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        match error {
            Error::Server(error) => Self::of_server(&error),
            // Larger than the server takes, or than a packet can be: half of the batch may fit.
            Error::Driver(DriverError::PacketTooLarge) => {
                Self::Final(DatabaseError::Record("larger than the server's max_allowed_packet".into()))
            }
            Error::Driver(error @ (DriverError::FromValue { .. } | DriverError::FromRow { .. })) => {
                Self::Final(DatabaseError::Broken(error.to_string()))
            }
            Error::Driver(
                error @ (DriverError::UnknownAuthPlugin { .. }
                | DriverError::MysqlOldPasswordDisabled
                | DriverError::CleartextPluginDisabled
                | DriverError::NoClientSslFlagFromServer
                | DriverError::CantParseServerVersion { .. }),
            ) => Self::Final(DatabaseError::Broken(error.to_string())),
            error => Self::Lost(error.to_string()),
        }
    }
}

impl Fault {
    /// By the numbers that MySQL and MariaDB share, and those that only one has; what is not listed, by its SQLSTATE.
    fn of_server(error: &ServerError) -> Self {
        let text = error.to_string();
        match error.code {
            // Record has changed, error during commit (a cluster's conflict), lock wait timeout, deadlock, table definition changed.
            1020 | 1180 | 1205 | 1213 | 1412 => Self::Again(text),
            // Duplicate key.
            1062 | 1586 => Self::Duplicate(text),
            // Shut down, killed, kicked out for idling: none of these says that the transaction failed for good.
            1053 | 1077 | 1078 | 1079 | 1152 | 1158..=1161 | 1184 | 1317 | 1927 | 3169 | 4031 => {
                Self::Lost(text)
            }
            // Disk full (as 3, 28, 1021, 1026, 1030 or "table is full"), memory, locks, connections, read-only, timeouts, a cluster's
            // node that is not ready.
            3 | 28 | 1021 | 1026 | 1030 | 1036 | 1037 | 1038 | 1040 | 1041 | 1047 | 1114 | 1129 | 1135
            | 1203 | 1206 | 1226 | 1290 | 1637 | 1836 | 1969 | 3024 | 4015 | 4166 => {
                Self::Final(DatabaseError::Unavailable(text))
            }
            // The packet as a whole: half of the batch may fit.
            1153 => Self::Final(DatabaseError::Record(text)),
            // No such table, column, index.
            1054 | 1072 | 1136 | 1146 | 1176 => {
                Self::Final(DatabaseError::Schema(format!("{text}; {MIGRATE}")))
            }
            // NULL, cut off, out of range, no valid text, no default, a CHECK (MySQL, MariaDB), a trigger's SIGNAL.
            1048
            | 1118
            | 1264..=1266
            | 1292
            | 1300
            | 1364
            | 1366
            | 1367
            | 1406
            | 1416
            | 1644
            | 1690
            | 3819
            | 3854
            | 4025 => Self::Final(DatabaseError::Record(text)),
            // READ COMMITTED does not go with binlog_format = STATEMENT.
            1665 => Self::Final(DatabaseError::Broken(format!("{text}; set binlog_format to ROW"))),
            _ => match error.state.get(..2) {
                Some("08") => Self::Lost(text),
                Some("22" | "23") => Self::Final(DatabaseError::Record(text)),
                Some("40") => Self::Again(text),
                Some("53") => Self::Final(DatabaseError::Unavailable(text)),
                _ => Self::Final(DatabaseError::Broken(text)),
            },
        }
    }

    /// What a caller is told who is not served again.
    pub(super) fn into_error(self) -> DatabaseError {
        match self {
            Self::Final(error) => error,
            Self::Again(text) | Self::Duplicate(text) | Self::Lost(text) => DatabaseError::Unavailable(text),
        }
    }

    /// Whether the server has looked at what was to be written, and would not have it so.
    pub(super) fn is_of_the_data(&self) -> bool {
        match self {
            Self::Duplicate(_) => true,
            Self::Final(error) => !error.is_retryable(),
            Self::Again(_) | Self::Lost(_) => false,
        }
    }

    /// Whether the connection may serve the next caller, once rolled back.
    pub(super) fn spares_the_connection(&self) -> bool {
        matches!(self, Self::Again(_)) || self.is_of_the_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: u16, state: &str) -> Fault {
        Fault::of_server(&ServerError { code, message: "as it is".into(), state: state.into() })
    }

    #[test]
    fn a_number_says_what_becomes_of_the_transaction() {
        for code in [1205, 1213, 1020, 1180] {
            assert!(matches!(fault(code, "HY000"), Fault::Again(_)), "{code}");
        }
        for code in [1040, 1290, 1021, 28, 1114, 1030, 1203] {
            assert!(matches!(fault(code, "HY000"), Fault::Final(DatabaseError::Unavailable(_))), "{code}");
        }
        for code in [1406, 1366, 1264, 4025, 3819, 1153] {
            assert!(matches!(fault(code, "HY000"), Fault::Final(DatabaseError::Record(_))), "{code}");
        }
        assert!(matches!(fault(1062, "23000"), Fault::Duplicate(_)));
        assert!(matches!(fault(1927, "70100"), Fault::Lost(_)));
        assert!(matches!(fault(1146, "42S02"), Fault::Final(DatabaseError::Schema(_))));
        assert!(matches!(fault(1142, "42000"), Fault::Final(DatabaseError::Broken(_))));
        assert!(matches!(fault(9_999, "22000"), Fault::Final(DatabaseError::Record(_))));
        assert!(matches!(fault(9_999, "40001"), Fault::Again(_)));
        assert!(matches!(fault(9_999, "HY000"), Fault::Final(DatabaseError::Broken(_))));
    }
}
