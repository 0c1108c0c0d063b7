//! Where a response ends: enough of HTTP/1.1 to tell one from the next, and no more.

use crate::connection::Failure;

/// Longer heads are no answer to these requests.
const HEAD_MAX: usize = 64 * 1024;

/// Headers of a response.
const HEADERS_MAX: usize = 128;

/// The longest line that tells the size of a chunk, extensions included.
const CHUNK_LINE_MAX: usize = 4096;

const LINE_END: &[u8] = b"\r\n";

const HEAD_END: &[u8] = b"\r\n\r\n";

/// Reads one response after the other.
pub(crate) struct ResponseReader {
    /// Requests have the method HEAD.
    head_only: bool,
    state: State,
    /// A head or a chunk's line that has not all come.
    partial: Vec<u8>,
    current: Response,
    /// Responses that are complete and not taken; the client sends a request only after the response before, so a second
    /// one is a server's mistake.
    complete: Option<Response>,
}

/// A response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Of the body.
    pub(crate) bytes: usize,
    /// The server closes the connection after it.
    pub(crate) close: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// So many bytes of the body are left.
    Body(u64),
    /// The body ends with the connection.
    UntilClose,
    /// The line with the size of a chunk.
    ChunkLine,
    /// So many bytes of the chunk are left.
    Chunk(u64),
    /// The line end behind a chunk, of which so many bytes have come.
    ChunkEnd(usize),
    /// The lines after the last chunk.
    Trailer,
}

impl ResponseReader {
    pub(crate) fn new(head_only: bool) -> Self {
        Self {
            head_only,
            state: State::Head,
            partial: Vec::new(),
            current: Response::default(),
            complete: None,
        }
    }

    /// The response that is complete, if there is one.
    pub(crate) fn take_response(&mut self) -> Option<Response> {
        self.complete.take()
    }

    /// Nothing more comes. `notified`: the server said so, and nobody else has cut the connection.
    pub(crate) fn end(&mut self, notified: bool) -> Result<(), Failure> {
        match self.state {
            State::UntilClose if notified => self.finish(),
            State::UntilClose => Err(Failure::Http(
                "a body as long as the connection, which ended without close_notify".to_owned(),
            )),
            State::Head | State::Body(_) | State::ChunkLine | State::Chunk(_) | State::ChunkEnd(_) | State::Trailer => {
                Ok(())
            }
        }
    }

    /// Takes what was received.
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Result<(), Failure> {
        while !bytes.is_empty() {
            bytes = match self.state {
                State::Head => self.head(bytes)?,
                State::Body(left) => {
                    let (body, rest) = split(bytes, left);
                    self.count(body);
                    self.state = State::Body(left - body as u64);
                    if left == body as u64 {
                        self.finish()?;
                    }
                    rest
                }
                State::UntilClose => {
                    self.count(bytes.len());
                    &[]
                }
                State::ChunkLine => self.chunk_line(bytes)?,
                State::Chunk(left) => {
                    let (taken, rest) = split(bytes, left);
                    self.count(taken);
                    self.state = match left - taken as u64 {
                        0 => State::ChunkEnd(0),
                        left => State::Chunk(left),
                    };
                    rest
                }
                State::ChunkEnd(come) => {
                    if bytes[0] != LINE_END[come] {
                        return Err(Failure::Http("a chunk that is not as long as it says".to_owned()));
                    }
                    self.state = if come + 1 == LINE_END.len() {
                        State::ChunkLine
                    } else {
                        State::ChunkEnd(come + 1)
                    };
                    &bytes[1..]
                }
                State::Trailer => self.trailer(bytes)?,
            };
        }
        Ok(())
    }

    /// So many bytes of the body have come.
    fn count(&mut self, bytes: usize) {
        self.current.bytes = self.current.bytes.saturating_add(bytes);
    }

    /// The head is parsed once, when it is all there. Mostly it comes in one piece and is not copied.
    fn head<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Failure> {
        let before = self.partial.len();
        let (end, whole);
        if before == 0 {
            whole = bytes;
            end = end_of_head(whole, 0);
        } else {
            self.partial.extend_from_slice(bytes);
            whole = &self.partial;
            // Its end is not in what came before; it may have begun there.
            end = end_of_head(whole, before.saturating_sub(HEAD_END.len() - 1));
        }
        let Some(end) = end else {
            if whole.len() > HEAD_MAX {
                return Err(Failure::Http("a head longer than 64 KiB".to_owned()));
            }
            if before == 0 {
                self.partial.extend_from_slice(bytes);
            }
            return Ok(&[]);
        };
        let (response, state) = parse_head(&whole[..end], self.head_only)?;
        self.partial.clear();
        // What announces a response (100 Continue, 103 Early Hints) is none.
        let Some(state) = state else {
            return Ok(&bytes[end - before..]);
        };
        self.current = response;
        self.state = state;
        if state == State::Body(0) {
            self.finish()?;
        }
        Ok(&bytes[end - before..])
    }

    fn chunk_line<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Failure> {
        let before = self.partial.len();
        self.partial
            .extend_from_slice(&bytes[..bytes.len().min(CHUNK_LINE_MAX)]);
        match httparse::parse_chunk_size(&self.partial) {
            Ok(httparse::Status::Complete((used, size))) => {
                self.partial.clear();
                self.state = match size {
                    0 => State::Trailer,
                    size => State::Chunk(size),
                };
                Ok(&bytes[used - before..])
            }
            Ok(httparse::Status::Partial) if self.partial.len() < CHUNK_LINE_MAX => Ok(&[]),
            Ok(httparse::Status::Partial) | Err(_) => Err(Failure::Http("a chunk without a size".to_owned())),
        }
    }

    /// Lines up to an empty one.
    fn trailer<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], Failure> {
        let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
            self.partial.extend_from_slice(bytes);
            return match self.partial.len() {
                ..=HEAD_MAX => Ok(&[]),
                _ => Err(Failure::Http("a trailer longer than 64 KiB".to_owned())),
            };
        };
        self.partial.extend_from_slice(&bytes[..end]);
        let empty = self.partial.is_empty() || self.partial == b"\r";
        self.partial.clear();
        if empty {
            self.finish()?;
        }
        Ok(&bytes[end + 1..])
    }

    fn finish(&mut self) -> Result<(), Failure> {
        self.state = State::Head;
        match self.complete.replace(self.current) {
            None => Ok(()),
            Some(_) => Err(Failure::Http("a response that nothing had asked for".to_owned())),
        }
    }
}

/// How many of the bytes belong to something that `left` bytes are missing of, and the others.
fn split(bytes: &[u8], left: u64) -> (usize, &[u8]) {
    let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    (taken, &bytes[taken..])
}

/// Looks for it from a position on.
fn end_of_head(bytes: &[u8], from: usize) -> Option<usize> {
    let found = bytes[from..]
        .windows(HEAD_END.len())
        .position(|window| window == HEAD_END);
    found.map(|at| from + at + HEAD_END.len())
}

/// The response without its body, and how that ends; no state for one that only announces another.
fn parse_head(head: &[u8], head_only: bool) -> Result<(Response, Option<State>), Failure> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Response::new(&mut headers);
    let bad = |why: &str| Failure::Http(why.to_owned());
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(bad("half a head")),
        Err(error) => return Err(Failure::Http(format!("no response ({error})"))),
    }
    let status = parsed.code.ok_or_else(|| bad("no status"))?;
    let mut response = Response {
        status,
        bytes: 0,
        close: parsed.version == Some(0),
    };
    let (mut length, mut chunked) = (None, false);
    for header in parsed.headers.iter() {
        let value = || String::from_utf8_lossy(header.value).trim().to_ascii_lowercase();
        if header.name.eq_ignore_ascii_case("content-length") {
            let found: u64 = value().parse().map_err(|_| bad("a Content-Length that is no number"))?;
            if length.is_some_and(|length| length != found) {
                return Err(bad("two lengths"));
            }
            length = Some(found);
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value().ends_with("chunked");
        } else if header.name.eq_ignore_ascii_case("connection") {
            response.close |= value().split(',').any(|word| word.trim() == "close");
        }
    }
    if (100..200).contains(&status) {
        return Ok((response, None));
    }
    let state = match (head_only || status == 204 || status == 304, chunked, length) {
        (true, ..) => State::Body(0),
        (false, true, _) => State::ChunkLine,
        (false, false, Some(length)) => State::Body(length),
        (false, false, None) => State::UntilClose,
    };
    response.close |= state == State::UntilClose;
    Ok((response, Some(state)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], piece: usize) -> Result<Option<Response>, Failure> {
        let mut reader = ResponseReader::new(false);
        for piece in bytes.chunks(piece) {
            reader.take(piece)?;
        }
        reader.end(true)?;
        Ok(reader.take_response())
    }

    fn response(status: u16, bytes: usize, close: bool) -> Option<Response> {
        Some(Response { status, bytes, close })
    }

    #[test]
    fn responses_end_where_their_heads_say_however_they_are_cut() {
        for piece in 1..200 {
            let read = |text: &str| read(text.as_bytes(), piece).unwrap();
            assert_eq!(
                read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
                response(200, 5, false)
            );
            assert_eq!(read("HTTP/1.1 204 Nothing\r\n\r\n"), response(204, 0, false));
            assert_eq!(
                read("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end"),
                response(200, 13, true)
            );
            let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\na;x=y\r\n0123456789\r\n0\r\nA: b\r\n\r\n";
            assert_eq!(read(chunked), response(200, 13, false));
            let announced = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n";
            assert_eq!(read(announced), response(404, 0, false));
            assert_eq!(read("HTTP/1.1 200 OK\r\nContent-Le"), None);
        }
    }

    #[test]
    fn what_is_no_response_is_an_error() {
        for text in [
            "SSH-2.0-OpenSSH_9\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r0\r\n\r\n",
            "HTTP/1.1 204 No\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
        ] {
            for piece in [1, 7, 1000] {
                assert!(matches!(read(text.as_bytes(), piece), Err(Failure::Http(_))), "{text}");
            }
        }
        let endless = vec![b'x'; HEAD_MAX + 2];
        assert!(matches!(read(&endless, 1000), Err(Failure::Http(_))));
    }

    #[test]
    fn chunks_count_as_they_come_and_not_as_they_are_announced() {
        let mut reader = ResponseReader::new(false);
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nffffffffffffffff\r\nabcd";
        reader.take(head.as_bytes()).unwrap();
        assert_eq!(reader.current.bytes, 7);
    }

    #[test]
    fn a_body_as_long_as_its_connection_needs_to_be_told_where_it_ends() {
        for (notified, whole) in [(true, true), (false, false)] {
            let mut reader = ResponseReader::new(false);
            reader.take(b"HTTP/1.1 200 OK\r\n\r\nhalf of it?").unwrap();
            assert_eq!(reader.take_response(), None);
            assert_eq!(reader.end(notified).is_ok(), whole);
            assert_eq!(reader.take_response().is_some(), whole);
        }
    }

    /// Searched anew with each piece, a megabyte of heads in single bytes would be 30 GB to look through.
    #[test]
    fn long_heads_in_small_pieces_take_no_longer_than_their_bytes() {
        let mut text = b"HTTP/1.1 100 Wait\r\nA: ".to_vec();
        text.resize(HEAD_MAX - 4, b'x');
        text.extend_from_slice(HEAD_END);
        let began = std::time::Instant::now();
        let mut reader = ResponseReader::new(false);
        for _ in 0..16 {
            for byte in text.chunks(1) {
                reader.take(byte).unwrap();
            }
        }
        assert_eq!((reader.state, reader.partial.len()), (State::Head, 0));
        let took = began.elapsed();
        assert!(took < std::time::Duration::from_secs(20), "{took:?}");
    }
}
