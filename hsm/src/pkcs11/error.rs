//! Errors of PKCS#11 as faults: their names, and what kind of thing each of them is.

use cryptoki::context::Function;
use cryptoki::error::{Error, RvError};

use crate::protocol::{Fault, FaultKind};

/// An error that some function of the module returned, or that was found in what it returned; `of` says of what, such as "token
/// `edge`".
pub(super) fn fault(error: &Error, of: &str) -> Fault {
    if let Error::Pkcs11(error, function) = error {
        Fault {
            kind: kind(*error, *function),
            found: format!("{} from C_{function:?} of {of}", name(*error)),
            ckr: Some(name(*error)),
        }
    } else {
        // A function that the module lacks, or a value that PKCS#11 does not know.
        Fault::new(
            FaultKind::Device,
            format!("an answer of {of} that makes no sense ({error})"),
        )
    }
}

/// The name in PKCS#11 that belongs to the name in cryptoki: `PinIncorrect` is CKR_PIN_INCORRECT.
pub(super) fn name(error: RvError) -> String {
    if let RvError::VendorDefined(code) | RvError::UnknownErrorCode(code) = error {
        return format!("CKR_0x{code:08x}");
    }
    let mut name = String::from("CKR");
    for letter in format!("{error:?}").chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

fn kind(error: RvError, function: Function) -> FaultKind {
    use RvError as E;
    if matches!(function, Function::Initialize | Function::Finalize | Function::GetInfo) {
        return FaultKind::Module;
    }
    const KINDS: [(FaultKind, &[RvError]); 4] = [
        (
            FaultKind::Pin,
            &[
                E::PinIncorrect,
                E::PinInvalid,
                E::PinLenRange,
                E::PinExpired,
                E::PinLocked,
                E::UserPinNotInitialized,
            ],
        ),
        (
            FaultKind::Token,
            &[
                E::SlotIdInvalid,
                E::TokenNotPresent,
                E::TokenNotRecognized,
                E::TokenWriteProtected,
            ],
        ),
        (FaultKind::Object, &[E::KeyHandleInvalid, E::ObjectHandleInvalid]),
        (
            FaultKind::Mechanism,
            &[
                E::MechanismInvalid,
                E::MechanismParamInvalid,
                E::KeyTypeInconsistent,
                E::KeyFunctionNotPermitted,
                E::KeySizeRange,
                E::CurveNotSupported,
                E::DomainParamsInvalid,
                E::FunctionNotSupported,
            ],
        ),
    ];
    let of = KINDS.iter().find(|(_, errors)| errors.contains(&error));
    of.map_or(FaultKind::Device, |(kind, _)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_called_as_in_the_standard() {
        let names = [
            (RvError::PinIncorrect, "CKR_PIN_INCORRECT"),
            (RvError::DeviceRemoved, "CKR_DEVICE_REMOVED"),
            (RvError::SessionHandleInvalid, "CKR_SESSION_HANDLE_INVALID"),
            (RvError::SessionReadWriteSoExists, "CKR_SESSION_READ_WRITE_SO_EXISTS"),
            (RvError::SlotIdInvalid, "CKR_SLOT_ID_INVALID"),
            (RvError::RandomNoRng, "CKR_RANDOM_NO_RNG"),
            (RvError::FipsSelfTestFailed, "CKR_FIPS_SELF_TEST_FAILED"),
            (RvError::VendorDefined(0x8000_0042), "CKR_0x80000042"),
        ];
        for (error, expected) in names {
            assert_eq!(name(error), expected);
        }
    }

    #[test]
    fn a_fault_says_what_came_from_where() {
        let error = Error::Pkcs11(RvError::DeviceRemoved, Function::Sign);
        let fault = fault(&error, "token `edge`");
        assert_eq!(fault.found, "CKR_DEVICE_REMOVED from C_Sign of token `edge`");
        assert_eq!(fault.kind, FaultKind::Device);
        assert!(fault.loses_sessions());
    }

    #[test]
    fn what_an_operator_has_to_do_decides_the_kind() {
        let kinds = [
            (RvError::PinIncorrect, Function::Login, FaultKind::Pin),
            (RvError::PinLocked, Function::Login, FaultKind::Pin),
            (RvError::UserPinNotInitialized, Function::Login, FaultKind::Pin),
            (RvError::TokenNotPresent, Function::OpenSession, FaultKind::Token),
            (RvError::KeyHandleInvalid, Function::SignInit, FaultKind::Object),
            (RvError::MechanismInvalid, Function::SignInit, FaultKind::Mechanism),
            (RvError::GeneralError, Function::Initialize, FaultKind::Module),
            (RvError::GeneralError, Function::Sign, FaultKind::Device),
        ];
        for (error, function, expected) in kinds {
            assert_eq!(kind(error, function), expected, "{error:?}");
        }
    }
}
