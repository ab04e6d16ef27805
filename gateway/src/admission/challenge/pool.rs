//! The pool of pictures: drawn ahead, shared by all askers, slowly rotated. Owns what a picture says and how it looks.
//!
//! Serial numbers count periods of the one clock that the gateways share, and an answer follows from key and serial alone: every
//! gateway with the same secret draws the same answers at the same time, so any of them can serve and judge a question asked by
//! another. Of the window of `size` serials that ends now, the newest eighth is drawn but not asked yet (another gateway's
//! reading of the clock may be a little behind), the oldest quarter is no longer asked but still served: its last questions are being answered.

use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use captcha::filters::{Cow, Noise, Wave};
use captcha::{Captcha, Geometry};
use parking_lot::Mutex;

use super::token::{Key, mac};

/// Characters of an answer.
pub(super) const ANSWER_LENGTH: usize = 5;
/// What the renderer draws. Left out: whatever resembles another (0 O, 1 I L, 2 Z, 5 S, 8 B, U V, G C, g q 9, r n).
const GLYPHS: [char; 31] = [
    '3', '4', '6', '7', '9', 'A', 'C', 'D', 'E', 'F', 'H', 'J', 'K', 'M', 'N', 'P', 'R', 'T', 'W', 'X', 'Y',
    'a', 'd', 'e', 'h', 'k', 'm', 't', 'w', 'x', 'y',
];
/// Pixels.
const WIDTH: u32 = 240;
const HEIGHT: u32 = 96;
/// The renderer's canvas is 400 × 300 pixels, and writing starts 100 from the left at half height.
const CANVAS_WIDTH: u32 = 400;
const INK: [u8; 3] = [16, 62, 76];

struct Picture {
    serial: u64,
    png: Bytes,
}

/// Pictures of the current window, ordered by serial.
pub(super) struct Pool {
    size: u64,
    period_ms: u64,
    pictures: ArcSwap<Vec<Picture>>,
    /// Held while one is drawn: readers never wait.
    drawing: Mutex<()>,
}

impl Pool {
    /// A question asked at the end of its picture's asking time still has `ttl_ms` to be looked at.
    pub(super) fn new(size: usize, ttl_ms: u64) -> Self {
        let size = (size as u64).max(16);
        let period_ms = ttl_ms.div_ceil(size / 4).max(1);
        Self { size, period_ms, pictures: ArcSwap::default(), drawing: Mutex::new(()) }
    }

    pub(super) fn period_ms(&self) -> u64 {
        self.period_ms
    }

    pub(super) fn len(&self) -> usize {
        self.pictures.load().len()
    }

    /// First and last serial that may be asked now.
    fn asked(&self, now_ms: u64) -> (u64, u64) {
        let newest = now_ms / self.period_ms;
        (newest.saturating_sub(self.size - self.size / 4 - 1), newest.saturating_sub(self.size / 8))
    }

    /// The serial of a picture to ask about. Where none of those in question is drawn, the newest one there is.
    pub(super) fn pick(&self, now_ms: u64, random: u64) -> Option<u64> {
        let pictures = self.pictures.load();
        let (first, last) = self.asked(now_ms);
        let from = pictures.partition_point(|picture| picture.serial < first);
        let to = pictures.partition_point(|picture| picture.serial <= last);
        match (to - from) as u64 {
            0 => pictures.last().map(|picture| picture.serial),
            count => Some(pictures[from + (random % count) as usize].serial),
        }
    }

    pub(super) fn png(&self, serial: u64) -> Option<Bytes> {
        let pictures = self.pictures.load();
        let place = pictures.binary_search_by_key(&serial, |picture| picture.serial).ok()?;
        Some(pictures[place].png.clone())
    }

    /// Draws the most wanted missing picture and forgets those that left the window. True while more are missing.
    pub(super) fn step(&self, key: &Key, now_ms: u64) -> bool {
        let _drawing = self.drawing.lock();
        let pictures = self.pictures.load_full();
        let newest = now_ms / self.period_ms;
        let oldest = newest.saturating_sub(self.size - 1);
        let (first, last) = self.asked(now_ms);
        let missing = |serial: &u64| pictures.binary_search_by_key(serial, |picture| picture.serial).is_err();
        // The ones to be asked longest come first, then those of the near future, then those still being answered.
        let wanted = (first..=last).rev().chain(last + 1..=newest).chain((oldest..first).rev());
        let mut wanted = wanted.filter(missing);
        let Some(serial) = wanted.next() else { return false };
        let more = wanted.next().is_some();
        let Some(png) = draw(key, serial) else { return false };
        let kept = pictures.iter().filter(|picture| (oldest..=newest).contains(&picture.serial));
        let mut next: Vec<Picture> =
            kept.map(|picture| Picture { serial: picture.serial, png: picture.png.clone() }).collect();
        next.insert(next.partition_point(|picture| picture.serial < serial), Picture { serial, png });
        self.pictures.store(Arc::new(next));
        more
    }
}

/// The characters drawn for a serial.
fn glyphs(key: &Key, serial: u64) -> [char; ANSWER_LENGTH] {
    let bytes = mac(key, &[b"glyphs", &serial.to_be_bytes()]);
    // Two bytes a character: no glyph is favoured by more than one in two thousand.
    std::array::from_fn(|i| {
        let number = u16::from_be_bytes([bytes[2 * i], bytes[2 * i + 1]]);
        GLYPHS[usize::from(number) % GLYPHS.len()]
    })
}

/// What has to be typed for a serial, as [`normalise`] leaves it.
pub(super) fn answer(key: &Key, serial: u64) -> String {
    glyphs(key, serial).iter().map(char::to_ascii_uppercase).collect()
}

/// Case and blanks do not matter, nor does the width of letters typed in an input method for Chinese.
pub(super) fn normalise(typed: &str) -> String {
    let narrow = |c: char| match u32::from(c) {
        wide @ 0xFF01..=0xFF5E => char::from_u32(wide - 0xFEE0).unwrap_or(c),
        _ => c,
    };
    // One more than needed, so that a longer text stays wrong however long it is.
    typed
        .chars()
        .map(narrow)
        .filter(|c| !c.is_whitespace())
        .take(ANSWER_LENGTH + 1)
        .flat_map(char::to_uppercase)
        .collect()
}

/// Shape follows from key and serial; the speckles are the renderer's own chance.
fn draw(key: &Key, serial: u64) -> Option<Bytes> {
    let shape = mac(key, &[b"shape", &serial.to_be_bytes()]);
    let between = |byte: u8, low: f64, high: f64| low + f64::from(byte) / 255.0 * (high - low);
    let mut picture = Captcha::new();
    for glyph in glyphs(key, serial) {
        picture.set_chars(&[glyph]).add_char();
    }
    let text = picture.text_area();
    let centre = (text.left + text.right) / 2;
    let left = centre.saturating_sub(WIDTH / 2).min(CANVAS_WIDTH - WIDTH);
    let top = ((text.top + text.bottom) / 2).saturating_sub(HEIGHT / 2);
    picture
        .apply_filter(Wave::new(between(shape[0], 1.0, 2.4), between(shape[1], 6.0, 13.0)).horizontal())
        .apply_filter(Wave::new(between(shape[2], 1.0, 2.4), between(shape[3], 6.0, 13.0)).vertical())
        .extract(Geometry::new(left, left + WIDTH, top, top + HEIGHT))
        .apply_filter(Cow::new().min_radius(14).max_radius(26).circles(1).area(Geometry::new(
            50,
            WIDTH - 50,
            28,
            HEIGHT - 28,
        )))
        .apply_filter(Noise::new(0.025))
        .set_color(INK);
    picture.as_png().map(Bytes::from)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "in a test a panic is the report")]
mod tests {
    use super::{ANSWER_LENGTH, Pool, answer, normalise};

    const KEY: [u8; 32] = [9; 32];
    const NOW_MS: u64 = 1_800_000_000_000;

    #[test]
    fn the_pool_fills_rotates_and_stays_bounded() {
        let pool = Pool::new(16, 120_000);
        let mut steps = 1;
        while pool.step(&KEY, NOW_MS) {
            steps += 1;
        }
        assert_eq!((steps, pool.len()), (16, 16));
        let asked = pool.pick(NOW_MS, 5).unwrap();
        let later = NOW_MS + 120_000;
        while pool.step(&KEY, later) {}
        assert_eq!(pool.len(), 16);
        assert!(pool.png(asked).is_some(), "a question asked just now can be looked at for all its life");
        while pool.step(&KEY, later + 480_000) {}
        assert_eq!(pool.len(), 16);
        assert!(pool.png(asked).is_none());
    }

    #[test]
    fn after_a_gap_something_is_still_asked() {
        let pool = Pool::new(16, 120_000);
        assert_eq!(pool.pick(NOW_MS, 1), None);
        pool.step(&KEY, NOW_MS);
        assert!(pool.pick(NOW_MS + 1_000_000_000, 1).is_some());
    }

    #[test]
    fn answers_follow_from_key_and_serial() {
        assert_eq!(answer(&KEY, 1), answer(&KEY, 1));
        assert_ne!(answer(&KEY, 1), answer(&KEY, 2));
        assert_ne!(answer(&KEY, 1), answer(&[8; 32], 1));
        assert_eq!(answer(&KEY, 1).len(), ANSWER_LENGTH);
    }

    #[test]
    fn what_is_typed_is_read_kindly() {
        assert_eq!(normalise(" a7 kＭx\n"), "A7KMX");
        assert_eq!(normalise("a7kmxyyyyyyyy"), "A7KMXY");
    }
}
