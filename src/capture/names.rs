//! Whom the first bytes of a conversation ask for: a question of DNS, the server name of TLS, the host of HTTP. Pure.
//!
//! Read here and not by crates (`hickory-proto`, `tls-parser`, `httparse`), because those read whole messages: of a packet there is the
//! beginning, and of a ClientHello mostly not the end. What is needed of each format is a few fields at its start.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::escaped::Escaped;
use crate::model::policy::Protocol;

/// No name of DNS is longer; nor is one shown that claims to be another's.
const NAME_MAX: usize = 255;
const LABEL_MAX: usize = 63;
/// DNS, multicast DNS, LLMNR.
const DNS_PORTS: [u16; 3] = [53, 5353, 5355];

/// How somebody is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A question of DNS.
    Dns,
    /// The server name of a TLS ClientHello.
    Tls,
    /// The host of an HTTP request.
    Http,
}

impl Kind {
    /// One word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Tls => "tls",
            Self::Http => "http",
        }
    }
}

/// A name that was asked for. Its text is escaped: it can do nothing to a terminal or a page.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// How.
    pub kind: Kind,
    /// Whom; of DNS with the type of what is asked for.
    pub text: String,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.text)
    }
}

/// The name that is asked for in the first bytes behind a UDP or TCP header.
#[must_use]
pub(super) fn name(protocol: u8, port: u16, said: &[u8]) -> Option<Name> {
    let is_udp = protocol == Protocol::Udp.number();
    let found = |kind| move |text| Name { kind, text };
    if DNS_PORTS.contains(&port) {
        // Over TCP the length of the message comes first.
        let question = if is_udp { said } else { said.get(2..)? };
        return dns_question(question).map(found(Kind::Dns));
    }
    if is_udp {
        return None;
    }
    tls_server_name(said).map(found(Kind::Tls)).or_else(|| http_host(said).map(found(Kind::Http)))
}

/// The first question of a DNS message (RFC 1035, section 4.1); of an answer none.
#[must_use]
pub fn dns_question(message: &[u8]) -> Option<String> {
    let is_answer = message.get(2)? & 0x80 != 0;
    let questions = u16::from_be_bytes([*message.get(4)?, *message.get(5)?]);
    if is_answer || questions == 0 {
        return None;
    }
    let mut rest = message.get(12..)?;
    let (mut text, mut length) = (String::new(), 0);
    loop {
        let (&label_length, behind) = rest.split_first()?;
        let label_length = usize::from(label_length);
        if label_length == 0 {
            rest = behind;
            break;
        }
        length += label_length + 1;
        // A compressed name has nothing to point at in a first question.
        if label_length > LABEL_MAX || length > NAME_MAX {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        // A dot in a label is no end of it.
        text.push_str(&Escaped::from(behind.get(..label_length)?).to_string().replace('.', "\\u{2e}"));
        rest = &behind[label_length..];
    }
    if text.is_empty() {
        text.push('.');
    }
    let kind = rest.get(..2).map(|kind| u16::from_be_bytes([kind[0], kind[1]]));
    Some(match kind {
        None | Some(1) => text,
        Some(kind) => format!("{text} {}", record_type(kind)),
    })
}

fn record_type(number: u16) -> String {
    let known = match number {
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        10 => "NULL",
        12 => "PTR",
        15 => "MX",
        16 => "TXT",
        28 => "AAAA",
        33 => "SRV",
        64 => "SVCB",
        65 => "HTTPS",
        255 => "ANY",
        number => return format!("TYPE{number}"),
    };
    known.to_owned()
}

/// The server name in a TLS ClientHello (RFC 8446, section 4.1.2; RFC 6066, section 3), as far as it is there.
#[must_use]
pub fn tls_server_name(record: &[u8]) -> Option<String> {
    const HANDSHAKE: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    const SERVER_NAME: usize = 0;
    let mut reader = Reader(record);
    if reader.byte()? != HANDSHAKE || reader.byte()? != 3 {
        return None;
    }
    // Minor version and length of the record.
    reader.skip(3)?;
    if reader.byte()? != CLIENT_HELLO {
        return None;
    }
    // Length, version and random of the message.
    reader.skip(3 + 2 + 32)?;
    let session = usize::from(reader.byte()?);
    reader.skip(session)?;
    let ciphers = reader.word()?;
    reader.skip(ciphers)?;
    let compressions = usize::from(reader.byte()?);
    reader.skip(compressions)?;
    reader.word()?;
    loop {
        let (kind, length) = (reader.word()?, reader.word()?);
        if kind != SERVER_NAME {
            reader.skip(length)?;
            continue;
        }
        // The list's length, the name's kind (0: a host), its length.
        reader.word()?;
        let is_host = reader.byte()? == 0;
        let length = reader.word()?;
        let name = reader.0.get(..length).filter(|name| is_host && !name.is_empty() && name.len() <= NAME_MAX)?;
        return Some(Escaped::from(name).to_string());
    }
}

/// What is left to read.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    fn word(&mut self) -> Option<usize> {
        Some(usize::from(self.byte()?) << 8 | usize::from(self.byte()?))
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.0 = self.0.get(count..)?;
        Some(())
    }
}

/// The host that an HTTP/1 request names in its `Host` field (RFC 9112, section 3.2), where that is whole.
#[must_use]
pub fn http_host(request: &[u8]) -> Option<String> {
    let mut lines = request.split(|&byte| byte == b'\n');
    let first = lines.next()?;
    let method = first.split(|&byte| byte == b' ').next()?;
    let is_request =
        (3..=7).contains(&method.len()) && method.iter().all(u8::is_ascii_uppercase) && first.len() > method.len();
    if !is_request || lines.clone().next().is_none() {
        return None;
    }
    // The last line may be cut off.
    let whole = request.iter().filter(|&&byte| byte == b'\n').count() - 1;
    lines.take(whole).take_while(|line| !line.trim_ascii().is_empty()).find_map(|line| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        let (field, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let is_host = field.eq_ignore_ascii_case(b"host") && !value.is_empty() && value.len() <= NAME_MAX;
        is_host.then(|| Escaped::from(value).to_string())
    })
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(said: &[u8]) {
    for found in [dns_question(said), tls_server_name(said), http_host(said)].into_iter().flatten() {
        assert!(!found.chars().any(char::is_control), "{found:?}");
        assert!(found.len() <= 10 * NAME_MAX + 16);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ClientHello as `openssl s_client` sends it, with this name.
    fn client_hello(name: &[u8]) -> Vec<u8> {
        let length = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
        let server_name =
            [&[0, 0][..], &length(name.len() + 5), &length(name.len() + 3), &[0], &length(name.len()), name].concat();
        let extensions = [&[0, 11, 0, 2, 1, 0][..], &server_name, &[0, 23, 0, 0]].concat();
        let body = [
            &[3, 3][..],
            &[9; 32],
            &[32],
            &[8; 32],
            &length(4),
            &[0x13, 1, 0x13, 2],
            &[1, 0],
            &length(extensions.len()),
            &extensions,
        ]
        .concat();
        let message = [&[1, 0][..], &length(body.len()), &body].concat();
        [&[22, 3, 1][..], &length(message.len()), &message].concat()
    }

    #[test]
    fn names_are_read_from_the_first_bytes() {
        let question = |name: &[u8]| [&b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0"[..], name].concat();
        let udp = |said: &[u8]| name(17, 53, said).map(|name| name.to_string());
        let tcp = |port, said: &[u8]| name(6, port, said).map(|name| name.to_string());
        assert_eq!(udp(&question(b"\x02c2\x03net\0\0\x01\0\x01")).as_deref(), Some("dns c2.net"));
        assert_eq!(udp(&question(b"\x02c2\x03net\0\0\x1c\0\x01")).as_deref(), Some("dns c2.net AAAA"));
        assert_eq!(udp(&question(b"\x02c2\x03net\0")).as_deref(), Some("dns c2.net"), "without a type");
        assert_eq!(udp(&question(b"\0\0\x02\0\x01")).as_deref(), Some("dns . NS"));
        assert_eq!(udp(&question(b"\x04a.b\n\0")).as_deref(), Some("dns a\\u{2e}b\\u{a}"));
        assert_eq!(udp(&question(b"\x02c2\xc0\x0c")), None, "compressed");
        assert_eq!(udp(&question(b"\x02c2\x03ne")), None, "cut off");
        let mut answer = question(b"\x02c2\0\0\x01\0\x01");
        answer[2] |= 0x80;
        assert_eq!(udp(&answer), None);
        assert_eq!(tcp(53, &[&[0, 20][..], &question(b"\x02c2\0\0\x01")].concat()).as_deref(), Some("dns c2"));
        assert_eq!(tcp(443, &client_hello(b"c2.example")).as_deref(), Some("tls c2.example"));
        assert_eq!(tcp(8443, &client_hello(b"<script>")).as_deref(), Some("tls <script>"));
        assert_eq!(tcp(443, &client_hello(b"c2.example")[..100]), None);
        assert_eq!(
            tcp(80, b"POST / HTTP/1.1\r\nA: b\r\nhOST:  c2.example:8080 \r\n").as_deref(),
            Some("http c2.example:8080")
        );
        assert_eq!(tcp(80, b"GET / HTTP/1.1\r\nHost: c2.exam"), None, "cut off");
        assert_eq!(tcp(80, b"GET / HTTP/1.1\r\n\r\nHost: in.the.body\r\n"), None);
        assert_eq!(tcp(80, b"\x1b[2J"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic_or_give_control_characters(bytes: Vec<u8>, at: usize, byte: u8) {
            let mut hello = client_hello(&bytes[..bytes.len().min(NAME_MAX)]);
            let at = at % hello.len();
            hello[at] = byte;
            try_any(&bytes);
            try_any(&hello);
        }
    }
}
