//! HTTP/1.1 requests and their responses, one in flight per connection.

mod response;

use std::sync::Arc;
use std::time::Instant;

pub(crate) use response::ResponseReader;

use super::steady::Steady;
use super::{FULL, Next, Work, rates};
use crate::args::HttpArgs;
use crate::connection::{Connection, Failure, Inbound, Progress};
use crate::error::PerfError;
use crate::measure::Tally;
use crate::plan::ClientPlan;
use crate::report::{Report, Unit};

/// Larger bodies are a matter of `bulk`.
const BODY_MAX: usize = 16 << 20;

pub(super) fn run(args: &HttpArgs) -> Result<Report, PerfError> {
    let mut plan = ClientPlan::with_load(&args.client, &args.load, &FULL)?;
    let request: Arc<[u8]> = request(args)?.into();
    let rests = args.load.rests();
    // A connection for each request opens when that is due; its handshake is in the latency.
    let standing = args.requests_per_connection != 1;
    let steady = Steady {
        name: "http",
        unit: Unit::Request,
        standing,
        units_max: args.load.count,
        bytes_max: None,
        close_in_order: true,
        work: &|_| {
            Box::new(HttpWork {
                request: request.clone(),
                head_only: args.method == "HEAD",
                rests: rests && standing,
                requests_max: args.requests_per_connection,
            })
        },
        prepare: &|_, _| Ok(()),
    };
    rates::run(&args.load, &mut plan, |plan| steady.run(plan))
}

/// The request's bytes, which are the same each time.
fn request(args: &HttpArgs) -> Result<Vec<u8>, PerfError> {
    let token = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    let visible = |text: &str| text.bytes().all(|byte| (0x21..0x7f).contains(&byte));
    if !token(&args.method) {
        return Err(PerfError::flag(
            "--method",
            &args.method,
            "a method, for example GET or POST",
        ));
    }
    if !args.path.starts_with('/') || !visible(&args.path) {
        return Err(PerfError::flag(
            "--path",
            &args.path,
            "a path that begins with / and has no spaces",
        ));
    }
    if args.body > BODY_MAX {
        return Err(PerfError::flag("--body", args.body, "at most 16MiB"));
    }
    let mut head = format!("{} {} HTTP/1.1\r\n", args.method, args.path);
    let mut host = false;
    for header in &args.header {
        let parts = header.split_once(':').map(|(name, value)| (name, value.trim()));
        let Some((name, value)) = parts.filter(|(name, value)| token(name) && !value.contains(['\r', '\n', '\0']))
        else {
            return Err(PerfError::flag("--header", header, "Name: value"));
        };
        if name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(PerfError::flag(
                "--header",
                header,
                "another header: --body says how long the body is",
            ));
        }
        host |= name.eq_ignore_ascii_case("host");
        head += &format!("{name}: {value}\r\n");
    }
    if !host {
        let name = &args.client.server_name[0].value;
        head += &format!("Host: {name}\r\n");
    }
    if args.body > 0 {
        head += &format!("Content-Length: {}\r\n", args.body);
    }
    if args.requests_per_connection == 1 {
        head += "Connection: close\r\n";
    }
    let mut request = (head + "\r\n").into_bytes();
    request.resize(request.len() + args.body, b'x');
    Ok(request)
}

struct HttpWork {
    request: Arc<[u8]>,
    /// Responses have no body, whatever their head says.
    head_only: bool,
    /// Each request on a standing connection waits for its time.
    rests: bool,
    /// 0: no limit
    requests_max: u64,
}

impl HttpWork {
    /// Sends a request that was due at `due`; without, with the connection, whose handshake then counts.
    fn send(&self, connection: &mut Connection, due: Option<Instant>, now: Instant) -> Result<(), Failure> {
        if let Some(due) = due {
            connection.unit_due = due;
            connection.unit_started = now;
        }
        connection.limit_unit();
        connection.state.requests += 1;
        connection.queue(&self.request)
    }
}

impl Work for HttpWork {
    fn progress(
        &mut self,
        connection: &mut Connection,
        progress: &Progress,
        now: Instant,
        tally: &mut Tally,
    ) -> Result<Next, Failure> {
        if progress.established {
            connection.expect(Inbound::Http(ResponseReader::new(self.head_only)));
            if self.requests_max == 1 {
                self.send(connection, None, now)?;
                return Ok(Next::Wait);
            }
            if self.rests {
                return Ok(Next::Rest);
            }
            self.send(connection, Some(now), now)?;
            return Ok(Next::Wait);
        }
        if let Some(due) = connection.state.due.take() {
            self.send(connection, Some(due), now)?;
        }
        if connection.state.resting {
            // Between two requests a server may close, and say why (408).
            if progress.peer_closed {
                tally.closed_at_rest += 1;
                connection.state.closed_at_rest = true;
                return Ok(Next::Close);
            }
            return if progress.received == 0 {
                Ok(Next::Rest)
            } else {
                Err(Failure::Http("an answer that nothing had asked for".to_owned()))
            };
        }
        let Inbound::Http(reader) = &mut connection.inbound else {
            unreachable!("set when the handshake was complete")
        };
        if progress.peer_closed {
            reader.end(progress.notified)?;
        }
        let Some(response) = reader.take_response() else {
            return if progress.peer_closed {
                Err(Failure::ClosedByPeer)
            } else {
                Ok(Next::Wait)
            };
        };
        tally.unit(connection.times(now));
        tally.bytes(response.bytes);
        tally.status(response.status);
        let last = connection.state.requests == self.requests_max;
        if last || response.close || progress.peer_closed {
            return Ok(Next::Close);
        }
        if self.rests {
            return Ok(Next::Rest);
        }
        self.send(connection, Some(now), now)?;
        Ok(Next::Wait)
    }

    fn finished(&mut self, _connection: &Connection, _tally: &mut Tally) {}
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn bytes(flags: &str) -> Result<String, String> {
        let line = format!("ringlock-perf http --target localhost:1 --insecure {flags}");
        let Command::Http(args) = Cli::parse_from(line.split_whitespace()).command else {
            panic!("http is a command")
        };
        request(&args)
            .map(|bytes| String::from_utf8(bytes).unwrap())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_request_has_its_host_its_headers_and_its_body() {
        assert_eq!(bytes("").unwrap(), "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(
            bytes("--method POST --path /a?b --header Accept:x --header host:y --body 3 --requests-per-connection 1")
                .unwrap(),
            "POST /a?b HTTP/1.1\r\nAccept: x\r\nhost: y\r\nContent-Length: 3\r\nConnection: close\r\n\r\nxxx"
        );
    }

    #[test]
    fn what_would_be_no_request_is_refused_by_its_flag() {
        for (flags, flag) in [
            ("--path x", "--path"),
            ("--method G(T", "--method"),
            ("--header nothing", "--header"),
            ("--header Content-Length:5", "--header"),
            ("--body 1GiB", "--body"),
        ] {
            assert!(bytes(flags).unwrap_err().contains(flag), "{flags}");
        }
    }
}
