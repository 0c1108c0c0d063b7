//! What goes wrong: the text of a cue, and what it says about one call.

use std::time::Duration;

use cryptoki_sys::*;

/// A kind of call, as cues name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Initialize,
    List,
    Info,
    Open,
    Close,
    Login,
    Find,
    Read,
    Sign,
}

const OPERATIONS: [(&str, Operation); 9] = [
    ("initialize", Operation::Initialize),
    ("list", Operation::List),
    ("info", Operation::Info),
    ("open", Operation::Open),
    ("close", Operation::Close),
    ("login", Operation::Login),
    ("find", Operation::Find),
    ("read", Operation::Read),
    ("sign", Operation::Sign),
];

/// Which calls a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Every,
    Only(Operation),
}

impl Scope {
    fn parse(name: &str) -> Result<Scope, String> {
        if name == "all" {
            return Ok(Scope::Every);
        }
        let found = OPERATIONS.iter().find(|(known, _)| *known == name);
        let names: Vec<&str> = OPERATIONS.iter().map(|(name, _)| *name).collect();
        found
            .map(|(_, operation)| Scope::Only(*operation))
            .ok_or_else(|| format!("{name:?} is no kind of call: all, {}", names.join(", ")))
    }

    fn covers(self, operation: Operation) -> bool {
        self == Scope::Every || self == Scope::Only(operation)
    }
}

/// A token that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Absence {
    /// Until the cue goes.
    Plain,
    /// Until the cue goes and the module is initialized anew.
    Sticky,
}

/// A fault of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Hang,
    Crash,
    Fail(CK_RV),
}

/// A cue. By default nothing goes wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cue {
    /// How long a signature takes besides.
    pub(crate) latency: Duration,
    /// Signatures have a bit flipped.
    pub(crate) wrong: bool,
    pub(crate) absent: Option<Absence>,
    /// Sessions that were idle for longer are gone.
    pub(crate) drop_idle: Option<Duration>,
    pub(crate) sessions_max: Option<usize>,
    /// So many faults, then none; `None`: for as long as the cue is there.
    pub(crate) times: Option<u64>,
    /// The first one that covers a call is meant.
    faults: Vec<(Scope, Fault)>,
}

impl Cue {
    /// Reads the lines of a cue, which [`crate::Folder::cue`] lists.
    pub(crate) fn parse(text: &str) -> Result<Cue, String> {
        let mut cue = Cue::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (name, value) = line
                .split_once('=')
                .map_or((line, ""), |(name, value)| (name.trim(), value.trim()));
            cue.read(name, value)
                .map_err(|error| format!("cue, {line:?}: {error}"))?;
        }
        // `fail_sign` is meant before `fail`.
        cue.faults.sort_by_key(|(scope, _)| *scope == Scope::Every);
        Ok(cue)
    }

    fn read(&mut self, name: &str, value: &str) -> Result<(), String> {
        let number = || value.parse::<u64>().map_err(|error| error.to_string());
        match (name, value) {
            ("latency_ms", _) => self.latency = Duration::from_millis(number()?),
            ("drop_idle_ms", _) => self.drop_idle = Some(Duration::from_millis(number()?)),
            ("sessions_max", _) => self.sessions_max = Some(number()? as usize),
            ("times", _) => self.times = Some(number()?),
            ("wrong", "") => self.wrong = true,
            ("absent", "") => self.absent = Some(Absence::Plain),
            ("absent", "sticky") => self.absent = Some(Absence::Sticky),
            ("hang", _) => self.faults.push((Scope::parse(value)?, Fault::Hang)),
            ("crash", "") => self.faults.push((Scope::Every, Fault::Crash)),
            ("crash", _) => self.faults.push((Scope::parse(value)?, Fault::Crash)),
            ("fail", _) => self.faults.push((Scope::Every, Fault::Fail(code(value)?))),
            (name, _) => match name.strip_prefix("fail_") {
                Some(operation) => self.faults.push((Scope::parse(operation)?, Fault::Fail(code(value)?))),
                None => return Err("unknown".to_owned()),
            },
        }
        Ok(())
    }

    /// The fault that calls of this kind have.
    pub(crate) fn fault(&self, operation: Operation) -> Option<Fault> {
        let found = self.faults.iter().find(|(scope, _)| scope.covers(operation));
        found.map(|(_, fault)| *fault)
    }
}

macro_rules! by_name {
    ($name:expr, $($known:ident)*) => {
        match $name {
            $(stringify!($known) => Some($known),)*
            _ => None,
        }
    };
}

/// The return value of this name.
fn code(name: &str) -> Result<CK_RV, String> {
    let code = by_name!(name,
        CKR_HOST_MEMORY CKR_SLOT_ID_INVALID CKR_GENERAL_ERROR CKR_FUNCTION_FAILED CKR_ARGUMENTS_BAD CKR_CANT_LOCK
        CKR_DATA_INVALID CKR_DATA_LEN_RANGE CKR_DEVICE_ERROR CKR_DEVICE_MEMORY CKR_DEVICE_REMOVED CKR_FUNCTION_CANCELED
        CKR_FUNCTION_NOT_SUPPORTED CKR_KEY_HANDLE_INVALID CKR_KEY_TYPE_INCONSISTENT CKR_KEY_FUNCTION_NOT_PERMITTED
        CKR_MECHANISM_INVALID CKR_MECHANISM_PARAM_INVALID CKR_OBJECT_HANDLE_INVALID CKR_OPERATION_ACTIVE
        CKR_OPERATION_NOT_INITIALIZED CKR_PIN_INCORRECT CKR_PIN_INVALID CKR_PIN_LEN_RANGE CKR_PIN_EXPIRED CKR_PIN_LOCKED
        CKR_SESSION_CLOSED CKR_SESSION_COUNT CKR_SESSION_HANDLE_INVALID CKR_TOKEN_NOT_PRESENT CKR_TOKEN_NOT_RECOGNIZED
        CKR_USER_ALREADY_LOGGED_IN CKR_USER_NOT_LOGGED_IN CKR_USER_PIN_NOT_INITIALIZED CKR_USER_TYPE_INVALID
        CKR_BUFFER_TOO_SMALL CKR_CRYPTOKI_NOT_INITIALIZED CKR_CRYPTOKI_ALREADY_INITIALIZED CKR_FUNCTION_REJECTED
        CKR_TOKEN_RESOURCE_EXCEEDED CKR_VENDOR_DEFINED
    );
    code.ok_or_else(|| format!("{name:?} is no return value that this module gives"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_faults_and_the_narrower_one_is_meant() {
        let cue = Cue::parse(
            "latency_ms = 20\n\nfail = CKR_GENERAL_ERROR\nfail_sign = CKR_DEVICE_REMOVED\ntimes = 3\nabsent = sticky\nwrong\n",
        )
        .unwrap();
        assert_eq!(cue.latency, Duration::from_millis(20));
        assert_eq!(cue.fault(Operation::Sign), Some(Fault::Fail(CKR_DEVICE_REMOVED)));
        assert_eq!(cue.fault(Operation::Login), Some(Fault::Fail(CKR_GENERAL_ERROR)));
        assert_eq!(
            (cue.times, cue.absent, cue.wrong),
            (Some(3), Some(Absence::Sticky), true)
        );
        assert_eq!(Cue::parse("hang = sign").unwrap().fault(Operation::Login), None);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for text in [
            "hang",
            "fail = CKR_NONSENSE",
            "fail_lunch = CKR_DEVICE_ERROR",
            "late",
            "times = x",
            "wrong = 1",
        ] {
            let error = Cue::parse(text).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}
