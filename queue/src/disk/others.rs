//! Groups that other processes hold, as their files say: how far each is, and which there are. For the owner's upkeep.
//!
//! A group that has not moved for a while costs a look at four files' times and lengths, not their contents. A file's time moves in ticks of
//! the kernel's clock, so that two writes may leave the same one: times count only once they are well past. Where a segment is
//! about to go, everything is read.

use std::time::{Duration, SystemTime};

use super::shared::{GROUP_FILES, TopicShared};
use crate::storage::FileStamp;

/// Older than this a file's time is of its last write.
const SETTLED_AFTER: Duration = Duration::from_secs(1);

/// How a look goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// What has not moved may be as remembered.
    Quick,
    /// Whatever is remembered, and durable: records go by it.
    Whole,
}

impl TopicShared {
    /// Learns what a segment may go by: how far each group is for certain, whatever a crash of the machine takes. Answers whether all
    /// could be read: no segment may go by an older look.
    pub(crate) fn settle_groups(&self) -> bool {
        if self.storage().is_real() && self.read_groups(Look::Whole).is_none() {
            return false;
        }
        let cut: Vec<String> = {
            let groups = self.groups.lock();
            let cut = groups.iter().filter(|(_, standing)| standing.cut > standing.low);
            cut.map(|(name, _)| name.clone()).collect()
        };
        // It was read from the page cache alone if a crash, or an error, came before its directory's sync.
        cut.iter().all(|name| self.limit_files(name).sync().is_ok())
    }

    /// Learns how far groups are that other processes hold, how far they may be behind, and which are gone. Answers how many had to be
    /// read; `None`: not all could be, and no segment may go by an older look.
    pub(crate) fn read_groups(&self, look: Look) -> Option<usize> {
        let names = self.group_names().ok()?;
        let is_there = |name: &String| names.binary_search(name).is_ok();
        // One that is held here is there, whatever the list says.
        self.groups.lock().retain(|name, known| known.held || is_there(name));
        self.stamps.lock().retain(|name, _| is_there(name));
        let (mut read, mut all) = (0, true);
        for name in &names {
            let known = self.groups.lock().get(name).copied();
            if known.is_some_and(|known| known.held) {
                continue;
            }
            // Before the contents: what is written in between is read again next time.
            let stamps = self.settled_stamps(name);
            if look == Look::Quick
                && known.is_some()
                && stamps.is_some()
                && self.stamps.lock().get(name) == stamps.as_ref()
            {
                continue;
            }
            read += 1;
            let standing = if look == Look::Whole { self.settled(name) } else { self.stored(name) };
            let Ok(standing) = standing else {
                all = false;
                continue;
            };
            match stamps {
                Some(stamps) => _ = self.stamps.lock().insert(name.clone(), stamps),
                None => _ = self.stamps.lock().remove(name),
            }
            let mut groups = self.groups.lock();
            // A holder that has begun meanwhile knows better.
            if groups.get(name).is_none_or(|known| !known.held) {
                groups.insert(name.clone(), standing);
            }
        }
        all.then_some(read)
    }

    /// None if a write could leave the files' times as they are.
    fn settled_stamps(&self, name: &str) -> Option<[Option<FileStamp>; GROUP_FILES.len()]> {
        let directory = self.group_directory(name);
        let now = SystemTime::now();
        let mut stamps = [None; GROUP_FILES.len()];
        for (stamp, file) in stamps.iter_mut().zip(GROUP_FILES) {
            *stamp = self.storage().stamp(&directory.join(file)).ok()?;
            let is_settled =
                |stamp: &FileStamp| now.duration_since(stamp.modified).is_ok_and(|age| age >= SETTLED_AFTER);
            if !stamp.as_ref().is_none_or(is_settled) {
                return None;
            }
        }
        Some(stamps)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;
    use std::sync::Arc;

    use futures_util::FutureExt;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::disk::DiskOptions;
    use crate::{Queue, StartAt, Topic};

    /// Written a minute ago, as far as its files say.
    fn age(group: &Path) {
        for file in ["offset.0", "offset.1"] {
            let file = File::options().write(true).open(group.join(file)).expect("a file");
            file.set_modified(SystemTime::now() - Duration::from_secs(60)).expect("a time");
        }
    }

    #[test]
    fn what_has_not_moved_is_not_read_and_what_is_gone_is_forgotten() {
        let directory = tempfile::tempdir().expect("a directory");
        let options = || DiskOptions::new(directory.path(), Arc::new(|| 1));
        let owner = Queue::open_disk(options(), &mut Registry::default()).expect("a queue");
        let Topic::Disk(own) = owner.topic("orders").now_or_never().expect("no wait").expect("a topic");
        let other = Queue::attach_disk(options()).expect("attached");
        let topic = other.topic("orders").now_or_never().expect("no wait").expect("a topic");
        drop(topic.group("theirs", StartAt::Oldest).now_or_never().expect("no wait").expect("a group"));
        let files = own.shared.group_directory("theirs");

        assert_eq!(own.shared.read_groups(Look::Quick), Some(1), "written a moment ago");
        assert_eq!(own.shared.read_groups(Look::Quick), Some(1), "a second write could have the same time");
        age(&files);
        assert_eq!(own.shared.read_groups(Look::Quick), Some(1));
        assert_eq!(own.shared.read_groups(Look::Quick), Some(0));
        assert_eq!(own.shared.read_groups(Look::Whole), Some(1));
        std::fs::write(files.join("behind-max"), b"damaged").expect("written");
        assert_eq!(own.shared.read_groups(Look::Quick), None);
        std::fs::remove_file(files.join("behind-max")).expect("removed");
        assert_eq!(own.shared.read_groups(Look::Quick), Some(0), "as it was");

        topic.drop_group("theirs").now_or_never().expect("no wait").expect("dropped");
        assert_eq!(own.shared.read_groups(Look::Quick), Some(0));
        assert!(own.shared.groups.lock().is_empty(), "a group that is gone holds nothing back");
    }
}
