//! Reading a log in order, batch by batch, never beyond the sequence that it is told to be durable.

use std::sync::Arc;

use super::files::{LogFiles, Place, corrupt};
use super::format::{Frame, Invalid, decode_frame, decode_frames};
use crate::port::QueueError;

/// A place in a log.
#[derive(Debug)]
pub(crate) struct Reader {
    files: Arc<LogFiles>,
    /// The next sequence to hand out.
    next: u64,
    /// The place behind the batch in `batch`.
    place: Option<Place>,
    /// The batch that was read last.
    batch: Vec<u8>,
    frames: Vec<(u64, usize)>,
    at: usize,
    /// The sequence after the last in `batch`.
    batch_end: u64,
    batch_offset: u64,
}

impl Reader {
    /// Begins with `next`, or with the oldest kept record after it.
    pub(crate) fn new(files: Arc<LogFiles>, next: u64) -> Self {
        Self {
            files,
            next,
            place: None,
            batch: Vec::new(),
            frames: Vec::new(),
            at: 0,
            batch_end: 0,
            batch_offset: 0,
        }
    }

    /// The next sequence that will be handed out, if it is kept.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Goes on with `next`.
    pub(crate) fn seek(&mut self, next: u64) {
        let within = self.frames.first().is_some_and(|(first, _)| *first <= next) && next < self.batch_end;
        if within {
            self.at = self.frames.partition_point(|(sequence, _)| *sequence < next);
        } else if next != self.next || self.at < self.frames.len() {
            self.place = None;
            self.frames.clear();
            self.at = 0;
        }
        self.next = next;
    }

    /// The next record that is not beyond `durable`.
    pub(crate) fn read(&mut self, durable: u64) -> Result<Option<Frame<'_>>, QueueError> {
        while self.at >= self.frames.len() {
            if self.next > durable || !self.load(durable)? {
                return Ok(None);
            }
        }
        let (sequence, at) = self.frames[self.at];
        if sequence > durable {
            return Ok(None);
        }
        let body = self.batch.get(super::format::HEADER_BYTES..).unwrap_or_default();
        match decode_frame(sequence, body, at) {
            Some(frame) => {
                self.at += 1;
                self.next = sequence + 1;
                Ok(Some(frame))
            }
            None => {
                let path = self.place.as_ref().map(|place| place.path.clone()).unwrap_or_default();
                Err(corrupt(&path, self.batch_offset, "a record that does not decode in a sound batch"))
            }
        }
    }

    /// Loads the next batch that holds `next` or a later record; `false` if there is none yet.
    fn load(&mut self, durable: u64) -> Result<bool, QueueError> {
        let mut refreshed = false;
        loop {
            let current = self.files.segment_of(self.next);
            if self.place.as_ref().map(|place| place.segment) != current || current.is_none() {
                self.place = self.files.locate(self.next);
            }
            if let Some(place) = &self.place {
                match self.files.read_batch(place, &mut self.batch)? {
                    Ok(header) => {
                        self.batch_offset = place.offset;
                        self.batch_end = header.next_sequence();
                        let next = Place { offset: place.offset + header.padded_bytes(), ..place.clone() };
                        if header.next_sequence() <= self.next {
                            self.place = Some(next);
                            continue;
                        }
                        let body = self.batch.get(super::format::HEADER_BYTES..).unwrap_or_default();
                        self.frames = decode_frames(&header, body).ok_or_else(|| {
                            corrupt(&place.path, place.offset, "a sound batch whose records do not add up")
                        })?;
                        self.place = Some(next);
                        self.at = self.frames.partition_point(|(sequence, _)| *sequence < self.next);
                        if self.frames.is_empty() {
                            // The oldest kept batch may be one without records.
                            self.next = self.batch_end;
                            if self.next > durable {
                                return Ok(false);
                            }
                            continue;
                        }
                        return Ok(true);
                    }
                    Err(Invalid::Version(found)) => {
                        let supported = super::format::FORMAT_VERSION;
                        return Err(QueueError::OtherVersion { path: place.path.clone(), found, supported });
                    }
                    Err(invalid) if refreshed => {
                        let what = match invalid {
                            Invalid::Damaged(what) => what,
                            _ => "nothing",
                        };
                        let found = format!(
                            "{what} where record {} should be, which is acknowledged (through {durable})",
                            self.next
                        );
                        return Err(corrupt(&place.path, place.offset, found));
                    }
                    Err(_) => {}
                }
            } else if refreshed {
                return Ok(false);
            }
            // Another process may have begun a new segment, or recycled this one.
            self.files.refresh()?;
            self.place = None;
            refreshed = true;
        }
    }
}
