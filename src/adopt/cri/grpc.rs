//! One question over gRPC: HTTP/2 (RFC 9113) over a local socket, as far as one question for each connection needs it.
//!
//! The headers of the answer are not read, since they are compressed (HPACK): a server that refuses sends no message, and that is
//! seen. All windows are opened at once for the longest answer, so that nothing has to be granted on the way.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use super::CriError;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer: a kubelet's limit.
const ANSWER_MAX: usize = 16 * 1024 * 1024;
/// The longest frame, unless more was agreed on.
const FRAME_MAX: usize = 16_384;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// Of SETTINGS and PING.
const ACK: u8 = 1;
/// Of DATA and HEADERS.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
/// The one question's.
const STREAM: u32 = 1;

/// Asks a method of the CRI's `RuntimeService`; gives the message that answers.
pub(super) fn ask(socket: &Path, method: &'static str, message: &[u8]) -> Result<Vec<u8>, CriError> {
    let io = |source| CriError::Io { socket: socket.to_owned(), source };
    let mut stream = UnixStream::connect(socket).map_err(io)?;
    let user = getsockopt(&stream, PeerCredentials).map_err(|errno| io(errno.into()))?.uid();
    if user != 0 {
        return Err(CriError::Unsound { socket: socket.to_owned(), user });
    }
    stream.set_write_timeout(Some(PATIENCE)).map_err(io)?;
    stream.write_all(&question(method, message)).map_err(io)?;
    let timed = Timed { stream: &stream, until: Instant::now() + PATIENCE };
    match read_answer(timed, &stream) {
        Ok(answer) => Ok(answer),
        Err(NoAnswer::Io(source)) => Err(io(source)),
        Err(NoAnswer::Refused) => Err(CriError::Refused { socket: socket.to_owned(), method }),
        Err(NoAnswer::Wrong(why)) => Err(CriError::Unreadable { socket: socket.to_owned(), method, why }),
    }
}

/// All that is sent.
fn question(method: &str, message: &[u8]) -> Vec<u8> {
    const ENABLE_PUSH: u16 = 2;
    const INITIAL_WINDOW_SIZE: u16 = 4;
    let window = (2 * ANSWER_MAX as u32).to_be_bytes();
    let mut settings = Vec::new();
    for (setting, value) in [(ENABLE_PUSH, [0; 4]), (INITIAL_WINDOW_SIZE, window)] {
        settings.extend_from_slice(&setting.to_be_bytes());
        settings.extend_from_slice(&value);
    }
    let path = format!("/runtime.v1.RuntimeService/{method}");
    let mut headers = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path.as_str()),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", concat!("quarantine/", env!("CARGO_PKG_VERSION"))),
    ] {
        // RFC 7541, 6.2.2: literal, not indexed, with a name of its own. Each length is below 127, and so one byte.
        headers.push(0);
        for text in [name, value] {
            headers.push(text.len().to_le_bytes()[0]);
            headers.extend_from_slice(text.as_bytes());
        }
    }
    let mut data = vec![0];
    data.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    data.extend_from_slice(message);
    let mut bytes = PREFACE.to_vec();
    put_frame(&mut bytes, SETTINGS, 0, 0, &settings);
    put_frame(&mut bytes, WINDOW_UPDATE, 0, 0, &window);
    put_frame(&mut bytes, HEADERS, END_HEADERS, STREAM, &headers);
    put_frame(&mut bytes, DATA, END_STREAM, STREAM, &data);
    bytes
}

fn put_frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let [_, length @ ..] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// Why there is no message.
#[derive(Debug)]
pub(super) enum NoAnswer {
    Io(io::Error),
    /// It ended without one.
    Refused,
    /// It is not gRPC.
    Wrong(&'static str),
}

impl From<io::Error> for NoAnswer {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads frames until the answer has ended; what has to be acknowledged is.
pub(super) fn read_answer(mut from: impl Read, mut to: impl Write) -> Result<Vec<u8>, NoAnswer> {
    let mut answer = Vec::new();
    loop {
        let mut header = [0; 9];
        from.read_exact(&mut header)?;
        let [l0, l1, l2, kind, flags, stream @ ..] = header;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        if length > FRAME_MAX {
            return Err(NoAnswer::Wrong("a frame is longer than was agreed on"));
        }
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        let is_ours = u32::from_be_bytes(stream) & (u32::MAX >> 1) == STREAM;
        match kind {
            DATA if is_ours => {
                answer.extend_from_slice(unpadded(&payload, flags).ok_or(NoAnswer::Wrong("more padding than frame"))?);
                if answer.len() > ANSWER_MAX {
                    return Err(NoAnswer::Wrong("it is longer than 16 MiB"));
                }
            }
            SETTINGS | PING if flags & ACK == 0 => {
                let mut acknowledgement = Vec::new();
                let echoed = if kind == PING { &payload[..] } else { &[] };
                put_frame(&mut acknowledgement, kind, ACK, 0, echoed);
                // A server that has sent all of its answer may have closed its end.
                let _ = to.write_all(&acknowledgement);
            }
            RST_STREAM if is_ours => return Err(NoAnswer::Refused),
            GOAWAY => return Err(NoAnswer::Wrong("the runtime closed the connection")),
            _ => {}
        }
        if is_ours && matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            return message_of(answer);
        }
    }
}

/// RFC 9113, 6.1.
fn unpadded(payload: &[u8], flags: u8) -> Option<&[u8]> {
    if flags & PADDED == 0 {
        return Some(payload);
    }
    let (&padding, rest) = payload.split_first()?;
    rest.get(..rest.len().checked_sub(usize::from(padding))?)
}

/// The one message in what gRPC puts around it: whether it is compressed, and its length.
fn message_of(mut answer: Vec<u8>) -> Result<Vec<u8>, NoAnswer> {
    const PREFIX: usize = 5;
    match answer.first_chunk::<PREFIX>() {
        None if answer.is_empty() => Err(NoAnswer::Refused),
        Some([0, length @ ..]) if u32::from_be_bytes(*length) as usize == answer.len() - PREFIX => {
            Ok(answer.split_off(PREFIX))
        }
        _ => Err(NoAnswer::Wrong("it is no single message that is not compressed")),
    }
}

/// Reads until a moment, however slowly it comes.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        match self.stream.read(buffer) {
            // What the kernel says of a time that is over.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            read => read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(frames: &[(u8, u8, u32, &[u8])]) -> (Result<Vec<u8>, NoAnswer>, Vec<u8>) {
        let mut bytes = Vec::new();
        for (kind, flags, stream, payload) in frames {
            put_frame(&mut bytes, *kind, *flags, *stream, payload);
        }
        let mut acknowledged = Vec::new();
        (read_answer(&bytes[..], &mut acknowledged), acknowledged)
    }

    #[test]
    fn a_message_in_parts_is_put_together_and_what_asks_for_it_is_acknowledged() {
        let (answer, acknowledged) = answered(&[
            (SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0]),
            (SETTINGS, ACK, 0, &[]),
            (PING, 0, 0, b"12345678"),
            (HEADERS, END_HEADERS, 1, &[0x88]),
            (DATA, 0, 3, b"of another stream"),
            (DATA, PADDED, 1, &[2, 0, 0, 0, 0, 3, b'a', 0, 0]),
            (DATA, 0, 1, b"bc"),
            (HEADERS, END_HEADERS | END_STREAM, 1, &[]),
        ]);
        assert_eq!(answer.unwrap(), b"abc");
        assert_eq!(acknowledged, b"\0\0\0\x04\x01\0\0\0\0\0\0\x08\x06\x01\0\0\0\x0012345678");
    }

    #[test]
    fn what_is_no_answer_is_said_to_be_none() {
        for (frames, wanted) in [
            (&[(HEADERS, END_STREAM, 1, &b""[..])][..], "Refused"),
            (&[(RST_STREAM, 0, 1, &[0; 4])], "Refused"),
            (&[(GOAWAY, 0, 0, &[0; 8])], "closed"),
            (&[(DATA, END_STREAM, 1, &[1, 0, 0, 0, 0])], "compressed"),
            (&[(DATA, END_STREAM, 1, &[0, 0, 0, 0, 9, 1])], "single message"),
            (&[(DATA, PADDED, 1, &[9, 1])], "padding"),
            (&[(DATA, 0, 1, &[0; FRAME_MAX + 1])], "longer"),
            (&[(DATA, 0, 1, &[0; 5])], "UnexpectedEof"),
        ] {
            let said = format!("{:?}", answered(frames).0.unwrap_err());
            assert!(said.contains(wanted), "{said}");
        }
        let (_silent, stream) = UnixStream::pair().unwrap();
        let timed = Timed { stream: &stream, until: Instant::now() + Duration::from_millis(5) };
        assert!(format!("{:?}", read_answer(timed, io::sink()).unwrap_err()).contains("TimedOut"));
        let endless = vec![(DATA, 0, 1, &[0; FRAME_MAX][..]); ANSWER_MAX / FRAME_MAX + 1];
        assert!(format!("{:?}", answered(&endless).0.unwrap_err()).contains("16 MiB"));
    }
}
