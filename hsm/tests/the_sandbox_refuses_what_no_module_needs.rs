//! What a process can still do after it has given up the rest. Alone in its process, because there is no way back.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::mpsc;

use ringlock_hsm::sandbox;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource};

#[test]
fn programs_namespaces_and_memory_of_others_are_refused_on_all_threads_and_signing_goes_on() {
    assert!(Command::new("true").status().is_ok(), "programs can be started before");
    let (ask, asked) = mpsc::channel::<()>();
    let earlier = std::thread::spawn(move || {
        asked.recv().unwrap();
        Command::new("true").status()
    });
    sandbox::keep_to_itself().unwrap();
    sandbox::refuse_system_calls().unwrap();

    ask.send(()).unwrap();
    for started in [earlier.join().unwrap(), Command::new("true").status()] {
        assert_eq!(started.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    assert!(
        status.contains("Seccomp:\t2\n") && status.contains("NoNewPrivs:\t1\n"),
        "{status}"
    );
    assert_eq!(
        rustix::process::dumpable_behavior().unwrap(),
        DumpableBehavior::NotDumpable
    );
    assert_eq!(rustix::process::getrlimit(Resource::Core).maximum, Some(0));
    assert_eq!(rustix::process::chroot("/"), Err(Errno::PERM));

    tempfile::tempfile().unwrap();
    UnixStream::pair().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    rcgen::CertificateParams::new(vec!["a.example".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    std::thread::spawn(|| ()).join().unwrap();
}
