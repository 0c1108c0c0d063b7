//! Other people's programs: run to their end, or talked to.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use super::{PATIENCE, eventually};

/// What a program said and how it ended.
#[derive(Debug)]
pub(crate) struct Ran {
    /// How.
    pub(crate) status: ExitStatus,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

impl Ran {
    /// The same, but only if it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Ran {
        assert!(self.status.success(), "it failed: {self:#?}");
        self
    }

    /// Both outputs, one after the other.
    pub(crate) fn text(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    /// The same, but only if this text is in one of the outputs.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Ran {
        assert!(self.text().contains(text), "it does not say {text:?}: {self:#?}");
        self
    }
}

/// Where a program is. Fails the test if it is missing.
#[track_caller]
pub(crate) fn tool(name: &str) -> PathBuf {
    if name.contains('/') {
        return name.into();
    }
    // Administrators' programs are not on every user's path.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/local/sbin:/usr/sbin:/sbin";
    let found = std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is missing: scripts/setup installs it"))
}

/// The library that has a program see another time.
#[track_caller]
pub(crate) fn faked_clocks() -> String {
    let machine = std::env::consts::ARCH;
    let folders = [
        format!("/usr/lib/{machine}-linux-gnu"),
        "/usr/lib64".into(),
        "/usr/lib".into(),
    ];
    let file = |folder: &String| Path::new(folder).join("faketime/libfaketimeMT.so.1");
    let found = folders.iter().map(file).find(|file| file.is_file());
    found
        .expect("libfaketime is missing: scripts/setup installs it")
        .display()
        .to_string()
}

/// Runs a program with this standard input to its end.
#[track_caller]
pub(crate) fn run<A: AsRef<OsStr>>(name: &str, arguments: &[A], input: &[u8]) -> Ran {
    run_with(&[], name, arguments, input)
}

/// The same, with these variables in its environment.
#[track_caller]
pub(crate) fn run_with<A: AsRef<OsStr>>(
    environment: &[(String, String)],
    name: &str,
    arguments: &[A],
    input: &[u8],
) -> Ran {
    let program = Program::start_with(environment, name, arguments);
    program.send_all(input);
    program.finish()
}

/// Runs a Python program with `sys.argv[1:]` set to the arguments; it must succeed. Gives its standard output.
#[track_caller]
pub(crate) fn python<A: AsRef<OsStr>>(script: &str, arguments: &[A]) -> String {
    let mut all: Vec<&OsStr> = vec![OsStr::new("-c"), OsStr::new(script)];
    all.extend(arguments.iter().map(AsRef::as_ref));
    run("python3", &all, b"").ok().stdout
}

/// A program that runs, to talk to. Is killed when it goes out of scope.
pub(crate) struct Program {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    outputs: [Arc<Mutex<Vec<u8>>>; 2],
    readers: Vec<JoinHandle<()>>,
}

impl Program {
    /// Starts it.
    #[track_caller]
    pub(crate) fn start<A: AsRef<OsStr>>(name: &str, arguments: &[A]) -> Program {
        Program::start_with(&[], name, arguments)
    }

    /// Starts it with these variables in its environment.
    #[track_caller]
    pub(crate) fn start_with<A: AsRef<OsStr>>(
        environment: &[(String, String)],
        name: &str,
        arguments: &[A],
    ) -> Program {
        let mut child = Command::new(tool(name))
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        let outputs = [Arc::default(), Arc::default()];
        let readers = vec![
            collect(child.stdout.take().unwrap(), &outputs[0]),
            collect(child.stderr.take().unwrap(), &outputs[1]),
        ];
        Program {
            name: name.to_owned(),
            input: child.stdin.take(),
            child,
            outputs,
            readers,
        }
    }

    /// True while it lives.
    pub(crate) fn is_running(&self) -> bool {
        // A child that was not waited for stays a zombie, which has no memory map.
        std::fs::read_link(format!("/proc/{}/exe", self.pid())).is_ok()
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes to its standard input.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let input = self.input.as_mut().expect("the input is still open");
        input.write_all(bytes).unwrap();
        input.flush().unwrap();
    }

    /// Waits until its outputs hold this text.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.text().contains(text) {
            assert!(
                Instant::now() < deadline,
                "{} does not say {text:?} but:\n{}",
                self.name,
                self.text()
            );
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    /// Its standard output and standard error so far, one after the other.
    pub(crate) fn text(&self) -> String {
        let [stdout, stderr] = &self.outputs;
        format!("{}\n{}", taken(stdout), taken(stderr))
    }

    /// Closes its input.
    pub(crate) fn close_input(&mut self) {
        self.input = None;
    }

    /// Closes its input and waits for its end.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Ran {
        self.close_input();
        let status = eventually(&format!("{} to end", self.name), || self.child.try_wait().unwrap());
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let [stdout, stderr] = &self.outputs;
        Ran {
            status,
            stdout: taken(stdout),
            stderr: taken(stderr),
        }
    }

    /// Writes all of it; a program that has ended before needs none.
    fn send_all(&self, bytes: &[u8]) {
        if let Some(mut input) = self.input.as_ref() {
            let _ = input.write_all(bytes);
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn collect(mut from: impl Read + Send + 'static, to: &Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    let to = Arc::clone(to);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            to.lock().unwrap().extend_from_slice(&buffer[..length]);
        }
    })
}

fn taken(output: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&output.lock().unwrap()).into_owned()
}
