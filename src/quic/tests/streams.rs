//! What travels: frames in, the same frames out.

use bytes::Bytes;

use super::*;
use crate::proto::frame::{Frame, FrameKind, encode_frame, encode_header};

const FRAME_BYTES_MAX: usize = 8 << 20;
const LIMIT_BYTES: usize = 1 << 20;

impl Pair {
    /// A stream with a driver at one end and a reader at the other. The reader's stream exists from the first bytes on.
    async fn writer(&self, limit_bytes: usize) -> (FrameWriter, JoinHandle<Result<(), Error>>) {
        let stream = self.dialler.open_uni().await.unwrap();
        let (writer, driver) = FrameWriter::new(limit_bytes);
        (writer, tokio::spawn(driver.drive(stream)))
    }

    async fn reader(&self) -> FrameReader {
        FrameReader::new(self.acceptor.accept_uni().await.unwrap(), FRAME_BYTES_MAX)
    }

    /// What a reader makes of `bytes` as a whole stream.
    async fn read_raw(&self, bytes: &[u8]) -> Result<bool, Error> {
        let mut stream = self.dialler.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.finish().unwrap();
        self.reader().await.read_batch(&mut Vec::new()).await
    }
}

async fn read_all(mut reader: FrameReader) -> Result<Vec<Frame>, Error> {
    let mut frames = Vec::new();
    while reader.read_batch(&mut frames).await? {}
    Ok(frames)
}

fn push_number(writer: &FrameWriter, number: u64) -> Result<(), PushError> {
    writer.push(|buffer| {
        encode_frame(buffer, FrameKind::Write, number, |body| {
            body.extend_from_slice(&number.to_le_bytes());
        });
    })
}

#[tokio::test]
async fn ten_thousand_frames_arrive_in_order() {
    let pair = connect().await;
    let (writer, driver) = pair.writer(LIMIT_BYTES).await;
    let pusher = tokio::spawn(async move {
        for number in 0..10_000 {
            while push_number(&writer, number) == Err(PushError::Full) {
                tokio::task::yield_now().await;
            }
            if number % 100 == 0 {
                tokio::task::yield_now().await;
            }
        }
        // The last handle goes here: that closes the stream.
    });
    let frames = read_all(pair.reader().await).await.unwrap();
    assert_eq!(frames.len(), 10_000);
    for (number, frame) in (0u64..).zip(&frames) {
        assert_eq!((frame.request_id, &frame.body[..]), (number, &number.to_le_bytes()[..]));
    }
    pusher.await.unwrap();
    driver.await.unwrap().unwrap();
}

#[tokio::test]
async fn big_bodies_are_shared_and_arrive_whole_between_small_frames() {
    let pair = connect().await;
    let (writer, driver) = pair.writer(64 << 20).await;
    let big: Bytes = (0..4u32 << 20).map(|at| (at % 251) as u8).collect();
    for number in 0..4 {
        push_number(&writer, number).unwrap();
        let header = encode_header(FrameKind::Reply, number, big.len());
        writer.push_shared(&header, big.clone()).unwrap();
        writer.push_shared(&encode_header(FrameKind::Get, number, 3), Bytes::from("key")).unwrap();
    }
    let queued = writer.queued_bytes();
    assert!(queued > 16 << 20, "{queued}");
    writer.close();
    let frames = read_all(pair.reader().await).await.unwrap();
    assert_eq!(frames.len(), 12);
    for (number, three) in (0..).zip(frames.chunks(3)) {
        assert!(three.iter().all(|frame| frame.request_id == number));
        assert_eq!(three[0].body.len(), 8);
        assert!(three[1].body == big);
        assert_eq!(three[2].body, "key");
    }
    driver.await.unwrap().unwrap();
    assert_eq!(writer.queued_bytes(), 0);
    assert_eq!(push_number(&writer, 0), Err(PushError::Closed));
}

#[tokio::test]
async fn a_slow_reader_fills_the_queue_and_frees_it() {
    let pair = connect().await;
    let (writer, driver) = pair.writer(LIMIT_BYTES).await;
    let body = Bytes::from(vec![1; 100_000]);
    let header = encode_header(FrameKind::Reply, 0, body.len());
    // Nobody reads: what QUIC takes is bounded by the windows, and so is the queue.
    let mut pushed = 0;
    let mut full_in_a_row = 0;
    while full_in_a_row < 1000 {
        match writer.push_shared(&header, body.clone()) {
            Ok(()) => (pushed, full_in_a_row) = (pushed + 1, 0),
            Err(error) => {
                assert_eq!(error, PushError::Full);
                full_in_a_row += 1;
                tokio::task::yield_now().await;
            }
        }
        assert!(pushed < 1000, "nothing bounds the queue");
    }
    assert!(writer.queued_bytes() <= LIMIT_BYTES + body.len() + header.len());
    writer.close();
    let frames = read_all(pair.reader().await).await.unwrap();
    assert_eq!(frames.len(), pushed);
    driver.await.unwrap().unwrap();
}

#[tokio::test]
async fn garbage_is_an_error() {
    let pair = connect().await;
    assert!(matches!(pair.read_raw(&[0xFF; 100]).await, Err(Error::Malformed(_))));
    let long = encode_header(FrameKind::Write, 1, FRAME_BYTES_MAX);
    assert!(matches!(pair.read_raw(&long).await, Err(Error::Malformed(_))));
    let cut = &encode_header(FrameKind::Write, 1, 100)[..];
    assert!(matches!(pair.read_raw(cut).await, Err(Error::Truncated)));
    assert!(matches!(pair.read_raw(&[]).await, Ok(false)));
}

#[tokio::test]
async fn a_driver_ends_when_its_connection_does() {
    let pair = connect().await;
    let (writer, driver) = pair.writer(LIMIT_BYTES).await;
    push_number(&writer, 1).unwrap();
    let mut reader = pair.reader().await;
    reader.read_batch(&mut Vec::new()).await.unwrap();
    pair.acceptor.close(7u32.into(), b"bye\n");
    let closed = Disconnect::Closed { code: 7, reason: ": bye\\n".to_owned() };
    assert!(matches!(driver.await.unwrap(), Err(Error::Lost(why)) if why == closed));
    assert_eq!(push_number(&writer, 2), Err(PushError::Closed));
    assert!(matches!(
        reader.read_batch(&mut Vec::new()).await,
        Err(Error::Lost(Disconnect::ClosedHere))
    ));
}

#[tokio::test]
async fn a_driver_ends_when_the_reader_stops_or_it_is_aborted() {
    let pair = connect().await;
    let (writer, driver) = pair.writer(LIMIT_BYTES).await;
    push_number(&writer, 1).unwrap();
    pair.reader().await.stop(5);
    assert!(matches!(driver.await.unwrap(), Err(Error::StreamEnded { code: 5 })));
    assert_eq!(push_number(&writer, 2), Err(PushError::Closed));

    let (writer, driver) = pair.writer(LIMIT_BYTES).await;
    push_number(&writer, 1).unwrap();
    let reader = pair.reader().await;
    driver.abort();
    assert!(driver.await.unwrap_err().is_cancelled());
    assert_eq!(push_number(&writer, 2), Err(PushError::Closed));
    assert!(matches!(read_all(reader).await, Err(Error::StreamEnded { code: 0 })));
}

#[tokio::test]
async fn a_panic_inside_a_push_ends_the_stream_at_a_whole_frame() {
    let pair = connect().await;
    let (writer, driver) = pair.writer(LIMIT_BYTES).await;
    push_number(&writer, 1).unwrap();
    let mut reader = pair.reader().await;
    let mut frames = Vec::new();
    reader.read_batch(&mut frames).await.unwrap();
    let caller = writer.clone();
    let panicked = std::thread::spawn(move || {
        caller.push(|buffer| {
            buffer.push(1);
            panic!("half a frame");
        })
    });
    assert!(panicked.join().is_err());
    assert_eq!(push_number(&writer, 2), Err(PushError::Closed));
    driver.await.unwrap().unwrap();
    assert!(!reader.read_batch(&mut frames).await.unwrap());
    assert_eq!(frames.len(), 1);
}
