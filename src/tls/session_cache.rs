//! TEMP
use zeroize::Zeroizing;
/// TEMP
#[derive(Debug)]
pub struct SessionCache;
/// TEMP
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// TEMP
    pub entries: u64,
    /// TEMP
    pub bytes: u64,
    /// TEMP
    pub capacity: u64,
    /// TEMP
    pub evicted: u64,
}
impl SessionCache {
    /// TEMP
    pub fn new(_bytes: usize) -> SessionCache {
        SessionCache
    }
    /// TEMP
    pub fn put(&self, _id: &[u8], _value: Zeroizing<Vec<u8>>) -> bool {
        false
    }
    /// TEMP
    pub fn get(&self, _id: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        None
    }
    /// TEMP
    pub fn take(&self, _id: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        None
    }
    /// TEMP
    pub fn usage(&self) -> Usage {
        Usage::default()
    }
}
