//! The frame: the unit in which everything travels on a QUIC stream.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 4 | `len`: bytes that follow this field (header rest + body), little-endian |
//! | 4 | 1 | `kind`: [`FrameKind`] |
//! | 5 | 1 | `flags`: 0 in version 1, anything else is refused |
//! | 6 | 8 | `request_id`: chosen by the asker, echoed in the answer, 0 where nothing is answered |
//! | 14 | len - 10 | body |
//!
//! There is no checksum: the stream is authenticated by TLS.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Malformed;

/// Bytes before the body.
pub const HEADER_BYTES: usize = 14;
const AFTER_LEN_BYTES: usize = HEADER_BYTES - 4;
/// Less memory than this may stay with a stream on which nothing comes.
const COMPACT_BYTES: usize = 16 << 10;

/// What a frame's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// [`super::client::Hello`], the first frame of a client connection's first stream.
    Hello = 1,
    /// [`super::command::Command`]: to be replicated.
    Write = 2,
    /// [`super::client::Get`].
    Get = 3,
    /// [`super::client::Scan`], alone on its stream; answered by many [`FrameKind::Reply`] frames.
    Scan = 4,
    /// Empty body: how is this node?
    Status = 5,
    /// [`super::client::Reply`].
    Reply = 6,
    /// As [`FrameKind::Write`]; a node that does not lead hands it to the leader, for a client that cannot reach that.
    WriteAnywhere = 7,
    /// [`super::client::Manage`].
    Manage = 8,
    /// Empty body, alone on its stream: a snapshot of now; answered by many [`FrameKind::Reply`] frames.
    Save = 9,
    /// A message of the consensus protocol, see [`super::peer`].
    Raft = 16,
    /// [`super::peer::SnapshotHeader`]: a snapshot follows.
    Snapshot = 17,
    /// A piece of a snapshot file: its offset (8 bytes, little-endian) and its bytes.
    SnapshotChunk = 18,
    /// [`super::peer::SnapshotDone`].
    SnapshotDone = 19,
    /// [`super::peer::PeerHello`], the first frame of a peer connection's first stream.
    PeerHello = 21,
    /// [`super::peer::Forward`], alone on its stream; answered by a [`FrameKind::Reply`].
    Forward = 20,
    /// [`super::peer::Want`], alone on its stream; answered by a [`FrameKind::Fetched`].
    Fetch = 22,
    /// [`super::peer::Fetched`].
    Fetched = 23,
    /// [`super::peer::SnapshotWanted`].
    SnapshotWanted = 24,
    /// [`super::peer::StateHash`].
    StateHash = 25,
    /// Empty body, alone on its stream: who are the members? Answered by a [`FrameKind::Members`].
    AskMembers = 26,
    /// [`crate::raft::MembershipAt`].
    Members = 27,
}

impl FrameKind {
    fn from_u8(kind: u8) -> Option<FrameKind> {
        Some(match kind {
            1 => FrameKind::Hello,
            2 => FrameKind::Write,
            3 => FrameKind::Get,
            4 => FrameKind::Scan,
            5 => FrameKind::Status,
            6 => FrameKind::Reply,
            7 => FrameKind::WriteAnywhere,
            8 => FrameKind::Manage,
            9 => FrameKind::Save,
            16 => FrameKind::Raft,
            17 => FrameKind::Snapshot,
            18 => FrameKind::SnapshotChunk,
            19 => FrameKind::SnapshotDone,
            20 => FrameKind::Forward,
            21 => FrameKind::PeerHello,
            22 => FrameKind::Fetch,
            23 => FrameKind::Fetched,
            24 => FrameKind::SnapshotWanted,
            25 => FrameKind::StateHash,
            26 => FrameKind::AskMembers,
            27 => FrameKind::Members,
            _ => return None,
        })
    }
}

/// One whole frame; the body shares the buffer it was read into.
#[derive(Clone, Debug)]
pub struct Frame {
    /// What the body is.
    pub kind: FrameKind,
    /// Ties an answer to its question.
    pub request_id: u64,
    /// The payload.
    pub body: Bytes,
}

/// Appends a frame whose body is written by `body` to `buffer`.
///
/// # Panics
/// If the body is longer than a frame may be: callers check values against their limits first.
pub fn encode_frame(
    buffer: &mut Vec<u8>,
    kind: FrameKind,
    request_id: u64,
    body: impl FnOnce(&mut Vec<u8>),
) {
    let start = buffer.len();
    buffer.put_u32_le(0);
    buffer.put_u8(kind as u8);
    buffer.put_u8(0);
    buffer.put_u64_le(request_id);
    body(buffer);
    set_len(&mut buffer[start..]);
}

/// The header of a frame whose body of `body_bytes` is sent separately, without a copy.
///
/// # Panics
/// If the body is longer than a frame may be.
pub fn encode_header(kind: FrameKind, request_id: u64, body_bytes: usize) -> [u8; HEADER_BYTES] {
    let len = u32::try_from(AFTER_LEN_BYTES + body_bytes)
        .expect("bodies are checked against FRAME_BYTES_MAX");
    let mut header = [0; HEADER_BYTES];
    let mut out = &mut header[..];
    out.put_u32_le(len);
    out.put_u8(kind as u8);
    out.put_u8(0);
    out.put_u64_le(request_id);
    header
}

fn set_len(frame: &mut [u8]) {
    let len = u32::try_from(frame.len() - 4).expect("bodies are checked against FRAME_BYTES_MAX");
    frame[..4].copy_from_slice(&len.to_le_bytes());
}

/// Turns a stream of chunks, cut anywhere, into frames.
///
/// Holds at most one unfinished frame plus one chunk; a length above the limit is refused before room is made for it.
#[derive(Debug)]
pub struct FrameDecoder {
    frame_bytes_max: usize,
    buffer: BytesMut,
    /// The most that the memory behind the buffer has held.
    pinned_bytes: usize,
}

impl FrameDecoder {
    /// A decoder that refuses frames longer than `frame_bytes_max` (header included).
    pub fn new(frame_bytes_max: usize) -> FrameDecoder {
        FrameDecoder { frame_bytes_max, buffer: BytesMut::new(), pinned_bytes: 0 }
    }

    /// From now on frames up to this length are taken, header included.
    pub fn set_frame_bytes_max(&mut self, frame_bytes_max: usize) {
        self.frame_bytes_max = frame_bytes_max;
    }

    /// Takes in the next bytes of the stream, by copy: a received chunk would pin its whole receive buffer.
    pub fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
        self.pinned_bytes = self.pinned_bytes.max(self.buffer.len());
    }

    /// The next whole frame, or `None` until more bytes come.
    ///
    /// # Errors
    /// [`Malformed`] for a length, kind or flag that no frame has; the stream is then of no further use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Malformed> {
        let Some(len) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*len) as usize;
        if len < AFTER_LEN_BYTES || len + 4 > self.frame_bytes_max {
            return Err(Malformed("frame length"));
        }
        if self.buffer.len() < len + 4 {
            // Grow as bytes arrive, doubling: a length alone must not cost memory.
            return Ok(None);
        }
        let mut frame = self.buffer.split_to(len + 4).freeze();
        frame.advance(4);
        let kind = FrameKind::from_u8(frame.get_u8()).ok_or(Malformed("frame kind"))?;
        if frame.get_u8() != 0 {
            return Err(Malformed("frame flags"));
        }
        let request_id = frame.get_u64_le();
        Ok(Some(Frame { kind, request_id, body: frame }))
    }

    /// Whether the stream may end here: no frame is half read.
    pub fn is_at_frame_boundary(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Bytes of a frame that is not whole.
    pub fn half_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Lets go of memory that earlier frames have filled, if it is much more than what is left of them.
    pub fn compact(&mut self) {
        if self.pinned_bytes >= COMPACT_BYTES && self.buffer.len() < self.pinned_bytes / 2 {
            self.buffer = BytesMut::from(&self.buffer[..]);
            self.pinned_bytes = self.buffer.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_survive_every_way_of_cutting_the_stream() {
        let mut stream = Vec::new();
        encode_frame(&mut stream, FrameKind::Write, 7, |body| body.extend_from_slice(b"hello"));
        stream.extend_from_slice(&encode_header(FrameKind::Get, u64::MAX, 3));
        stream.extend_from_slice(b"key");
        encode_frame(&mut stream, FrameKind::Status, 9, |_| ());
        for chunk_bytes in 1..=stream.len() {
            let mut decoder = FrameDecoder::new(64);
            let mut frames = Vec::new();
            for chunk in stream.chunks(chunk_bytes) {
                decoder.push(chunk);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    frames.push((frame.kind, frame.request_id, frame.body.to_vec()));
                }
            }
            let expected = vec![
                (FrameKind::Write, 7, b"hello".to_vec()),
                (FrameKind::Get, u64::MAX, b"key".to_vec()),
                (FrameKind::Status, 9, vec![]),
            ];
            assert_eq!(frames, expected, "in chunks of {chunk_bytes}");
            assert!(decoder.is_at_frame_boundary());
        }
    }

    #[test]
    fn memory_of_whole_frames_is_not_held_by_the_beginning_of_the_next() {
        let mut decoder = FrameDecoder::new(1 << 20);
        let mut long = Vec::new();
        encode_frame(&mut long, FrameKind::Write, 1, |body| body.resize(100_000, 1));
        decoder.push(&[&long[..], &encode_header(FrameKind::Get, 2, 3), b"k"].concat());
        assert!(decoder.next_frame().unwrap().is_some() && decoder.next_frame().unwrap().is_none());
        assert!(decoder.pinned_bytes > 100_000);
        decoder.compact();
        assert_eq!((decoder.half_bytes(), decoder.pinned_bytes), (15, 15));
        assert!(decoder.buffer.capacity() < 100);
        decoder.push(b"ey");
        assert_eq!(decoder.next_frame().unwrap().unwrap().body, "key");
    }

    #[test]
    fn absurd_lengths_kinds_and_flags_are_refused() {
        let good = encode_header(FrameKind::Get, 1, 0);
        for (at, byte) in [(0, 9), (3, 0xFF), (4, 0), (4, 99), (5, 1)] {
            let mut bad = good;
            bad[at] = byte;
            let mut decoder = FrameDecoder::new(1024);
            decoder.push(&bad);
            assert!(decoder.next_frame().is_err(), "byte {at} = {byte}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let mut decoder = FrameDecoder::new(128);
            decoder.push(&bytes);
            while let Ok(Some(frame)) = decoder.next_frame() {
                prop_assert!(frame.body.len() + HEADER_BYTES <= 128);
            }
        }
    }
}
