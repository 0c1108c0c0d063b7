//! Chromium loads a page whose images each need a connection of their own.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::sync::{Arc, Mutex};

use crate::support::*;

both_drivers!(chromium_resumes_for_the_images_of_a_page);

const IMAGES: usize = 20;

/// Answers each connection once, and closes it. Paths are kept.
fn page(asked: &Arc<Mutex<BTreeSet<String>>>) -> Origin {
    let asked = Arc::clone(asked);
    Origin::start(move |mut stream| {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        // A browser opens connections ahead, and may leave without a request.
        let Some(Ok(first)) = lines.next() else { return };
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        let path = first.split(' ').nth(1).unwrap().to_owned();
        let (kind, body) = if path == "/" {
            let images: String = (0..IMAGES).map(|number| format!("<img src='/{number}.svg'>")).collect();
            ("text/html", format!("<p>a page of the origin</p>{images}"))
        } else {
            (
                "image/svg+xml",
                "<svg xmlns='http://www.w3.org/2000/svg' width='1' height='1'/>".to_owned(),
            )
        };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        if stream.write_all(answer.as_bytes()).is_ok() {
            asked.lock().unwrap().insert(path);
        }
    })
}

/// It opens six connections at once, so not every one finds a ticket.
fn chromium_resumes_for_the_images_of_a_page(io: Io) {
    let asked = Arc::default();
    let origin = page(&asked);
    let gateway = Setup::new(io, &[origin.address()]).start();
    let (ip, port) = (gateway.address.ip(), gateway.address.port());
    let profile = gateway.folder().join("profile");
    let said = run(
        "chromium",
        &[
            "--headless",
            // Chromium's own sandbox does not work for root, nor in a container.
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--ignore-certificate-errors",
            "--dump-dom",
            &format!("--user-data-dir={}", profile.display()),
            &format!("--host-resolver-rules=MAP {SITE} {ip}"),
            &format!("https://{SITE}:{port}/"),
        ],
        b"",
    );
    let said = said.ok().says("a page of the origin");
    let images = (0..IMAGES).map(|number| format!("/{number}.svg"));
    let wanted: BTreeSet<String> = images.chain(["/".to_owned()]).collect();
    let missing: Vec<String> = wanted.difference(&asked.lock().unwrap()).cloned().collect();
    assert!(missing.is_empty(), "not asked for: {missing:?}; {said:#?}");
    let metrics = gateway.wait_until_quiet();
    let count = |how| metrics.sum("ringlock_handshakes_total", &[("version", "1.3"), ("resumption", how)]);
    assert!(count("full") >= 1.0, "{}", metrics.text());
    assert!(count("resumed") >= 1.0, "{}", metrics.text());
    assert_eq!(
        metrics.sum("ringlock_sessions_accepted_total", &[("kind", "ticket")]),
        count("resumed")
    );
    for none in ["ringlock_sessions_declined_total", "ringlock_handshake_failures_total"] {
        assert_eq!(metrics.sum(none, &[]), 0.0, "{none}");
    }
}
