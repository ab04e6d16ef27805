//! The files that say whose a directory is: the queue's, with the deployment that it is tied to, and each topic's. Knows no record.

use std::path::Path;

use super::files::{corrupt, io};
use super::format::{FORMAT_VERSION, read_u32, read_u64};
use super::options::DiskOptions;
use super::probe::probe;
use crate::port::{Opening, QueueError, Tie};
use crate::storage::{Storage, SyncMethod};

const QUEUE_MAGIC: &[u8; 8] = b"FLGQUEUE";
pub(super) const TOPIC_MAGIC: &[u8; 8] = b"FLGTOPIC";
/// Magic, version, sync method, CRC32C, id.
const IDENTITY_BYTES: usize = 24;
/// Behind it, where the log is tied: deployment, generation, nonce.
const TIED_BYTES: usize = IDENTITY_BYTES + 32;

/// What an identity file says.
pub(super) struct Identity {
    pub(super) id: u64,
    pub(super) method: SyncMethod,
    /// Of a queue's alone.
    pub(super) tie: Option<Tie>,
}

pub(super) fn write_identity(
    storage: &Storage,
    path: &Path,
    magic: &[u8; 8],
    identity: &Identity,
) -> Result<(), QueueError> {
    let mut bytes = vec![0; if identity.tie.is_some() { TIED_BYTES } else { IDENTITY_BYTES }];
    bytes[..8].copy_from_slice(magic);
    bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[10] = u8::from(identity.method == SyncMethod::DirectWrite);
    bytes[16..24].copy_from_slice(&identity.id.to_le_bytes());
    if let Some(Tie { deployment, opening }) = identity.tie {
        bytes[24..40].copy_from_slice(&deployment.to_le_bytes());
        bytes[40..48].copy_from_slice(&opening.generation.to_le_bytes());
        bytes[48..56].copy_from_slice(&opening.nonce.to_le_bytes());
    }
    let crc = crc32c::crc32c(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    storage.replace(path, &bytes).map_err(io("write", path))
}

pub(super) fn read_identity(
    storage: &Storage,
    path: &Path,
    magic: &[u8; 8],
) -> Result<Option<Identity>, QueueError> {
    if !storage.exists(path).map_err(io("look for", path))? {
        return Ok(None);
    }
    let bytes = storage.read(path).map_err(io("read", path))?;
    if bytes.len() < IDENTITY_BYTES || &bytes[..8] != magic {
        let found = String::from("its identity file is of something else");
        return Err(QueueError::Foreign { path: path.to_path_buf(), found });
    }
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &[0; 4]);
    if crc32c::crc32c_append(crc, &bytes[16..]) != read_u32(&bytes, 12) {
        return Err(corrupt(path, 0, "an identity whose checksum does not match"));
    }
    let found = u16::from_le_bytes([bytes[8], bytes[9]]);
    if found != FORMAT_VERSION {
        return Err(QueueError::OtherVersion { path: path.to_path_buf(), found, supported: FORMAT_VERSION });
    }
    let method = if bytes[10] == 1 { SyncMethod::DirectWrite } else { SyncMethod::DataSync };
    let tie = (bytes.len() == TIED_BYTES).then(|| Tie {
        deployment: u128::from(read_u64(&bytes, 32)) << 64 | u128::from(read_u64(&bytes, 24)),
        opening: Opening { generation: read_u64(&bytes, 40), nonce: read_u64(&bytes, 48) },
    });
    Ok(Some(Identity { id: read_u64(&bytes, 16), method, tie }))
}

/// The directory's identity; made, with the sync method that this disk is faster with, in an empty directory.
pub(super) fn identify_queue(options: &DiskOptions) -> Result<Identity, QueueError> {
    let (storage, directory) = (&options.storage, options.directory.as_path());
    let path = directory.join("floodgate-queue");
    if let Some(identity) = read_identity(storage, &path, QUEUE_MAGIC)? {
        return Ok(identity);
    }
    let names = storage.list(directory).map_err(io("list", directory))?;
    if let Some(other) = names.iter().find(|name| *name != "lock" && !name.ends_with(".draft")) {
        let found = format!("it has no identity file but holds {other:?}");
        return Err(QueueError::Foreign { path: directory.to_path_buf(), found });
    }
    let method = match options.sync {
        Some(method) => method,
        None => probe(storage, directory)?.method,
    };
    let identity = Identity { id: (options.random)(), method, tie: None };
    write_identity(storage, &path, QUEUE_MAGIC, &identity)?;
    Ok(identity)
}

/// To whom the directory belongs, as its file says now: the owner may have tied it since it was opened or attached to.
pub(super) fn read_tie(options: &DiskOptions) -> Result<Option<Tie>, QueueError> {
    identify_foreign(options).map(|identity| identity.tie)
}

/// Writes to whom the directory belongs. To be called by who holds its lock: nobody else writes this file.
///
/// A crash leaves the file as it was or as it is wanted, never a part: it is replaced as a whole.
pub(super) fn write_tie(options: &DiskOptions, tie: Tie) -> Result<(), QueueError> {
    let identity = Identity { tie: Some(tie), ..identify_foreign(options)? };
    write_identity(&options.storage, &options.directory.join("floodgate-queue"), QUEUE_MAGIC, &identity)
}

/// The identity of a directory that somebody else made.
pub(super) fn identify_foreign(options: &DiskOptions) -> Result<Identity, QueueError> {
    let path = options.directory.join("floodgate-queue");
    read_identity(&options.storage, &path, QUEUE_MAGIC)?.ok_or_else(|| QueueError::Io {
        doing: "attach to",
        path: options.directory.clone(),
        source: std::io::Error::new(std::io::ErrorKind::NotFound, "nobody has made a queue there yet"),
    })
}
