//! The functions that C calls: pointers to references and back.
#![allow(unsafe_code, reason = "a PKCS#11 module is called through pointers")]

use std::ffi::c_void;
use std::slice;
use std::sync::LazyLock;

use cryptoki_sys::*;

use crate::key::Mechanism;
use crate::module;

/// What this module offers. A function that is missing here is not supported.
static FUNCTIONS: LazyLock<CK_FUNCTION_LIST> = LazyLock::new(|| CK_FUNCTION_LIST {
    version: module::VERSION,
    C_Initialize: Some(initialize),
    C_Finalize: Some(finalize),
    C_GetInfo: Some(info),
    C_GetFunctionList: Some(C_GetFunctionList),
    C_GetSlotList: Some(slot_list),
    C_GetSlotInfo: Some(slot_info),
    C_GetTokenInfo: Some(token_info),
    C_GetMechanismList: Some(mechanism_list),
    C_GetMechanismInfo: Some(mechanism_info),
    C_OpenSession: Some(open_session),
    C_CloseSession: Some(close_session),
    C_CloseAllSessions: Some(close_all_sessions),
    C_GetSessionInfo: Some(session_info),
    C_Login: Some(login),
    C_Logout: Some(logout),
    C_GetAttributeValue: Some(attribute_value),
    C_FindObjectsInit: Some(find_init),
    C_FindObjects: Some(find),
    C_FindObjectsFinal: Some(find_final),
    C_SignInit: Some(sign_init),
    C_Sign: Some(sign),
    ..CK_FUNCTION_LIST::default()
});

/// The one symbol that a PKCS#11 module exports.
///
/// # Safety
/// `list` is null or can be written to.
// SAFETY: the name is what PKCS#11 gives to this function, and its form the one that PKCS#11 says.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "PKCS#11 has named it")]
pub(crate) unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    let functions: *const CK_FUNCTION_LIST = &raw const *FUNCTIONS;
    // SAFETY: `list` is as the caller promises. What it then points to is read only, says PKCS#11, whatever its type is.
    unsafe { put(list, Ok(functions.cast_mut())) }
}

// All of these keep to one contract, that of PKCS#11: a pointer is null, or leads to as much as the length beside it says (one, without a
// length), and nobody else uses that memory for as long as the call takes.

unsafe extern "C" fn initialize(_: *mut c_void) -> CK_RV {
    // Its locks are the system's, which every caller may ask for.
    code(module::initialize())
}

unsafe extern "C" fn finalize(_: *mut c_void) -> CK_RV {
    code(module::finalize())
}

unsafe extern "C" fn info(out: *mut CK_INFO) -> CK_RV {
    // SAFETY: the contract.
    unsafe { put(out, module::info()) }
}

unsafe extern "C" fn slot_list(with_token: CK_BBOOL, out: *mut CK_SLOT_ID, count: *mut CK_ULONG) -> CK_RV {
    // SAFETY: the contract.
    unsafe { put_all(out, count, module::slots(with_token != CK_FALSE)) }
}

unsafe extern "C" fn slot_info(slot: CK_SLOT_ID, out: *mut CK_SLOT_INFO) -> CK_RV {
    // SAFETY: the contract.
    unsafe { put(out, module::slot_info(slot)) }
}

unsafe extern "C" fn token_info(slot: CK_SLOT_ID, out: *mut CK_TOKEN_INFO) -> CK_RV {
    // SAFETY: the contract.
    unsafe { put(out, module::token_info(slot)) }
}

unsafe extern "C" fn mechanism_list(slot: CK_SLOT_ID, out: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG) -> CK_RV {
    // SAFETY: the contract.
    unsafe { put_all(out, count, module::mechanisms(slot)) }
}

unsafe extern "C" fn mechanism_info(
    slot: CK_SLOT_ID,
    mechanism: CK_MECHANISM_TYPE,
    out: *mut CK_MECHANISM_INFO,
) -> CK_RV {
    // SAFETY: the contract.
    unsafe { put(out, module::mechanism_info(slot, mechanism)) }
}

unsafe extern "C" fn open_session(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    _: *mut c_void,
    _: CK_NOTIFY,
    out: *mut CK_SESSION_HANDLE,
) -> CK_RV {
    if out.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: the contract.
    unsafe { put(out, module::open_session(slot, flags)) }
}

unsafe extern "C" fn close_session(session: CK_SESSION_HANDLE) -> CK_RV {
    code(module::close_session(session))
}

unsafe extern "C" fn close_all_sessions(slot: CK_SLOT_ID) -> CK_RV {
    code(module::close_all_sessions(slot))
}

unsafe extern "C" fn session_info(session: CK_SESSION_HANDLE, out: *mut CK_SESSION_INFO) -> CK_RV {
    // SAFETY: the contract.
    unsafe { put(out, module::session_info(session)) }
}

unsafe extern "C" fn login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: *mut CK_UTF8CHAR,
    length: CK_ULONG,
) -> CK_RV {
    // SAFETY: the contract.
    let pin = unsafe { given(pin, length) };
    code(pin.and_then(|pin| module::login(session, user, pin)))
}

unsafe extern "C" fn logout(session: CK_SESSION_HANDLE) -> CK_RV {
    code(module::logout(session))
}

unsafe extern "C" fn attribute_value(
    session: CK_SESSION_HANDLE,
    object: CK_OBJECT_HANDLE,
    template: *mut CK_ATTRIBUTE,
    count: CK_ULONG,
) -> CK_RV {
    if template.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: the contract, and the pointer is not null.
    let template = unsafe { slice::from_raw_parts_mut(template, count as usize) };
    let wanted: Vec<CK_ATTRIBUTE_TYPE> = template.iter().map(|attribute| attribute.type_).collect();
    let values = match module::attributes(session, object, &wanted) {
        Ok(values) => values,
        Err(code) => return code,
    };
    // One that cannot be told does not keep the others from being told.
    let mut result = CKR_OK;
    for (attribute, value) in template.iter_mut().zip(values) {
        // SAFETY: the contract, which holds for each value of a template with its length.
        let told = unsafe { put_all(attribute.pValue.cast(), &raw mut attribute.ulValueLen, value) };
        if told != CKR_OK {
            attribute.ulValueLen = CK_UNAVAILABLE_INFORMATION;
            result = told;
        }
    }
    result
}

unsafe extern "C" fn find_init(session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG) -> CK_RV {
    // SAFETY: the contract.
    let template = unsafe { given(template, count) };
    let value = |attribute: &CK_ATTRIBUTE| {
        // SAFETY: the contract, which holds for each value of a template with its length.
        let value = unsafe { given(attribute.pValue.cast::<u8>(), attribute.ulValueLen) };
        Ok((attribute.type_, value?.to_vec()))
    };
    let template = template.and_then(|template| template.iter().map(value).collect::<Result<Vec<_>, _>>());
    code(template.and_then(|template| module::find_init(session, &template)))
}

unsafe extern "C" fn find(
    session: CK_SESSION_HANDLE,
    out: *mut CK_OBJECT_HANDLE,
    most: CK_ULONG,
    count: *mut CK_ULONG,
) -> CK_RV {
    if out.is_null() || count.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: the contract, and the pointer is not null.
    unsafe { *count = most };
    // SAFETY: the contract; the place for the handles is as long as `count` says.
    unsafe { put_all(out, count, module::find(session, most as usize)) }
}

unsafe extern "C" fn find_final(session: CK_SESSION_HANDLE) -> CK_RV {
    code(module::find_final(session))
}

unsafe extern "C" fn sign_init(
    session: CK_SESSION_HANDLE,
    mechanism: *mut CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    // SAFETY: the contract.
    let Some(mechanism) = (unsafe { mechanism.as_ref() }) else {
        return CKR_ARGUMENTS_BAD;
    };
    let parameter = mechanism.pParameter.cast::<CK_RSA_PKCS_PSS_PARAMS>();
    let is_pss = mechanism.mechanism == CKM_RSA_PKCS_PSS
        && mechanism.ulParameterLen as usize == size_of::<CK_RSA_PKCS_PSS_PARAMS>()
        && parameter.is_aligned();
    // SAFETY: the contract; mechanism and length say that it leads to this.
    let pss = if is_pss { unsafe { parameter.as_ref() } } else { None };
    let mechanism = Mechanism::new(mechanism.mechanism, pss.copied());
    code(mechanism.and_then(|mechanism| module::sign_init(session, mechanism, key)))
}

unsafe extern "C" fn sign(
    session: CK_SESSION_HANDLE,
    data: *mut CK_BYTE,
    data_length: CK_ULONG,
    out: *mut CK_BYTE,
    length: *mut CK_ULONG,
) -> CK_RV {
    // SAFETY: the contract.
    let Some(room) = (unsafe { length.as_mut() }) else {
        return CKR_ARGUMENTS_BAD;
    };
    let needed = match module::signature_bytes(session) {
        Ok(needed) => needed as CK_ULONG,
        Err(code) => return code,
    };
    // A question, or no room: the operation goes on.
    if out.is_null() || *room < needed {
        *room = needed;
        return if out.is_null() { CKR_OK } else { CKR_BUFFER_TOO_SMALL };
    }
    // SAFETY: the contract.
    let data = unsafe { given(data, data_length) };
    // SAFETY: the contract.
    unsafe { put_all(out, length, data.and_then(|data| module::sign(session, data))) }
}

fn code(result: Result<(), CK_RV>) -> CK_RV {
    result.err().unwrap_or(CKR_OK)
}

/// What a caller gives.
///
/// # Safety
/// `values` is null or leads to `count` of them, which nobody changes for as long as the result is used.
unsafe fn given<'a, T>(values: *const T, count: CK_ULONG) -> Result<&'a [T], CK_RV> {
    match (values.is_null(), count) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(CKR_ARGUMENTS_BAD),
        // SAFETY: as promised, and the pointer is not null.
        (false, count) => Ok(unsafe { slice::from_raw_parts(values, count as usize) }),
    }
}

/// Writes an answer, if it is one.
///
/// # Safety
/// `out` is null or can be written to.
unsafe fn put<T>(out: *mut T, answer: Result<T, CK_RV>) -> CK_RV {
    match answer {
        Ok(_) if out.is_null() => CKR_ARGUMENTS_BAD,
        Ok(value) => {
            // SAFETY: as promised, and the pointer is not null.
            unsafe { out.write(value) };
            CKR_OK
        }
        Err(code) => code,
    }
}

/// Writes an answer of several values, if there is room for all of them, and their number in any case. Without `out` the number is the
/// question.
///
/// # Safety
/// `count` is null or can be read and written; `out` is null or has room for so many.
unsafe fn put_all<T: Copy>(out: *mut T, count: *mut CK_ULONG, answer: Result<Vec<T>, CK_RV>) -> CK_RV {
    // SAFETY: as promised.
    let Some(count) = (unsafe { count.as_mut() }) else {
        return CKR_ARGUMENTS_BAD;
    };
    let values = match answer {
        Ok(values) => values,
        Err(code) => return code,
    };
    let room = std::mem::replace(count, values.len() as CK_ULONG) as usize;
    if out.is_null() {
        return CKR_OK;
    }
    if room < values.len() {
        return CKR_BUFFER_TOO_SMALL;
    }
    // SAFETY: there is room for `room` values, and these are no more; memory of the caller's overlaps none of ours.
    unsafe { out.copy_from_nonoverlapping(values.as_ptr(), values.len()) };
    CKR_OK
}
