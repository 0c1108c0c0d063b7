//! What stands for sampling in a build without the feature `profiling`.

use super::ProfileError;

/// There is none.
pub(super) enum Sampling {}

/// There is nothing to prepare.
pub(crate) fn prepare() {}

impl Sampling {
    pub(super) fn begin() -> Result<Sampling, ProfileError> {
        Err(ProfileError::NotBuilt)
    }

    pub(super) fn draw(self) -> Result<Vec<u8>, ProfileError> {
        match self {}
    }
}
