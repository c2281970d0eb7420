//! The content of a lock file: the last grant, with its token and its holder, and whether it was released.
//!
//! A grant is a line of text with a checksum, padded with NULs to the length of [`SLOT`]. After the slot comes the token
//! of the last released grant, and then the lock's name. A line that was damaged by a power loss is ignored: the next
//! token then comes from the clock, as after a loss of the file, but is larger than the token after the slot.

use std::io::Write;

use portalock_core::{FencingToken, Holder, LockName, Mode, OwnerId};

/// The length of a written grant.
pub(crate) const SLOT: usize = 512;
/// The position of the last released token.
const MARK_AT: usize = SLOT;
/// The position of the lock's name.
const NAME_AT: usize = MARK_AT + MARK;
/// The length of a record with the longest name.
pub(crate) const LONGEST: usize = NAME_AT + LockName::MAX_BYTES + 1;

const MARK: usize = 32;
const MAGIC: &str = "portalock 1 ";
/// The position of the checksummed text: after the checksum and a space.
const BODY_AT: usize = MAGIC.len() + 17;
/// A token's length.
const DIGITS: usize = 20;
/// The longest host name and label in a slot, in characters.
const LONGEST_TEXT: usize = 120;

/// One grant, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) token: FencingToken,
    pub(crate) mode: Mode,
    pub(crate) owner: OwnerId,
    pub(crate) holder: Holder,
}

/// The whole content of a lock file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Record {
    /// The newest grant.
    pub(crate) last: Option<Entry>,
    /// Whether there is a grant that can't be read: it is being written, or a power loss has damaged it.
    pub(crate) is_torn: bool,
    /// The last released grant.
    released: Option<FencingToken>,
    /// The lock's name.
    pub(crate) name: Option<String>,
}

impl Record {
    /// Parses the content of a lock file. `None` if the file has other content, which must not be overwritten.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let last = parse_slot(&bytes[..bytes.len().min(SLOT)]);
        if last.is_none() && !is_ours(bytes) {
            return None;
        }
        let released = bytes
            .get(MARK_AT..)
            .and_then(line)
            .and_then(|text| text.parse().ok())
            .map(FencingToken::new);
        // A name may contain line ends, but no NUL.
        let name = bytes.get(NAME_AT..).and_then(|bytes| until(bytes, 0));
        Some(Self {
            is_torn: last.is_none() && bytes.first().is_some_and(|byte| *byte != 0),
            last,
            released,
            name: name.map(str::to_owned),
        })
    }

    /// The newest grant, unless it was released or can't be read.
    pub(crate) fn present(&self) -> Option<Entry> {
        let last = self.last.as_ref();
        last.filter(|last| self.released != Some(last.token))
            .cloned()
    }

    /// The last token. If the grant is damaged, the last released token.
    pub(crate) fn last_token(&self) -> Option<FencingToken> {
        let last = self.last.as_ref().map(|entry| entry.token);
        last.or(self.released)
    }

    /// The bytes to write when the grant with this token is released, and their position.
    pub(crate) fn write_released(token: FencingToken) -> (u64, Vec<u8>) {
        // Written to its end, so that the whole record can be read in one call.
        let mut mark = format!("{:0DIGITS$}\n", token.get()).into_bytes();
        mark.resize(MARK, 0);
        (MARK_AT as u64, mark)
    }

    /// A whole record of a lock that was released.
    pub(crate) fn released(name: &LockName, token: FencingToken) -> Vec<u8> {
        let mut record = vec![0; SLOT];
        record.extend(Self::write_released(token).1);
        record.extend(Self::write_name(name).1);
        record
    }

    /// The bytes to write once into a new file, and their position.
    pub(crate) fn write_name(name: &LockName) -> (u64, Vec<u8>) {
        (NAME_AT as u64, format!("{name}\0").into_bytes())
    }
}

/// Whether the content may be overwritten: an empty file, one whose first write was incomplete, or one that a power
/// loss has damaged.
pub(crate) fn is_ours(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .zip(MAGIC.bytes())
        .all(|(byte, magic)| *byte == magic || *byte == 0)
}

/// Whether these bytes are all of a record, which ends with the name.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    bytes.len() == LONGEST || bytes.get(NAME_AT..).is_some_and(|name| name.contains(&0))
}

fn line(bytes: &[u8]) -> Option<&str> {
    until(bytes, b'\n')
}

fn until(bytes: &[u8], end: u8) -> Option<&str> {
    let end = bytes.iter().position(|byte| *byte == end)?;
    std::str::from_utf8(&bytes[..end]).ok()
}

/// Reads one grant.
pub(crate) fn parse_slot(bytes: &[u8]) -> Option<Entry> {
    let rest = line(bytes)?.strip_prefix(MAGIC)?;
    let (sum, body) = rest.split_once(' ')?;
    if u64::from_str_radix(sum, 16).ok()? != checksum(body.as_bytes()) {
        return None;
    }
    let (token, body) = body.split_once(' ')?;
    let (mode, body) = body.split_once(' ')?;
    let (owner, holder) = body.split_once(' ')?;
    Some(Entry {
        token: FencingToken::new(token.parse().ok()?),
        mode: match mode {
            "exclusive" => Mode::Exclusive,
            "shared" => Mode::Shared,
            _ => return None,
        },
        owner: owner.parse().ok()?,
        holder: serde_json::from_str(holder).ok()?,
    })
}

/// Writes one grant.
pub(crate) fn render_slot(entry: &Entry) -> Vec<u8> {
    let mut line = render_line(entry, &entry.holder);
    let (mut holder, mut room) = (None, LONGEST_TEXT);
    while line.len() > SLOT {
        let holder = holder.get_or_insert_with(|| entry.holder.clone());
        holder.host = shorten(&holder.host, room);
        holder.label = holder.label.as_ref().map(|label| shorten(label, room));
        room /= 2;
        line = render_line(entry, holder);
    }
    line.resize(SLOT, 0);
    line
}

fn render_line(entry: &Entry, holder: &Holder) -> Vec<u8> {
    let mut line = Vec::with_capacity(SLOT);
    line.extend_from_slice(MAGIC.as_bytes());
    line.resize(BODY_AT, b' ');
    // These calls can't fail: memory takes any bytes, and the type has string keys only.
    let (token, mode, owner) = (entry.token.get(), entry.mode, entry.owner);
    let _ = write!(line, "{token:0DIGITS$} {mode} {owner} ");
    let _ = serde_json::to_writer(&mut line, holder);
    let sum = checksum(&line[BODY_AT..]);
    let _ = write!(&mut line[MAGIC.len()..], "{sum:016x}");
    line.push(b'\n');
    line
}

fn shorten(text: &str, most: usize) -> std::sync::Arc<str> {
    text.chars().take(most).collect::<String>().into()
}

/// FNV-1a, eight bytes at a time. It detects incomplete writes, not attacks.
fn checksum(body: &[u8]) -> u64 {
    body.chunks(8).fold(0xcbf2_9ce4_8422_2325, |sum, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let mixed = (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3);
        // The high bits of a factor affect the high bits of the product only. Folding lets them affect all bits.
        mixed ^ (mixed >> 32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    fn entry(token: u64) -> Entry {
        Entry {
            token: FencingToken::new(token),
            mode: Mode::Exclusive,
            owner: "000000000000002a-7-9".parse().unwrap(),
            holder: Holder::new(
                "db1",
                42,
                Some("nightly".into()),
                UNIX_EPOCH + Duration::from_secs(1),
            ),
        }
    }

    fn put(file: &mut Vec<u8>, (at, bytes): (u64, impl AsRef<[u8]>)) {
        let (at, bytes) = (usize::try_from(at).unwrap(), bytes.as_ref());
        file.resize(file.len().max(at + bytes.len()), 0);
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn grants(tokens: std::ops::RangeInclusive<u64>) -> Vec<u8> {
        let mut file = Vec::new();
        for token in tokens {
            put(&mut file, (0, render_slot(&entry(token))));
        }
        file
    }

    #[test]
    fn the_newest_grant_is_read_back() {
        for last in 1..=5 {
            let record = Record::parse(&grants(1..=last)).unwrap();
            assert_eq!(record.present(), Some(entry(last)));
        }
    }

    #[test]
    fn a_write_torn_at_any_byte_loses_no_token_and_makes_none_up() {
        let mut before = grants(1..=1);
        put(&mut before, Record::write_released(FencingToken::new(1)));
        let bytes = render_slot(&entry(2));
        for torn in 0..bytes.len() {
            let mut file = before.clone();
            put(&mut file, (0, &bytes[..torn]));
            let token = Record::parse(&file).unwrap().last_token();
            let known = [1, 2].map(|token| Some(FencingToken::new(token)));
            assert!(known.contains(&token), "torn after {torn} bytes: {token:?}");
        }
    }

    #[test]
    fn a_line_that_does_not_match_its_checksum_is_ignored() {
        let line = render_slot(&entry(4711));
        assert!(parse_slot(&line).is_some());
        for at in (BODY_AT..line.len()).filter(|at| line[*at].is_ascii_digit()) {
            let mut damaged = line.clone();
            damaged[at] ^= 1;
            assert_eq!(parse_slot(&damaged), None, "{at}");
        }
    }

    #[test]
    fn a_first_write_torn_at_any_byte_is_still_ours() {
        let bytes = render_slot(&entry(7));
        for torn in 0..bytes.len() {
            assert!(Record::parse(&bytes[..torn]).is_some(), "{torn}");
        }
        assert_eq!(Record::parse(&[0; SLOT]), Some(Record::default()));
    }

    #[test]
    fn a_released_grant_is_no_longer_present() {
        let mut file = grants(1..=2);
        put(&mut file, Record::write_released(FencingToken::new(1)));
        assert!(Record::parse(&file).unwrap().present().is_some());
        put(&mut file, Record::write_released(FencingToken::new(2)));
        let record = Record::parse(&file).unwrap();
        assert_eq!(record.present(), None);
        assert_eq!(record.last_token(), Some(FencingToken::new(2)));
    }

    #[test]
    fn a_record_that_was_written_as_released_keeps_name_and_token() {
        let name = LockName::new("a").unwrap();
        let bytes = Record::released(&name, FencingToken::new(7));
        let record = Record::parse(&bytes).unwrap();
        assert_eq!(record.last_token(), Some(FencingToken::new(7)));
        assert_eq!(
            (record.present(), record.name),
            (None, Some("a".to_owned()))
        );
    }

    #[test]
    fn somebody_elses_file_is_told_apart() {
        assert_eq!(Record::parse(b"12345\n"), None);
        assert_eq!(Record::parse(&[b'x'; 4096]), None);
        assert_eq!(Record::parse(b""), Some(Record::default()));
    }

    #[test]
    fn a_long_label_is_cut_and_the_token_stays() {
        for label in [
            "x".repeat(10_000),
            "\u{1}".repeat(10_000),
            "ß\"".repeat(999),
        ] {
            let mut long = entry(9);
            long.holder.label = Some(label.into());
            long.holder.host = "h".repeat(5_000).into();
            let mut file = Vec::new();
            put(&mut file, (0, render_slot(&long)));
            let read = Record::parse(&file).unwrap().present().unwrap();
            assert_eq!(read.token, FencingToken::new(9));
            assert_eq!(read.holder.pid, 42);
            assert!(read.holder.label.is_some_and(|label| !label.is_empty()));
        }
    }

    #[test]
    fn a_name_that_stands_in_the_file_is_read_back() {
        let name = LockName::new("ü\n".repeat(85)).unwrap();
        let mut file = grants(1..=1);
        put(&mut file, Record::write_name(&name));
        assert_eq!(
            Record::parse(&file).unwrap().name.as_deref(),
            Some(name.as_str())
        );
        assert!(file.len() <= LONGEST);
    }
}
