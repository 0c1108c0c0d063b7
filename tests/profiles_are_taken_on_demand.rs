//! Profiles on demand. Built with the feature `profiling` (`scripts/test` does that for this file and the planted bugs) a confined gateway
//! draws flame graphs; built without it says so and goes on.

use crate::support::*;

use rustix::process::Signal;

both_drivers!(
    a_wrong_question_is_answered_with_what_was_expected,
    the_admin_server_answers_with_a_profile_or_says_why_not,
    a_signal_begins_and_ends_a_profile_or_is_told_why_not,
);

const BUILT: bool = cfg!(feature = "profiling");

fn a_wrong_question_is_answered_with_what_was_expected(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    for wrong in ["seconds=0", "seconds=301", "seconds=soon", "time=1"] {
        let (status, why) = gateway.ask(&format!("/debug/profile?{wrong}"));
        assert_eq!(status, 400, "{why}");
        assert!(why.contains(wrong) && why.contains("?seconds=30"), "{why}");
    }
    exchange(&gateway);
}

fn the_admin_server_answers_with_a_profile_or_says_why_not(io: Io) {
    let origin = Origin::echo();
    let gateway = Setup::new(io, &[origin.address()]).start();
    let client = Client::new(&gateway);
    if !BUILT {
        let (status, why) = gateway.ask("/debug/profile?seconds=1");
        assert_eq!(status, 501, "{why}");
        assert!(why.contains("--features profiling"), "{why}");
        return exchange(&gateway);
    }
    let (load, [first, second]) = under_load(&client, 2, |load| {
        load.wait_for_more(10);
        // Two at once: one of them is refused. Which one is, is the kernel's choice.
        let both = std::thread::scope(|scope| {
            [(); 2]
                .map(|()| scope.spawn(|| gateway.ask("/debug/profile?seconds=2")))
                .map(|asked| asked.join().unwrap())
        });
        load.wait_for_more(10);
        both
    });
    assert!(load.failures().is_empty(), "{:?}", load.failures());
    let [taken, refused] = if first.0 == 200 {
        [first, second]
    } else {
        [second, first]
    };
    assert_eq!(refused.0, 409, "{}", refused.1);
    assert!(refused.1.contains("another profile"), "{}", refused.1);
    assert_eq!(taken.0, 200, "{}", taken.1);
    shows_handshakes(&taken.1);
}

fn a_signal_begins_and_ends_a_profile_or_is_told_why_not(io: Io) {
    let origin = Origin::echo();
    let setup = Setup::new(io, &[origin.address()]);
    let folder = tempfile::tempdir().unwrap();
    let setup = setup.environment("TMPDIR", folder.path().to_str().unwrap());
    let gateway = setup.start();
    let client = Client::new(&gateway);
    let said = |words: &str| {
        let words = words.to_owned();
        gateway.wait_for_line("what became of the signal", move |line| {
            line["message"].as_str().is_some_and(|message| message.contains(&words))
        })
    };
    gateway.signal(Signal::USR2);
    if !BUILT {
        let line = said("no profile is taken");
        assert!(
            line["error"].as_str().unwrap().contains("--features profiling"),
            "{line}"
        );
        return exchange(&gateway);
    }
    said("a profile is being taken");
    let (load, ()) = under_load(&client, 2, |load| load.wait_for_more(600));
    assert!(load.failures().is_empty(), "{:?}", load.failures());
    gateway.signal(Signal::USR2);
    let line = said("the profile is written");
    let file = line["file"].as_str().unwrap();
    assert!(file.starts_with(folder.path().to_str().unwrap()), "{file}");
    shows_handshakes(&std::fs::read_to_string(file).unwrap());
    exchange(&gateway);
}

/// The frames of a flame graph name the gateway's functions, from the loop of a worker down to AWS-LC.
#[track_caller]
fn shows_handshakes(graph: &str) {
    assert!(graph.starts_with("<?xml") && graph.contains("<svg"), "{graph:.200}");
    let frames: Vec<&str> = graph
        .split("<title>")
        .filter_map(|rest| rest.split_once("</title>"))
        .map(|(frame, _)| frame)
        .collect();
    for function in ["ringlock::worker::", "ringlock::tls::handshake::", "aws_lc_"] {
        let found = frames.iter().any(|frame| frame.contains(function));
        assert!(found, "{function} is not in the profile:\n{}", frames.join("\n"));
    }
}
