//! What the machine forbids or asks for: no io_uring, another user, few processors.

use crate::support::*;

both_drivers!(root_is_given_up_after_binding, each_worker_has_its_processor);

#[test]
fn auto_falls_back_to_epoll_and_says_why() {
    let origin = Origin::echo();
    let gateway = Setup::new(Io::Uring, &[origin.address()])
        .automatic_io()
        .through(&[
            tool("python3").to_str().unwrap(),
            "tests/support/without_call.py",
            "425",
        ])
        .start();
    let line = gateway.wait_for_line("the driver and why", |line| line["driver"].is_string());
    assert_eq!(line["driver"], "epoll", "{line}");
    let reason = line["reason"].as_str().unwrap();
    assert!(
        reason.contains("io_uring is not usable") && reason.contains("containers"),
        "{line}"
    );
    exchange(&gateway);
    let metrics = gateway.metrics();
    assert!(
        metrics.has("ringlock_worker_info", &[("driver", "epoll")]),
        "{}",
        metrics.text()
    );
}

#[test]
fn auto_takes_io_uring_where_it_may() {
    let origin = Origin::echo();
    let gateway = Setup::new(Io::Uring, &[origin.address()]).automatic_io().start();
    let line = gateway.wait_for_line("the driver and why", |line| line["driver"].is_string());
    assert_eq!(line["driver"], "io_uring", "{line}");
    exchange(&gateway);
}

fn status_line(gateway: &Gateway, name: &str) -> Vec<String> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().map(str::to_owned).collect()
}

fn root_is_given_up_after_binding(io: Io) {
    let me = run("id", &["-un"], b"").ok().stdout.trim().to_owned();
    let origin = Origin::echo();
    if me != "root" {
        // Without root only the user itself can be asked for.
        let gateway = Setup::new(io, &[origin.address()])
            .global(&format!("user = \"{me}\""))
            .start();
        exchange(&gateway);
        return;
    }
    let gateway = Setup::new(io, &[origin.address()]).global("user = \"nobody\"").start();
    let nobody = run("id", &["-u", "nobody"], b"").ok().stdout.trim().to_owned();
    assert_eq!(
        status_line(&gateway, "Uid:"),
        vec![nobody; 4],
        "real, effective, saved, file system"
    );
    let group = run("id", &["-g", "nobody"], b"").ok().stdout.trim().to_owned();
    assert_eq!(status_line(&gateway, "Gid:"), vec![group; 4]);
    assert!(
        !status_line(&gateway, "Groups:").contains(&"0".to_owned()),
        "no group of root's is left"
    );
    assert_eq!(status_line(&gateway, "CapEff:"), ["0000000000000000"]);
    for task in std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
        assert!(!uid.split_whitespace().any(|id| id == "0"), "every thread: {status}");
    }
    exchange(&gateway);
}

fn each_worker_has_its_processor(io: Io) {
    let gateway = Setup::new(io, &["127.0.0.1:9"]).workers(2).start();
    let mut masks = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
        if value("Name:").starts_with("worker-") {
            masks.push((value("Name:").to_owned(), value("Cpus_allowed_list:").to_owned()));
        }
    }
    masks.sort();
    assert_eq!(masks.len(), 2, "{masks:?}");
    for (name, cpus) in masks {
        assert_eq!(
            name,
            format!("worker-{cpus}"),
            "each on the processor of its name and no other"
        );
    }
}
